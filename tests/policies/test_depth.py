"""Depth as policy input: codes that keep order and invalidity, policies that learn from it with the same commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.cameras.registry import find_camera
from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.deploy.export.program import program_of
from pixio_robot.deploy.stream import PolicyInput, stream
from pixio_robot.depth.encoding import depth_code, depth_images, small_depth
from pixio_robot.errors import BadInput, CheckpointError, DataError, UnknownName
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.build import PolicyDesign, observed_cameras
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings

CPU = torch.device("cpu")
FAST = ["policy.layers=[32]", "training.batch=64", "device=cpu"]


@pytest.mark.parametrize("code", ["inverse", "log", "metres"])
def test_codes_keep_the_order_and_the_range(code: str) -> None:
    depth = np.linspace(0.25, 4.0, 500, dtype=np.float32)
    values = depth_code(depth, code)
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-6) and (np.diff(values) < 0).all()
    assert depth_code(np.array([0.1, 9.0, 0.0], np.float32), code).tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_stereo_cameras_steps_are_even_in_inverse_depth() -> None:
    disparity = np.arange(5, 60, 1 / 32)
    steps = np.diff(depth_code((19.5 / disparity).astype(np.float32), "inverse", 0.325, 3.9))
    assert steps.max() / steps.min() < 1.01
    others = [
        np.diff(depth_code((19.5 / disparity).astype(np.float32), code, 0.325, 3.9)) for code in ("log", "metres")
    ]
    assert all(each.max() / each.min() > 5 for each in others)


@pytest.mark.parametrize("code", ["inverse", "log", "metres", "colours"])
def test_invalid_depth_looks_like_no_distance(code: str) -> None:
    depth = np.concatenate([[0], np.linspace(0.05, 20, 255)]).astype(np.float32).reshape(1, 16, 16)
    images = depth_images(depth, code)
    assert images.shape == (1, 16, 16, 3) and images.dtype == np.uint8
    assert not images[0, 0, 0].any() and images[depth > 0].any(-1).all()
    assert np.array_equal(images, depth_images(depth[..., None], code)), "as recorded, with a channel"
    if code != "colours":
        assert (images == images[..., :1]).all()


def test_small_depth_keeps_holes() -> None:
    depth = np.full((1, 64, 64), 1.0, np.float32)
    depth[0, :, :32] = 0
    depth[0, ::2, 32:40] = 0
    small = small_depth(depth, (16, 16))
    expected = round(255 * float(depth_code(np.ones(1, np.float32))[0]))
    assert small.shape == (1, 16, 16, 2) and not small[0, :, :8].any()
    assert (small[0, :, 10:, 0] == expected).all() and (small[0, :, 10:, 1] == 255).all()
    assert (small[0, :, 8:10, 0] == expected).all() and np.abs(small[0, :, 8:10, 1].astype(int) - 128).max() <= 1


@pytest.fixture(scope="module")
def rgbd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rgbd") / "reach.hdf5"
    words = ["task=toy/reach", "demos=4", "valid=1", "render=fast", "image_size=64", "episode_steps=25", "obs=rgbd"]
    assert cli.run(["collect", *words, "depth_sensor=d435", f"out={path}", "workers=1"]) == 0
    return path


def _train(rgbd_file: Path, encoder: str, *words: str) -> Path:
    out = Path("run-" + "-".join([encoder.replace("/", "_")[-12:], *words])[-60:].replace("=", "_"))
    command = ["train_bc", f"demos={rgbd_file}", f"encoder={encoder}", *FAST, *words, f"out={out}"]
    assert cli.run(command) == 0
    return next((out / "checkpoints").glob("*/last.safetensors"))


@pytest.mark.parametrize("depth", ["patches", "late", "points", "channels"])
def test_policies_learn_act_and_stream_with_depth(
    depth: str, rgbd_file: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same commands with `observation.depth`: train, evaluate, and a camera; the action depends on depth."""
    words = [f"observation.depth={depth}", "observation.depth_epochs=1", "observation.depth_points=64"]
    checkpoint = _train(rgbd_file, str(tiny_file), *words, "training.epochs=2")
    loaded = load_policy(checkpoint)
    assert loaded.vision.observes_depth and loaded.provenance["environment"]["depth_sensor"] == "d435"
    assert loaded.vision.spec.cameras == (("rgb", "depth") if depth == "channels" else ("rgb",))
    assert loaded.spec.observation.keys() == {"rgb", "depth", "proprio"}
    words = [f"checkpoint={checkpoint}", "episodes=2", "envs=1", "videos=false", "device=cpu"]
    assert cli.run(["evaluate", *words]) == 0, capsys.readouterr().err
    request = CameraRequest(width=64, render="fast", seed=5, depth_sensor="d435")
    with find_camera("task:toy/reach", request) as camera:
        frame = camera.read()
    observation = {key: value[None] for key, value in PolicyInput(loaded).observation({"rgb": frame}).items()}
    actions = []
    for change in (1.0, 1.0, 0.8):
        scaled = {key: observation[key] * np.float32(change) for key in ("depth", "points") if key in observation}
        seen = {**observation, **scaled}
        actions.append(Agent(loaded, CPU).act(seen, np.ones(1, bool), np.ones(1, bool)))
    assert np.array_equal(actions[0], actions[1]) and not np.array_equal(actions[0], actions[2])
    with find_camera("task:toy/reach", request) as camera:
        steps = [step for step, _ in zip(stream(loaded, {"rgb": camera}), range(3), strict=False)]
    assert np.array_equal(steps[0].action, actions[0][0]), "the camera's path is the training's"
    with (
        find_camera("task:toy/reach", CameraRequest(width=64, render="fast", depth=False)) as camera,
        pytest.raises(BadInput, match="no depth"),
    ):
        next(stream(loaded, {"rgb": camera}))
    if depth in ("patches", "points"):
        with pytest.raises(BadInput, match=f"observation.depth={depth} cannot be exported"):
            program_of(loaded)


