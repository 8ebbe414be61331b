"""The control loop on the toy task: an RGB-D policy succeeds, faults are handled, recordings train the next policy."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pixio_robot import cli
from pixio_robot.cameras.frame import Frame
from pixio_robot.datasets.dataset import camera_keys
from pixio_robot.datasets.robomimic import RobomimicDataset
from pixio_robot.deploy.load import LoadedSource
from pixio_robot.deploy.manifest import Manifest, TensorSpec
from pixio_robot.envs.registry import TaskSpec, installed
from pixio_robot.errors import (
    BadInput,
    DataError,
    EmergencyStopped,
    EndOfStream,
    RemoteError,
    RobotError,
    UnknownName,
)
from pixio_robot.metrics import read_episodes
from pixio_robot.policies.evaluate import task_of
from pixio_robot.robots.clock import Rate, SteppedClock
from pixio_robot.robots.commands import Run, drive_robot
from pixio_robot.robots.emergency import EmergencyStop
from pixio_robot.robots.frame_source import FrameSources, SteppedFrameSource
from pixio_robot.robots.inference import InferenceInStep, InferenceRequest, InferenceThread
from pixio_robot.robots.limits import Limits
from pixio_robot.robots.loop import ControlLoop, LoopTiming, Watchdog
from pixio_robot.robots.recording import EpisodeRecording
from pixio_robot.robots.robot import RobotRequest
from pixio_robot.robots.safety import SafeRobot
from pixio_robot.robots.session import RunReport
from pixio_robot.robots.simulated import TaskRobot
from pixio_robot.robots.step_record import StepRecord
from pixio_robot.robots.timeline import read_ticks

SIDE = 64
MANIFEST = Manifest(
    "policy",
    "onnx",
    "fp32",
    "program.onnx",
    [
        TensorSpec("rgb", (SIDE, SIDE, 3), "uint8"),
        TensorSpec("depth", (SIDE, SIDE), "float32"),
        TensorSpec("proprio", (3,), "float32"),
    ],
    [TensorSpec("action", (1, 3), "float32")],
    image_size=SIDE,
    control_period=0.05,
    action_low=[-1.0] * 3,
    action_high=[1.0] * 3,
)
FOCAL = SIDE / 2 / np.tan(np.radians(45) / 2)  # of the toy's camera "top", 1 m over its origin


class Reacher:
    """Finds the red ball from above, in colour and depth, and moves the hand there."""

    def __init__(self, chunk: int = 1, seconds: float = 0.0) -> None:
        self.chunk, self.seconds, self.calls = chunk, seconds, 0
        self.reset()

    def reset(self) -> None:
        self.ball = np.array([0.0, 0.0, 0.2])

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        time.sleep(self.seconds)
        self.calls += 1
        rgb, depth = observation["rgb"].astype(int), observation["depth"]
        red = (rgb[..., 0] > 90) & (rgb[..., 0] > 2 * rgb[..., 1]) & (depth > 0)
        if red.sum() > 3:
            rows, columns = np.nonzero(red)
            far = float(np.median(depth[red])) + 0.02
            centre = (SIDE - 1) / 2
            x, y = (columns.mean() - centre) / FOCAL * far, -(rows.mean() - centre) / FOCAL * far
            self.ball = np.array([x, y, 1 - far])
        way, hand, actions = [], observation["proprio"].astype(float), []
        for _ in range(self.chunk):
            actions.append(np.clip(0.7 * (self.ball - hand) / 0.02, -1, 1))
            hand = hand + 0.02 * actions[-1]
            way.append(hand)
        return np.array(actions, np.float32)


def _run(out: Path, policy: Any = None, manifest: Manifest = MANIFEST, **settings: Any) -> RunReport:
    known: dict[str, Any] = dict(robot="task:toy/reach@top", bundle="reacher", time="stepped", steps=30, out=str(out))
    known |= dict(estop=str(out / "estop.json"), depth_sensor="exact")
    return drive_robot(Run(**{**known, **settings}), LoadedSource(manifest, policy or Reacher(), "policy"))


@contextmanager
def _loop(
    policy: Any, tmp_path: Path, kind: Any = InferenceInStep, watchdog: Watchdog = Watchdog()
) -> Iterator[ControlLoop]:
    """Yield a loop on the toy in stepped time."""
    with TaskRobot("toy/reach@top", RobotRequest(stepped=True, image_size=SIDE, depth_sensor="exact")) as robot:
        safe = SafeRobot(robot, Limits.of(robot.spec.commands), 0.05, EmergencyStop(tmp_path / "estop.json"))
        inference = kind(policy, robot.clock) if kind is InferenceInStep else kind(policy)
        timing = LoopTiming(Rate(robot.clock, 0.05), 1, watchdog, stepped=True)
        with FrameSources({"rgb": SteppedFrameSource(robot.camera(), robot.clock)}, robot.clock) as sources:
            yield ControlLoop(safe, sources, inference, MANIFEST, timing)
        inference.close()


def _ticks(out: Path, episode: int) -> list[dict[str, Any]]:
    return [tick for tick in read_ticks(out / "ticks.jsonl") if tick["episode"] == episode]


def test_an_rgbd_policy_succeeds_and_its_recording_trains_another(tmp_path: Path) -> None:
    report = _run(tmp_path / "run", episodes=2)
    assert sum(row.success_last for row in report.rows) == 2 and report.endings["success"] == 2
    assert report.demos is not None
    demos = RobomimicDataset(report.demos)
    assert task_of(demos.provenance, "the recording") == replace(
        TaskSpec("toy/reach", ("rgb", "depth", "proprio"), ("top",), SIDE, "fast", 30), depth_sensor="exact"
    )
    assert demos.split("train").tolist() == [0, 1] and demos.lengths.tolist() == [30] * 2
    with h5py.File(report.demos) as file:
        demo = file["data/demo_0"]
        assert demo["obs/top_image"].shape == (30, SIDE, SIDE, 3) and demo["obs/top_depth"].dtype == np.float32
        assert {"asked", "time", "late", "age", "seconds", "held"} <= set(demo["run"])
        np.testing.assert_allclose(np.diff(demo["run/time"][:]), 0.05, atol=1e-9)
        sent, proprio = demo["actions"][:], demo["obs/proprio"][:]
        assert json.loads(demo.attrs["camera_info"])["top"]["intrinsics"][0][0] == pytest.approx(FOCAL)
    # the recorded episode, replayed in the environment, is the same episode
    env = task_of(demos.provenance, "the recording").make()
    observation, info = env.reset(seed=demos.provenance["seeds"][0])
    assert info["initial_state_hash"] == demos.initial_states[0]
    for action, expected in zip(sent, proprio, strict=True):
        assert np.array_equal(observation["proprio"], expected)
        observation, *_, info = env.step(action)
    env.close()
    assert info["success"]
    # it trains a policy that runs in its place
    words = [f"demos={report.demos}", "training.epochs=1", "device=cpu", "observation.depth=late", "out=next"]
    assert cli.run(["train_bc", "encoder=cnn", *words]) == 0
    words = ["robot=task:toy/reach@top", "checkpoint=next/checkpoints/cnn/last.safetensors", "depth_sensor=exact"]
    assert cli.run(["run", *words, "time=stepped", "steps=5", "out=again"]) == 0
    assert len(read_episodes(Path("again/episodes.jsonl"))) == 1
    page = (tmp_path / "run/report.html").read_text()
    assert "Timeline" in page and "100%" in page and "data:image/png" in page


def test_injected_faults_lead_to_the_documented_handling(tmp_path: Path) -> None:
    faults = ["stall@0:0.3:0.4", "stall@1:0.3:3", "nan@2:0.3", "late@3:0.3:0.3", "late@4:0.3:3", "estop@5:0.5"]
    report = _run(tmp_path, episodes=8, steps=40, faults=faults)
    rows = json.loads((tmp_path / "result.json").read_text())["tables"]["Injected faults"]
    led = [row["led to"] for row in rows]
    assert "the policy resumed after 0.4" in led[0] and "no_action" in led[0]
    assert "watchdog" in led[1] and "stopped" in led[1]
    assert "nan in 1 ticks" in led[2] and "resumed after 0.05" in led[2]
    assert "resumed after 0.3" in led[3] and "watchdog" in led[4] and "estop" in led[5]
    assert report.endings == {"success": 3, "watchdog": 2, "estop": 1} and report.stopped
    stalled = _ticks(tmp_path, 1)
    assert stalled[-1]["events"][-1] == "watchdog" and stalled[-1]["latest_age"] > 1.0
    assert stalled[-1]["at"] == pytest.approx(1.35, abs=0.11), "1 s after the last good action"
    held = [tick for tick in stalled if tick["state"] == "hold"]
    assert len(held) == 21 and all(np.abs(tick["sent"]).max() < 1e-6 for tick in held)
    spoilt = next(tick for tick in _ticks(tmp_path, 2) if "nan" in tick["reasons"])
    assert spoilt["asked"] is None and np.abs(spoilt["sent"]).max() < 1e-6
    assert _ticks(tmp_path, 5)[-1]["reasons"] == ["estop"] and _ticks(tmp_path, 5)[-1]["sent"] is None
    # good is what succeeded without long pauses: only the NaN's episode
    assert report.demos is not None and RobomimicDataset(report.demos).split("train").tolist() == [0]
    assert len(RobomimicDataset(report.demos).names) == 6
    # latched: nothing runs until it is reset; then the rest runs, what is there stays
    with pytest.raises(EmergencyStopped, match="estop_reset=true"):
        _run(tmp_path, episodes=8, steps=40, faults=faults)
    before = (tmp_path / "episodes.jsonl").read_text()
    report = _run(tmp_path, episodes=8, steps=40, faults=faults, estop_reset=True)
    assert len(report.rows) == 8 and not report.stopped
    assert (tmp_path / "episodes.jsonl").read_text().startswith(before)
    assert not (tmp_path / "estop.json").exists()


def test_chunks_are_executed_and_requested_when_needed(tmp_path: Path) -> None:
    single, chunked = Reacher(), Reacher(chunk=5)
    _run(tmp_path / "single", single, episodes=1)
    report = _run(tmp_path / "chunked", chunked, replace(MANIFEST, horizon=5), episodes=1)
    assert report.rows[0].success_last and single.calls == 30
    assert chunked.calls == 6
    asked = [tick["asked"] for tick in _ticks(tmp_path / "chunked", 0)]
    assert all(each is not None for each in asked)
    executed = Reacher(chunk=5)
    _run(tmp_path / "some", executed, replace(MANIFEST, horizon=5), episodes=1, n_action_steps=2)
    assert executed.calls == 15
    merged = Reacher(chunk=4)
    report = _run(tmp_path / "merged", merged, replace(MANIFEST, horizon=4), episodes=1, chunk_blend=0.7)
    assert report.rows[0].success_last and merged.calls == 15, "asked when half is left"


def test_a_chunk_is_not_executed_to_its_end_when_the_camera_is_gone(tmp_path: Path) -> None:
    faults = ["stall@0:0.3:10"]
    report = _run(tmp_path, Reacher(chunk=50), replace(MANIFEST, horizon=50), episodes=1, steps=48, faults=faults)
    assert report.endings == {"watchdog": 1}
    ran = [tick for tick in _ticks(tmp_path, 0) if tick["state"] == "run"]
    assert max(tick["latest_age"] for tick in ran) <= 0.25 and len(ran) < 14
    assert "stale" in _ticks(tmp_path, 0)[-1]["events"]


@pytest.mark.parametrize("kind", [InferenceInStep, InferenceThread])
def test_a_late_first_observation_of_an_episode_resets_the_policy(
    kind: type[InferenceInStep | InferenceThread], tmp_path: Path
) -> None:
    class Resets(Reacher):
        resets = 0

        def reset(self) -> None:
            self.resets += 1
            super().reset()

    policy = Resets()
    with _loop(policy, tmp_path, kind) as loop:
        loop.run(0, 3, 2)
        loop.sources["rgb"].stall(5.5)  # longer than is waited for a first frame
        loop.run(1, 4, 20)
    assert policy.resets == 3, "when it was made, and once an episode"


def test_an_episode_does_not_start_while_inference_of_the_last_one_runs(tmp_path: Path) -> None:
    with _loop(Reacher(seconds=0.3), tmp_path, InferenceThread, Watchdog(startup_timeout=0.05)) as loop:
        loop.inference.submit(InferenceRequest({}, 0, 0.0, True))
        with pytest.raises(RobotError, match="still computing"):
            loop.run(0, 3, 2)


@pytest.mark.parametrize("error", [RemoteError("no answer"), ValueError("out of memory")])
def test_steps_before_an_error_are_recorded(error: Exception, tmp_path: Path) -> None:
    class Breaking(Reacher):
        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            if self.calls == 7:
                self.calls += 1
                raise error
            return super().act(observation)

    remote = isinstance(error, RemoteError)
    if remote:  # the next episode connects again
        endings = _run(tmp_path, Breaking(), episodes=3, steps=5).endings
        assert endings["remote"] == 1 and endings.total() == 3
    else:
        with pytest.raises(ValueError, match="out of memory"):
            _run(tmp_path, Breaking(), episodes=3, steps=5)
        assert "out of memory" in (tmp_path / "report.html").read_text()
        assert "1 error" in json.loads((tmp_path / "result.json").read_text())["facts"]["ended by"]
    demos = RobomimicDataset(tmp_path / "demos.hdf5")
    broken = demos.provenance["seeds"].index(20_001)
    assert broken not in demos.split("train") and demos.lengths[broken] == 2 + remote
    with h5py.File(demos.path) as file:
        events = json.loads(file[f"data/{demos.names[broken]}"].attrs["events"])
    assert any(event["what"] == ("remote" if remote else "error: out of memory") for event in events)
    again = _run(tmp_path, episodes=3, steps=5)  # the episode that an error ended is run again
    assert again.endings.total() == (0 if remote else 2) and len(RobomimicDataset(tmp_path / "demos.hdf5").names) == 3


def test_an_incomplete_line_of_ticks_is_ignored(tmp_path: Path) -> None:
    _run(tmp_path, episodes=1, steps=3, record=False)
    with (tmp_path / "ticks.jsonl").open("a") as file:
        file.write('{"episode": 0, "num')
    _run(tmp_path, episodes=1, steps=3, record=False)
    assert len(read_ticks(tmp_path / "ticks.jsonl")) == 3 == len((tmp_path / "ticks.jsonl").read_text().splitlines())


def test_a_recording_with_lost_steps_is_in_no_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = EpisodeRecording.add

    def slow(self: EpisodeRecording, moment: StepRecord) -> None:
        self.lost += 1
        add(self, moment)

    monkeypatch.setattr(EpisodeRecording, "add", slow)
    report = _run(tmp_path, episodes=1)
    assert report.endings == {"success": 1} and not len(RobomimicDataset(report.demos or "").split("train"))


def test_limits_change_the_sent_action_and_are_reported(tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text('{"velocity": {"x": 0.1, "y": 0.1, "z": 0.1}}')
    report = _run(tmp_path / "slow", episodes=1, limits=str(limits))
    ticks = _ticks(tmp_path / "slow", 0)
    changed = [tick for tick in ticks if "velocity" in tick["reasons"]]
    assert changed and all(np.abs(tick["sent"]).max() <= 0.25 + 1e-4 for tick in ticks)  # 0.1 m/s of 0.4 m/s
    assert report.summary["ticks in which limits changed the action"] == len(changed)
    with pytest.raises(DataError, match="another out="):
        _run(tmp_path / "slow", episodes=1)


def test_a_policy_or_setting_that_does_not_fit_is_refused_before_anything_moves(tmp_path: Path) -> None:
    four = replace(MANIFEST, action_low=[-1.0] * 4, action_high=[1.0] * 4)
    for manifest, settings, words in (
        (four, {}, "takes 3"),
        (replace(MANIFEST, outputs=[TensorSpec("action", (1, 4), "float32")]), {}, "size 4, .*takes 3"),
        (replace(MANIFEST, control_period=0.03), {}, "a step every 30 ms"),
        (MANIFEST, {"depth": False}, "observes depth"),
        (MANIFEST, {"camera": "task:toy/reach"}, "another simulation"),
        (MANIFEST, {"camera": "robot:front"}, "has camera top, not 'front'"),
        (MANIFEST, {"time": "fast"}, "there are real, stepped"),
        (MANIFEST, {"max_age": float("nan")}, "max_age=nan is not a valid time"),
        (MANIFEST, {"stop_after": float("nan")}, "stop_after=nan is not a valid time"),
        (MANIFEST, {"stop_after": float("inf")}, "stop_after=inf is not a valid time"),
        (MANIFEST, {"max_age": 0.0}, "max_age=0 is not a valid time"),
    ):
        with pytest.raises(BadInput, match=words):
            _run(tmp_path / "no", manifest=manifest, estop=str(tmp_path / "estop.json"), **settings)
        assert not (tmp_path / "no").exists()
    assert cli.run(["run", "robot=task:toy/reach"]) == 1
    with pytest.raises(DataError, match="no limits at"):
        _run(tmp_path / "no", limits="absent.json")


def test_commands_between_policy_steps_are_interpolated(tmp_path: Path) -> None:
    """A policy of 10 steps a second on a robot of 20: two commands a step, and one row a step in the recording."""
    report = _run(tmp_path, manifest=replace(MANIFEST, control_period=0.1), episodes=1, steps=12)
    ticks = _ticks(tmp_path, 0)
    assert [tick["number"] for tick in ticks[:4]] == [0, 0, 1, 1]
    for one, two in zip(ticks[::2], ticks[1::2], strict=False):
        if one["asked"] is not None:
            np.testing.assert_allclose(one["sent"], np.array(one["asked"]) / 2, atol=1e-6)
            np.testing.assert_allclose(np.add(one["sent"], two["sent"]), one["asked"], atol=1e-6)
    assert report.demos is not None
    demos = RobomimicDataset(report.demos)
    assert demos.lengths[0] * 2 == len(ticks) and demos.provenance["robot"]["control_hz"] == pytest.approx(10)


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    class Interrupting(Reacher):
        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            if self.calls == 40:
                os.kill(os.getpid(), signal.SIGINT)
            return super().act(observation)

    report = _run(tmp_path, Interrupting(), episodes=3)
    assert report.interrupted and len(report.rows) == 1 and report.demos is not None
    report = _run(tmp_path, episodes=3)
    assert not report.interrupted and len(report.rows) == 3 and len(RobomimicDataset(report.demos or "").names) == 3
    ticks = read_ticks(tmp_path / "ticks.jsonl")
    assert [sum(tick["episode"] == number for tick in ticks) for number in range(3)] == [30, 30, 30]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["metaworld", "dmc", "adroit", "trifinger"])
def test_a_task_of_each_suite_can_be_driven(suite: str, tmp_path: Path) -> None:
    if not (tasks := [name for name in installed() if name.startswith(f"{suite}/")]):
        pytest.skip(f"{suite} is not installed")
    with TaskRobot(tasks[0], RobotRequest(stepped=True, image_size=SIDE)) as robot:
        spec = robot.spec
        width, rate = len(spec.commands.names), spec.control_hz or 1
        features = robot.observation_features
        assert {key: value.shape for key, value in robot.get_observation().items()} == features

    class Idle:
        def reset(self) -> None:
            pass

        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.full((1, width), 0.01, np.float32)

    ports = [TensorSpec("rgb", (SIDE, SIDE, 3), "uint8"), TensorSpec("proprio", (spec.proprio,), "float32")]
    manifest = replace(
        MANIFEST, observation=ports, control_period=1 / rate, action_low=[-1.0] * width, action_high=[1.0] * width
    )
    report = _run(tmp_path, Idle(), manifest, robot=f"task:{tasks[0]}", steps=4, depth_sensor="d435")
    assert report.rows[0].length == 4 and report.demos is not None
    ticks = _ticks(tmp_path, 0)
    assert all(tick["state"] == "run" and not tick["reasons"] for tick in ticks)


def test_an_error_in_the_policy_stops_the_robot(tmp_path: Path) -> None:
    class Broken(Reacher):
        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            if self.calls == 5:
                raise ValueError("out of memory")
            return super().act(observation)

    stops: list[int] = []
    seen: list[StepRecord] = []
    with _loop(Broken(), tmp_path) as loop:
        loop.robot.robot.stop = lambda: stops.append(1)  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="out of memory"):
            loop.run(0, 3, 50, seen.append)
        assert len(seen) == 5 and len(stops) == 1
        loop.robot.robot.reset = lambda seed: 1 // 0  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            loop.run(1, 3, 2)
        assert len(stops) == 2, "it stands still too when a reset goes wrong half way"
    stops.clear()
    with _loop(Reacher(), tmp_path) as loop:
        loop.robot.robot.stop = lambda: stops.append(1)  # type: ignore[method-assign]
        assert loop.run(0, 3, 2)[1].why == "end" and stops


def test_slow_inference_does_not_delay_ticks_in_real_time(tmp_path: Path) -> None:
    """Laws that hold on a busy machine too: inference longer than a period delays no tick by its length."""
    report = _run(tmp_path, Reacher(seconds=0.12), time="real", episodes=1, steps=30, faults=["estop@0:1.2"])
    ticks = _ticks(tmp_path, 0)
    assert report.endings == {"estop": 1} and ticks[-1]["reasons"] == ["estop"]
    times = np.array([tick["at"] for tick in ticks])
    assert np.median(np.diff(times)) < 0.115, "less than inference takes"
    ran = [tick for tick in ticks if tick["state"] == "run"]
    assert 2 <= len(ran) < len(ticks) - 2, "it acts when there is an action and holds in between"
    assert all(tick["age"] > 0.12 for tick in ran[1:]), "what was computed from it took that long"


def test_a_recording_plays_at_its_own_speed_in_real_time(tmp_path: Path) -> None:
    seen = ["camera=task:toy/reach@top", "width=64", "height=64", "frames=40", f"out={tmp_path / 'seen'}"]
    assert cli.run(["record", *seen]) == 0
    out = tmp_path / "run"
    _run(out, camera=str(tmp_path / "seen"), time="real", episodes=1, steps=20)
    assert sum(tick["state"] == "run" for tick in _ticks(out, 0)) >= 5, "not all its frames at once, at the first"


def test_frames_of_a_recording_age_by_the_robots_clock_in_stepped_time(tmp_path: Path) -> None:
    seen = ["camera=task:toy/reach@top", "width=64", "height=64", "frames=12", f"out={tmp_path / 'seen'}"]
    assert cli.run(["record", *seen]) == 0
    _run(tmp_path / "run", camera=str(tmp_path / "seen"), episodes=1, steps=8)
    assert all(0 <= tick["age"] < 0.2 for tick in _ticks(tmp_path / "run", 0))
    with pytest.raises(EndOfStream, match="before the episode's end; record more"):
        _run(tmp_path / "long", camera=str(tmp_path / "seen"), episodes=1, steps=30)


def test_missed_deadlines_and_dropped_actions_are_counted(tmp_path: Path) -> None:
    policy = Reacher(chunk=4, seconds=0.12)
    report = _run(
        tmp_path, policy, replace(MANIFEST, horizon=4), time="real", episodes=1, steps=25, faults=["late@0:0.4:0.3"]
    )
    numbers = json.loads((tmp_path / "result.json").read_text())["numbers"]
    late = [tick["late"] for tick in _ticks(tmp_path, 0)]
    assert numbers["deadlines missed"] == sum(each > 0.005 for each in late)
    assert numbers["resyncs"] == sum(each >= 0.05 for each in late)
    assert numbers["actions dropped"] >= 2, "a chunk that takes more than two periods has a past"
    assert numbers["steps of the robot without a command"] >= 0 and "deadlines missed" in report.summary
    assert "Actions dropped" in (tmp_path / "report.html").read_text()


# several cameras


TWO = replace(
    MANIFEST,
    observation=[
        TensorSpec("rgb", (SIDE, SIDE, 3), "uint8"),
        TensorSpec("depth", (SIDE, SIDE), "float32"),
        TensorSpec("rgb_front", (SIDE, SIDE, 3), "uint8"),
        TensorSpec("proprio", (3,), "float32"),
    ],
)


class TwoCameras(Reacher):
    """A `Reacher` that keeps the second camera's image of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.front: list[np.ndarray] = []

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        assert set(observation) == {"rgb", "depth", "rgb_front", "proprio"}
        self.front.append(observation["rgb_front"].copy())
        return super().act(observation)


