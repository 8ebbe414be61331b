"""Overlapping chunks: what is past is dropped, what two chunks plan is merged, and playing never waits needlessly."""

import threading
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from pixio_robot.deploy.manifest import HistorySpec, Manifest
from pixio_robot.deploy.overlap import Overlapped
from pixio_robot.deploy.replay import ReplayPolicy
from pixio_robot.errors import BadInput, RemoteError


def _chunk(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


class Gated:
    """Answers when it is let, with a chunk that names the observation's step: 10 * step + place."""

    def __init__(self) -> None:
        self.gate, self.asked, self.resets = threading.Semaphore(0), list[int](), 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        step = int(observation["step"][0])
        self.asked.append(step)
        assert self.gate.acquire(timeout=5)
        return _chunk(*(10 * step + place for place in range(4)))


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def player(gated: Gated) -> Iterator[Overlapped]:
    with Overlapped(gated, ask_at=0.5) as player:
        yield player
        gated.gate.release(10)


def _seen(step: int) -> dict[str, np.ndarray]:
    return {"step": np.array([step])}


def _finished(player: Overlapped) -> None:
    assert player._asked is not None
    player._asked[1].exception()


def test_the_next_chunk_is_asked_for_while_the_present_one_plays(player: Overlapped, gated: Gated) -> None:
    gated.gate.release()
    assert player.act(_seen(0)) == [[0]] and player.act(_seen(1)) == [[1]] and gated.asked == [0]
    assert player.act(_seen(2)) == [[2]]  # two of four are left: asked, not waited for
    gated.gate.release()
    _finished(player)
    mixed = player.act(_seen(3))  # its plan for step 3 is mixed in
    assert gated.asked == [0, 2] and mixed[0, 0] == pytest.approx(0.3 * 3 + 0.7 * 21)
    assert player.act(_seen(4)) == [[22]]


def test_an_observation_may_be_written_over_while_it_is_looked_at(player: Overlapped, gated: Gated) -> None:
    gated.gate.release()
    for step in range(3):
        seen = _seen(step)
        player.act(seen)
        seen["step"][0] = 77
    gated.gate.release()
    _finished(player)
    assert gated.asked == [0, 2]


def test_a_late_chunk_is_waited_for_and_one_from_before_a_reset_is_not_played(player: Overlapped, gated: Gated) -> None:
    gated.gate.release()
    for step in range(4):
        player.act(_seen(step))
    threading.Timer(0.1, gated.gate.release).start()
    assert player.act(_seen(4)) == [[22]]  # none was left
    assert gated.asked[:2] == [0, 2]
    gated.gate.release(2)
    player.reset()
    assert gated.resets == 1 and len(player.queue) == 0
    assert player.act(_seen(9)) == [[90]]


def test_waiting_ends(gated: Gated) -> None:
    with Overlapped(gated, timeout=0.05) as player:
        with pytest.raises(RemoteError, match=r"no chunk came within 0\.05 s"):
            player.act(_seen(0))
        gated.gate.release()
        _finished(player)
        assert player.act(_seen(1)) == [[0]] and gated.asked == [0]  # it came in the end


def test_a_reset_does_not_wait_for_ever(gated: Gated) -> None:
    with Overlapped(gated, timeout=0.05) as player:
        player._ask(_seen(0))
        with pytest.raises(RemoteError, match=r"still computed after 0\.05 s"):
            player.reset()
        gated.gate.release()
        _finished(player)
        player.reset()
        assert gated.resets == 1


def test_a_policy_s_failure_is_passed_on() -> None:
    class Failing(ReplayPolicy):
        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            raise RemoteError("gone")

    with Overlapped(Failing(np.zeros((2, 1)))) as player, pytest.raises(RemoteError, match="gone"):
        player.act({})


def test_chunks_of_one_are_played_step_by_step() -> None:
    with Overlapped(ReplayPolicy(np.arange(5.0)[:, None]), ask_at=0) as player:
        assert [float(player.act({})[0, 0]) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_a_policy_that_needs_every_frame_is_refused() -> None:
    policy = ReplayPolicy(np.zeros((2, 1)))
    policy.manifest = Manifest("policy", "onnx", "fp32", "", [], [], [HistorySpec("tokens", 3, (8, 4))])  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"looks at 3 frames.*embedding\.frames=single"):
        Overlapped(policy)
    with pytest.raises(BadInput, match="share of a chunk that is left"):
        Overlapped(ReplayPolicy(np.zeros((2, 1))), ask_at=1.5)
