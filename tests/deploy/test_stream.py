"""A policy on a camera acts as it does in its environment, on whatever frames come, and never on an old one."""

import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.cameras.camera import Camera, CameraRequest, CameraSpec
from pixio_robot.cameras.capture import Capture
from pixio_robot.cameras.frame import Frame, rgbd_frame
from pixio_robot.cameras.registry import find_camera
from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.deploy.stream import PolicyInput, StreamStep, StreamTiming, percentiles, stream
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import BadInput
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import CloningSetup, prepare_cloning
from pixio_robot.policies.loaded import LoadedPolicy, load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings
from pixio_robot.policies.train import TrainPlan, train_policy

CPU = torch.device("cpu")


def _train(demos: EpisodeDataset, tiny: Backbone, out: Path, proprio: bool) -> Path:
    design = PolicyDesign(tiny.name, MlpConfig(layers=[32]), ObservationSettings(proprio=proprio))
    prepared = prepare_cloning(demos, design, tiny, CloningSetup(cache=out / "cache"))
    training = TrainingSettings(batch=32, epochs=2)
    return train_policy(prepared.model, prepared.data, training, TrainPlan(out, "mlp", seed=0)).last


@pytest.fixture
def loaded(toy_checkpoint: Path) -> LoadedPolicy:
    return load_policy(toy_checkpoint)


def test_a_task_camera_gives_what_the_environment_gives(loaded: LoadedPolicy, toy_request: TaskSpec) -> None:
    """Same images, bit for bit, same actions, and through them the same episode."""
    env, agent = replace(toy_request, observe=("rgb", "proprio"), horizon=None).make(), Agent(loaded, CPU)
    observation, _ = env.reset(seed=42)
    expected, images, reset_mask = [], [], np.ones(1, bool)
    for _ in range(6):
        images.append(observation["rgb"])
        batch = {key: value[None] for key, value in observation.items()}
        expected.append(agent.act(batch, reset_mask, np.ones(1, bool))[0])
        observation, *_ = env.step(expected[-1])
        reset_mask = np.zeros(1, bool)
    env.close()
    request = CameraRequest(width=toy_request.image_size, render="fast", seed=42)
    seen: list[np.ndarray] = []
    with find_camera("task:toy/reach", request) as camera:
        steps = []
        for step, _ in zip(stream(loaded, {"rgb": camera}), range(6), strict=False):
            steps.append(step)
            seen.append(camera.observation["rgb"])  # type: ignore[attr-defined]
    assert [step.is_first for step in steps] == [True] + [False] * 5
    for step, action, ours, theirs in zip(steps, expected, seen, images, strict=True):
        assert np.array_equal(ours, theirs) and np.array_equal(step.action, action)


def test_a_recording_replays_to_the_same_actions(toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"checkpoint={toy_checkpoint}", "frames=5", "device=cpu"]
    assert cli.run(["stream", "camera=task:toy/reach", *words, "out=live.jsonl"]) == 0
    assert "frame's age at the action" in capsys.readouterr().out
    acted = [np.array(json.loads(line)["action"]) for line in Path("live.jsonl").read_text().splitlines()]
    assert len(acted) == 5 and all(action.shape == (3,) for action in acted)
    # the expert drives this one, so only its first frame is the same
    assert cli.run(["record", "camera=task:toy/reach", "render=fast", "frames=3", "out=episode"]) == 0
    assert cli.run(["stream", "camera=episode", *words, "out=replayed.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("replayed.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and np.array_equal(rows[0]["action"], acted[0]) and rows[0]["is_first"]
    assert cli.run(["stream", "camera=episode", *words, "real_time=true", "max_age=5"]) == 0
    rows = Path("episode/frames.jsonl").read_text().splitlines()
    late = [{**row, "depth_time": row["depth_time"] + 0.2} for row in map(json.loads, rows)]
    Path("episode/frames.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in late))
    capsys.readouterr()
    assert cli.run(["stream", "camera=episode", *words, "real_time=true", "max_age=5"]) == 1
    assert "gave no frame to act on; of its frames" in (err := capsys.readouterr().err) and "skewed" in err


class _Late(Camera):
    """A live camera that stops after a few frames."""

    def open(self) -> None:
        self.count = 0

    @property
    def spec(self) -> CameraSpec:
        return CameraSpec("late", "test", True, (32, 32), None, 50.0)

    def read(self) -> Frame:
        self.count += 1
        time.sleep(0.02 if self.count < 8 else 0.6)
        image = np.full((32, 32, 3), self.count, np.uint8)
        return replace(
            rgbd_frame(image, None, None, None, self.count / 50, self.count), proprio=np.zeros(3, np.float32)
        )

    def close(self) -> None:
        pass


def test_there_is_no_action_without_a_new_frame(loaded: LoadedPolicy) -> None:
    with Capture(_Late()) as camera:
        steps = list(islice(stream(loaded, {"rgb": camera}, timing=StreamTiming(0.08, 25.0)), 14))
        assert camera.counters().stale == sum(each.action is None for each in steps) > 2
    acted = [each for each in steps if each.action is not None]
    assert len(acted) >= 3 and all(each.sequence is not None for each in acted)
    table = percentiles(steps)
    assert 0 < table["act"]["p50"] <= table["act"]["p95"] <= table["act"]["p99"]
    assert table["age"]["p50"] >= table["act"]["p50"], "the age counts what preparing and acting took"
    assert percentiles([StreamStep(None, None)])["age"]["p99"] == 0


def test_without_a_rate_new_frames_set_the_pace(loaded: LoadedPolicy) -> None:
    with Capture(_Late()) as camera:
        began = time.monotonic()
        steps = list(islice(stream(loaded, {"rgb": camera}, timing=StreamTiming(0.08)), 10))
        took = time.monotonic() - began
    acted = [each.sequence for each in steps if each.action is not None]
    assert len(acted) == len(set(acted)) >= 3, "no frame is acted on twice"
    stale = len(steps) - len(acted)
    assert stale >= 2 and took > 0.08 * (stale - 1), "a camera that stands still is waited for"


def test_what_a_camera_cannot_give_is_said(loaded: LoadedPolicy) -> None:
    image = rgbd_frame(np.zeros((24, 32, 3), np.uint8), None, None)
    with pytest.raises(BadInput, match="observes 3 numbers of proprioception, the camera provides 0"):
        PolicyInput(loaded).observation({"rgb": image})
    seen = PolicyInput(loaded, zeros=True).observation({"rgb": image})
    assert seen["rgb"].shape == (256, 256, 3) and not seen["proprio"].any()
    with pytest.raises(BadInput, match="no colour"):
        PolicyInput(loaded, zeros=True).observation({"rgb": rgbd_frame(None, np.ones((4, 4), np.float32), None)})
    loaded.spec.observation["rgb_top"] = loaded.spec.observation["rgb"]
    with pytest.raises(BadInput, match=r"observes rgb_top; name its camera: cameras=\{rgb_top: \.\.\.\}"):
        next(stream(loaded, {"rgb": find_camera("task:toy/reach")}))


def test_the_real_recording_drives_a_policy(
    toy_demos: EpisodeDataset, tiny: Backbone, tmp_path: Path, real_recording: str
) -> None:
    checkpoint = _train(toy_demos, tiny, tmp_path / "training", proprio=False)
    words = [f"camera={real_recording}", f"checkpoint={checkpoint}", "device=cpu", "out=actions.jsonl"]
    assert cli.run(["stream", *words]) == 0
    rows = [json.loads(line) for line in Path("actions.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and np.isfinite(rows[0]["action"]).all() and np.abs(rows[0]["action"]).max() <= 1