def test_a_policy_of_two_cameras_is_driven_and_both_cameras_are_recorded(tmp_path: Path) -> None:
    policy = TwoCameras()
    report = _run(tmp_path / "run", policy, TWO, episodes=1)
    assert report.endings == {"success": 1} and report.demos is not None
    demos = RobomimicDataset(report.demos)
    assert demos.provenance["cameras"] == ["top", "front"] and camera_keys(demos, ["top", "front"]) == (
        "rgb",
        "rgb_front",
    )
    with h5py.File(report.demos) as file:
        demo = file["data/demo_0"]
        images = {name: demo[f"obs/{name}_image"][:] for name in ("top", "front")}
        assert {"top_depth", "front_depth"} <= set(demo["obs"])
        assert set(json.loads(demo.attrs["camera_info"])) == {"top", "front"}
        sent, proprio = demo["actions"][:], demo["obs/proprio"][:]
    assert np.array_equal(images["front"], np.stack(policy.front)), "what the policy observed is what is recorded"
    assert not np.array_equal(images["front"], images["top"])
    env = task_of(demos.provenance, "the recording").make()
    observation, _ = env.reset(seed=demos.provenance["seeds"][0])
    for step, action in enumerate(sent):
        assert np.array_equal(observation["rgb_front"], images["front"][step])
        assert np.array_equal(observation["proprio"], proprio[step])
        observation, *_ = env.step(action)
    env.close()