@pytest.mark.parametrize("depth", ["patches", "late", "points", "channels"])
def test_the_real_recording_drives_policies_with_depth(
    depth: str, rgbd_file: Path, tiny_file: Path, real_recording: str
) -> None:
    words = [
        f"observation.depth={depth}",
        "observation.depth_epochs=1",
        "observation.depth_points=64",
        "training.epochs=1",
    ]
    checkpoint = _train(rgbd_file, str(tiny_file), *words)
    words = [f"camera={real_recording}", f"checkpoint={checkpoint}", "zeros=true", "device=cpu", "out=actions.jsonl"]
    assert cli.run(["stream", *words]) == 0
    rows = [json.loads(line) for line in Path("actions.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and np.isfinite(rows[0]["action"]).all()


def test_depth_alone_shows_where_the_ball_is(rgbd_file: Path) -> None:
    """A policy that observes nothing else fits its demonstrations better with depth than without."""
    losses = {}
    for depth in ("none", "late"):
        checkpoint = _train(
            rgbd_file, "none", f"observation.depth={depth}", "policy.depth_dropout=0", "training.epochs=25"
        )
        rows = [json.loads(line) for line in (checkpoint.parents[2] / "metrics.jsonl").read_text().splitlines()]
        losses[depth] = min(row["train/loss"] for row in rows[-3:])
    assert losses["late"] < 0.85 * losses["none"]


def test_training_with_depth_repeats_exactly(rgbd_file: Path, tiny_file: Path) -> None:
    words = ("observation.depth=late", "save_every=1")
    whole = load_policy(_train(rgbd_file, str(tiny_file), *words, "training.epochs=3")).model.state_dict()
    again = load_policy(_train(rgbd_file, str(tiny_file), *words, "training.epochs=3", "seed=0")).model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["observation.depth=lat"], UnknownName, "did you mean 'late'"),
        (["obs=rbgd"], UnknownName, "did you mean 'rgbd'"),
        (["observation.depth=patches"], BadInput, "without one, use late or points"),
        (["observation.depth=points", "observation.depth_box=[0,1,2]"], BadInput, "six numbers"),
        (["observation.depth_head=gone.safetensors"], BadInput, "choose one"),
        (["observation.depth=late", "observation.depth_head=gone.safetensors"], CheckpointError, "no depth head at"),
        (["observation.depth=channels", "observation.depth_head=gone"], BadInput, "shows measured depth"),
        (["observation.depth=late", "observation.depth_code=colours"], BadInput, "takes codes of one number"),
        (["observation.depth=late", "observation.depth_range=[4,1]"], BadInput, "the nearer one first"),
        (["observation.depth=channels", "observation.depth_code=invers"], UnknownName, "did you mean 'inverse'"),
    ],
)
def test_impossible_settings_are_refused(
    words: list[str], error: type[Exception], message: str, rgbd_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train_bc", f"demos={rgbd_file}", "encoder=none", *FAST, *words]) == 1
    assert message in capsys.readouterr().err
    assert issubclass(error, Exception) and not Path("runs").exists()


def test_demonstrations_without_depth_say_so(toy_demos: EpisodeDataset) -> None:
    design = PolicyDesign("pixio-robot-ti", MlpConfig(), ObservationSettings(depth="late"))
    with pytest.raises(DataError, match="pixio-robot collect obs=rgbd"):
        observed_cameras(design, toy_demos)
