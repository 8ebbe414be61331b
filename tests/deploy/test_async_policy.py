"""Asynchronous inference: chunks overlap, are blended, and executing them never waits needlessly."""

import threading
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from pixio_robot.deploy.async_policy import AsyncPolicy
from pixio_robot.deploy.manifest import HistorySpec, Manifest
from pixio_robot.deploy.replay import ReplayPolicy
from pixio_robot.errors import BadInput, RemoteError


def _chunk(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


class BlockingPolicy:
    """Answers when it gets a permit, with a chunk that names the observation's step: 10 * step + index."""

    def __init__(self) -> None:
        self.permits, self.asked, self.resets = threading.Semaphore(0), list[int](), 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        step = int(observation["step"][0])
        self.asked.append(step)
        assert self.permits.acquire(timeout=5)
        return _chunk(*(10 * step + place for place in range(4)))


@pytest.fixture
def blocking() -> BlockingPolicy:
    return BlockingPolicy()


@pytest.fixture
def player(blocking: BlockingPolicy) -> Iterator[AsyncPolicy]:
    with AsyncPolicy(blocking, request_at=0.5) as player:
        yield player
        blocking.permits.release(10)


def _seen(step: int) -> dict[str, np.ndarray]:
    return {"step": np.array([step])}


def _finished(player: AsyncPolicy) -> None:
    assert player._requested is not None
    player._requested[1].exception()


def test_the_next_chunk_is_requested_while_the_present_one_is_executed(
    player: AsyncPolicy, blocking: BlockingPolicy
) -> None:
    blocking.permits.release()
    assert player.act(_seen(0)) == [[0]] and player.act(_seen(1)) == [[1]] and blocking.asked == [0]
    assert player.act(_seen(2)) == [[2]]  # two of four are left: asked, not waited for
    blocking.permits.release()
    _finished(player)
    mixed = player.act(_seen(3))  # its plan for step 3 is mixed in
    assert blocking.asked == [0, 2] and mixed[0, 0] == pytest.approx(0.3 * 3 + 0.7 * 21)
    assert player.act(_seen(4)) == [[22]]


def test_an_observation_may_be_overwritten_after_act(player: AsyncPolicy, blocking: BlockingPolicy) -> None:
    blocking.permits.release()
    for step in range(3):
        seen = _seen(step)
        player.act(seen)
        seen["step"][0] = 77
    blocking.permits.release()
    _finished(player)
    assert blocking.asked == [0, 2]


def test_a_late_chunk_is_waited_for_and_one_from_before_a_reset_is_dropped(
    player: AsyncPolicy, blocking: BlockingPolicy
) -> None:
    blocking.permits.release()
    for step in range(4):
        player.act(_seen(step))
    threading.Timer(0.1, blocking.permits.release).start()
    assert player.act(_seen(4)) == [[22]]  # none was left
    assert blocking.asked[:2] == [0, 2]
    blocking.permits.release(2)
    player.reset()
    assert blocking.resets == 1 and len(player.queue) == 0
    assert player.act(_seen(9)) == [[90]]


def test_waiting_for_a_chunk_times_out(blocking: BlockingPolicy) -> None:
    with AsyncPolicy(blocking, timeout=0.05) as player:
        with pytest.raises(RemoteError, match=r"no chunk came within 0\.05 s"):
            player.act(_seen(0))
        blocking.permits.release()
        _finished(player)
        assert player.act(_seen(1)) == [[0]] and blocking.asked == [0]  # it came in the end


def test_a_reset_times_out(blocking: BlockingPolicy) -> None:
    with AsyncPolicy(blocking, timeout=0.05) as player:
        player._request(_seen(0))
        with pytest.raises(RemoteError, match=r"still being computed after 0\.05 s"):
            player.reset()
        blocking.permits.release()
        _finished(player)
        player.reset()
        assert blocking.resets == 1


def test_an_error_of_the_policy_is_raised() -> None:
    class Failing(ReplayPolicy):
        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            raise RemoteError("gone")

    with AsyncPolicy(Failing(np.zeros((2, 1)))) as player, pytest.raises(RemoteError, match="gone"):
        player.act({})


def test_chunks_of_one_are_executed_step_by_step() -> None:
    with AsyncPolicy(ReplayPolicy(np.arange(5.0)[:, None]), request_at=0) as player:
        assert [float(player.act({})[0, 0]) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_a_policy_that_needs_every_frame_is_refused() -> None:
    policy = ReplayPolicy(np.zeros((2, 1)))
    policy.manifest = Manifest("policy", "onnx", "fp32", "", [], [], [HistorySpec("tokens", 3, (8, 4))])  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"observes 3 frames.*observation\.steps=1"):
        AsyncPolicy(policy)
    policy.manifest.memory = [HistorySpec("memory.hidden", 2, (16,))]  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="remembers every observation"):
        AsyncPolicy(policy)
    with pytest.raises(BadInput, match="share of a chunk that is left"):
        AsyncPolicy(ReplayPolicy(np.zeros((2, 1))), request_at=1.5)