@pytest.mark.parametrize("fault", ["stall.rgb_front@0:0.3:0.4", "stall.rgb@0:0.3:0.4"])
def test_while_one_of_two_cameras_stalls_the_robot_holds(fault: str, tmp_path: Path) -> None:
    """The ticks are those of a policy of one camera whose camera stalls."""
    _run(tmp_path / "two", TwoCameras(), TWO, episodes=1, faults=[fault])
    _run(tmp_path / "one", episodes=1, faults=["stall@0:0.3:0.4"])
    two, one = (
        [
            (tick["at"], tick["state"], tick["reasons"], tick["age"], tick["latest_age"])
            for tick in _ticks(tmp_path / name, 0)
        ]
        for name in ("two", "one")
    )
    assert two == one and sum(state == "hold" for _, state, *_ in two) >= 7
    rows = json.loads((tmp_path / "two/result.json").read_text())["tables"]["Injected faults"]
    assert "the policy resumed after 0.4" in rows[0]["led to"]


def test_the_watchdog_stops_when_one_of_two_cameras_is_gone(tmp_path: Path) -> None:
    report = _run(tmp_path, TwoCameras(), TWO, episodes=1, steps=40, faults=["stall.rgb_front@0:0.3:9"])
    assert report.endings == {"watchdog": 1}
    last = _ticks(tmp_path, 0)[-1]
    assert last["events"][-1] == "watchdog" and last["latest_age"] > 1.0, "the oldest frame counts"


