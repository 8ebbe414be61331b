"""Small real things that several tests share: demonstrations of the toy, an encoder, a token cache."""

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pixio_robot import cli, plugins
from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.datasets.frame_cache import FrameCache
from pixio_robot.datasets.token_cache import TokenFormat, token_cache
from pixio_robot.encoders.load import Backbone, load_encoder, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import CloningSetup, prepare_cloning
from pixio_robot.policies.collect import collect
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import TrainingSettings
from pixio_robot.policies.train import TrainPlan, train_policy


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks here are tiny, and several threads on a busy machine mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard() -> None:
    """What a shell starts in the background, or nohup, ignores some signals; here they are sent on purpose."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _absl_closes_nothing() -> None:
    """absl, which dm_control imports, closes the stream it first saw, pytest's, when Hydra sets up its logging."""
    with contextlib.suppress(ImportError):
        from absl import logging

        logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in its own empty folder, so that none leaves a runs/ behind."""
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture(scope="session")
def real_recording() -> str:
    """A D435's recording: ``single_depth_color_640x480.bag`` of librealsense's unit tests, named by REALSENSE_BAG."""
    recording = os.environ.get("REALSENSE_BAG", "")
    if not Path(recording).is_file():
        pytest.skip("set REALSENSE_BAG to librealsense's unit-test recording")
    if importlib.util.find_spec("pyrealsense2") is None:
        pytest.skip("needs the extra realsense")
    return recording


@pytest.fixture(scope="session")
def toy_request() -> TaskSpec:
    """The toy task, short and cheap."""
    return TaskSpec("toy/reach", observe=("rgb", "proprio", "state"), render="fast", horizon=25)


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory, toy_request: TaskSpec) -> Path:
    """Four training and one validation demonstration of the toy."""
    path = tmp_path_factory.mktemp("demos") / "reach.hdf5"
    collect(toy_request, demos=4, valid=1, first_seed=0, out=path, workers=2)
    return path


@pytest.fixture
def toy_demos(toy_file: Path) -> EpisodeDataset:
    return open_dataset(toy_file)


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file of two narrow blocks."""
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    encoder = PixioEncoder(dim=32, depth=2, heads=2)
    encoder.initialise(torch.Generator().manual_seed(0))
    save_encoder(encoder, path)
    return path


@pytest.fixture
def tiny(tiny_file: Path) -> Backbone:
    return load_encoder(str(tiny_file))


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, toy_file: Path) -> FrameCache:
    """The toy demonstrations' tokens, patches included."""
    root = tmp_path_factory.mktemp("cache")
    return token_cache(root, load_encoder(str(tiny_file)), open_dataset(toy_file), tokens=TokenFormat(patches=True))


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path, toy_file: Path) -> Path:
    """A policy cloned from the toy demonstrations, on the tokens of three frames."""
    design = PolicyDesign(str(tiny_file), MlpConfig(layers=[32]))
    setup = CloningSetup(cache=tmp_path_factory.mktemp("toy-cache"))
    prepared = prepare_cloning(open_dataset(toy_file), design, load_encoder(str(tiny_file)), setup)
    plan = TrainPlan(tmp_path_factory.mktemp("toy-policy"), "mlp", seed=0)
    return train_policy(prepared.model, prepared.data, TrainingSettings(batch=32, epochs=4), plan).last


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Path, toy_file: Path) -> Path:
    """The toy policy as an ONNX bundle that was verified on recorded frames."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("bundle") / "toy"
    words = [f"checkpoint={toy_checkpoint}", f"demos={toy_file}", "frames=16", "episodes=0", "threads=1", f"out={out}"]
    assert cli.run(["export", *words]) == 0
    return out


@pytest.fixture
def foreign_file(tmp_path: Path) -> Path:
    """Demonstrations as robomimic's own tools write them: no masks, no env_args, no num_samples."""
    path, rng = tmp_path / "foreign.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, steps in (("demo_0", 9), ("demo_2", 6), ("demo_10", 7)):
            demo = file.create_group(f"data/{name}")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["dones"], demo["rewards"] = np.zeros(steps, np.int64), np.zeros(steps)
            for camera in ("agentview", "robot0_eye_in_hand"):
                demo[f"obs/{camera}_image"] = rng.integers(0, 255, (steps, 48, 48, 3), dtype=np.uint8)
            widths = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2, "joint_pos": 7}
            for what, width in widths.items():
                demo[f"obs/robot0_{what}"] = rng.normal(size=(steps, width))
            demo["obs/object"] = rng.normal(size=(steps, 5))
    return path


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[metadata.EntryPoint]:
    """Entry points in place of the installed packages'."""
    found: list[metadata.EntryPoint] = []
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [e for e in found if e.group == group])
    plugins._entries.cache_clear()
    yield found
    monkeypatch.undo()
    plugins._entries.cache_clear()