def test_a_chunk_is_not_executed_to_its_end_while_one_of_two_cameras_is_gone(tmp_path: Path) -> None:
    policy = TwoCameras()
    faults = ["stall.rgb_front@0:0.3:10"]
    report = _run(tmp_path, policy, replace(TWO, horizon=50), episodes=1, steps=48, faults=faults)
    assert report.endings == {"watchdog": 1}
    ran = [tick for tick in _ticks(tmp_path, 0) if tick["state"] == "run"]
    assert max(tick["latest_age"] for tick in ran) <= 0.25 and len(ran) < 14


def test_two_cameras_of_a_robot_in_real_time(tmp_path: Path) -> None:
    report = _run(tmp_path, TwoCameras(), TWO, time="real", episodes=1, steps=20)
    assert report.endings.total() == 1 and sum(tick["state"] == "run" for tick in _ticks(tmp_path, 0)) >= 5


def test_cameras_that_do_not_fit_the_policy_are_refused(tmp_path: Path) -> None:
    for manifest, settings, error, words in (
        (TWO, {"camera": "recording"}, BadInput, r"give cameras=\{rgb_front: SOURCE\}"),
        (TWO, {"cameras": {"rgb_wrist": "opencv:0"}}, UnknownName, "names 'rgb_wrist'.*: rgb, rgb_front"),
        (TWO, {"cameras": ["opencv:0"]}, BadInput, "is not {CAMERA: SOURCE}"),
        (TWO, {"cameras": {"rgb_front": "task:toy/reach"}}, BadInput, "another simulation"),
        (TWO, {"cameras": {"rgb_front": "robot:side"}}, UnknownName, "no camera .*side"),
        (TWO, {"faults": ["stall.rgb_side@0:1"]}, UnknownName, "no camera 'rgb_side' to stall.*rgb, rgb_front"),
        (replace(TWO, observation=[TensorSpec("state", (3,), "float32")]), {}, BadInput, "observes 'state'"),
    ):
        with pytest.raises(error, match=words):
            _run(tmp_path / "no", TwoCameras(), manifest, estop=str(tmp_path / "estop.json"), **settings)
        assert not (tmp_path / "no").exists()


def test_a_further_camera_is_named_on_the_command_line(
    toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["robot=task:toy/reach", f"checkpoint={toy_checkpoint}", "cameras={rgb_wrist: opencv:0}"]
    assert cli.run(["run", *words]) == 1
    assert "cameras= names 'rgb_wrist', which the policy does not observe" in capsys.readouterr().err


class _Listed:
    """A camera whose frames arrive at given times of a clock."""

    def __init__(self, clock: SteppedClock, times: list[float]) -> None:
        self._clock, self._times, self._count = clock, list(times), 0

    def open(self) -> None:
        pass

    def fresh(self, timeout: float) -> Frame | None:
        end = self._clock.now() + timeout
        while self._times and self._times[0] <= end:
            self._clock.sleep_until(self._times[0])
            arrival, self._count = self._times.pop(0), self._count + 1
            if not self._times or self._times[0] > self._clock.now():
                return Frame(None, None, None, None, arrival_time=arrival, sequence=self._count)
        self._clock.sleep_until(end)
        return None

    def close(self) -> None:
        pass


def test_frames_of_several_cameras_are_as_old_as_the_oldest() -> None:
    clock = SteppedClock()
    sources = FrameSources(
        {"rgb": _Listed(clock, [0.01, 0.11, 0.21]), "rgb_wrist": _Listed(clock, [0.04, 0.34])}, clock
    )
    first = sources.fresh(0.1, since=0.0)
    assert first is not None and first.arrival_time == 0.01 and first.age(0.06) == pytest.approx(0.05)
    assert sources.fresh(0.1, since=0.05) is None and sources.missing == ["rgb_wrist"]
    second = sources.fresh(0.3, since=0.15)  # the first camera's frame of 0.11 is replaced
    assert second is not None and [each.arrival_time for each in second.values()] == [0.21, 0.34]
    assert second.is_new_after(first) and not second.is_new_after(second)


def test_frames_from_before_an_episode_are_not_used() -> None:
    clock = SteppedClock()
    sources = FrameSources({"rgb": _Listed(clock, [0.2]), "rgb_wrist": _Listed(clock, [0.01, 0.3])}, clock)
    assert sources.fresh(0.05, since=0.1, strict=True) is None and sources.missing == ["rgb", "rgb_wrist"]
    found = sources.fresh(0.4, since=0.1, strict=True)
    assert found is not None and min(each.arrival_time for each in found.values()) == 0.2
