"""Export of policies with several cameras, with recurrent memory and with noise, from the checkpoint to the robot."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixio_robot import cli, plugins
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.deploy.commands import Serve, new_server
from pixio_robot.deploy.eager import EagerPolicy
from pixio_robot.deploy.manifest import NOISE, STARTS, Manifest
from pixio_robot.deploy.runtime import Runtime
from pixio_robot.encoders.load import load_encoder
from pixio_robot.policies.build import PolicyDesign
from pixio_robot.policies.cloning import CloningSetup, prepare_cloning
from pixio_robot.policies.policy import Batch, Memory, Observation, Policy, PolicySpec
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings
from pixio_robot.policies.train import TrainPlan, train_policy

pytest.importorskip("onnxscript", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")

INSTALLED = [entry for group in plugins.GROUPS for entry in metadata.entry_points(group=f"pixio_robot.{group}")]


@dataclass
class RecurrentConfig:
    name: str = "recurrent"
    width: int = 16


@dataclass
class NoisyConfig:
    name: str = "noisy"
    width: int = 16


class _Embedding(nn.Module):
    """The mean token of each step and the proprioception of each step, as one vector."""

    def __init__(self, spec: PolicySpec, width: int) -> None:
        super().__init__()
        inputs = spec.observation_steps * (spec.tokens["rgb"].dim + spec.vectors["proprio"])
        self.layer = nn.Linear(inputs, width)

    def forward(self, observation: Observation) -> Tensor:
        steps = torch.cat([observation["rgb.cls"].mean(2), observation["proprio"]], dim=-1)
        return torch.tanh(self.layer(steps.flatten(1)))


class RecurrentPolicy(Policy):
    """Remembers with a GRU. While it learns, each frame is the first of an episode."""

    Config = RecurrentConfig

    def __init__(self, config: RecurrentConfig, spec: PolicySpec) -> None:
        super().__init__(config, spec)
        self.embedding = _Embedding(spec, config.width)
        self.cell = nn.GRUCell(config.width, config.width)
        self.last = nn.Linear(config.width, spec.horizon * spec.action_dim)

    def initial_memory(self, batch: int) -> Memory:
        return {"hidden": torch.full((batch, self.config.width), 0.5)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        actions, _ = self.predict(batch.observation, self.initial_memory(len(batch.action)))
        return ((actions - batch.action)[~batch.action_is_pad] ** 2).mean(), {}

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        hidden = self.cell(self.embedding(observation), memory["hidden"])
        actions = self.last(hidden).unflatten(1, (self.spec.horizon, self.spec.action_dim))
        return actions, {"hidden": hidden}


class NoisyPolicy(Policy):
    """Moves noise to actions in three steps."""

    Config = NoisyConfig

    def __init__(self, config: NoisyConfig, spec: PolicySpec) -> None:
        super().__init__(config, spec)
        self.noise_shape = (spec.horizon, spec.action_dim)
        self.embedding = _Embedding(spec, config.width)
        self.velocity = nn.Linear(config.width + spec.horizon * spec.action_dim, spec.horizon * spec.action_dim)

    def _moved(self, seen: Tensor, actions: Tensor) -> Tensor:
        return self.velocity(torch.cat([seen, actions.flatten(1)], dim=1)).view_as(actions)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn_like(batch.action)
        found = self._moved(self.embedding(batch.observation), noise)
        return ((noise + found - batch.action)[~batch.action_is_pad] ** 2).mean(), {}

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        assert noise is not None
        seen, actions = self.embedding(observation), noise
        for _ in range(3):
            actions = actions + self._moved(seen, actions) / 3
        return actions, memory


@pytest.fixture
def plugged(entries: list[metadata.EntryPoint]) -> None:
    """The policies of this file beside all that is installed."""
    entries += INSTALLED
    for name, policy in (("recurrent", RecurrentPolicy), ("noisy", NoisyPolicy)):
        value = f"{policy.__module__}:{policy.__name__}"
        entries.append(metadata.EntryPoint(name, value, "pixio_robot.policies"))


@pytest.fixture
def trained(plugged: None, toy_file: Path, tiny_file: Path, tmp_path: Path) -> Callable[..., Path]:
    def train(config: Any, steps: int) -> Path:
        design = PolicyDesign(str(tiny_file), config, ObservationSettings(steps=steps), horizon=2)
        setup = CloningSetup(cache=tmp_path / "cache")
        prepared = prepare_cloning(open_dataset(toy_file), design, load_encoder(str(tiny_file)), setup)
        plan = TrainPlan(tmp_path / config.name, config.name, seed=0)
        return train_policy(prepared.model, prepared.data, TrainingSettings(batch=32, epochs=2), plan).last

    return train


def _export(checkpoint: Path, demos: Path, *words: str) -> Runtime:
    """Export and verify a checkpoint; a bundle that does not pass is not put in place."""
    words = (f"checkpoint={checkpoint}", f"demos={demos}", "frames=16", "threads=1", "out=bundle", *words)
    assert cli.run(["export", *words]) == 0
    assert json.loads(Path("bundle/verification.json").read_text())["passed"]
    return Runtime.load("bundle", threads=1)


def _recorded(demos: Path, frames: int) -> list[dict[str, np.ndarray]]:
    dataset, rows = open_dataset(demos), np.arange(frames)
    keys = [*dataset.cameras, "proprio"]
    values = {key: dataset.read(key, rows).astype(dataset.features[key].dtype) for key in keys}
    return [{key: each[row] for key, each in values.items()} for row in rows]


@pytest.mark.parametrize("steps", [1, 2])
def test_recurrent_memory_is_an_input_and_an_output_of_a_program(
    steps: int, trained: Callable[..., Path], toy_file: Path
) -> None:
    """Both policies forget at a reset, and only there."""
    checkpoint = trained(RecurrentConfig(), steps)
    runtime, eager = _export(checkpoint, toy_file, f"episodes={steps - 1}", "envs=1"), EagerPolicy.load(checkpoint)
    inputs = {tensor.name: tensor.shape for tensor in runtime.manifest.inputs}
    assert inputs["memory.hidden_history"] == (1, 16) and STARTS in inputs and NOISE not in inputs
    assert not {each.name for each in runtime.manifest.outputs} & {*inputs}
    if steps == 2:
        assert len(Path("bundle/episodes.jsonl").read_text().splitlines()) == 1
    frames, ours, theirs = _recorded(toy_file, 5), [], []
    for episode in (frames, frames[3:]):
        runtime.reset()
        eager.reset()
        ours.append(np.stack([runtime.act(frame) for frame in episode]))
        theirs.append(np.stack([eager.act(frame) for frame in episode]))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape[1:] == (2, 3) and np.abs(one - other).max() < 1e-4
    assert np.abs(ours[0][3:] - ours[1]).max() > 1e-3, "what was observed before the reset counts"


@pytest.mark.parametrize("steps", [1, 2])
def test_noise_is_an_input_of_a_program(steps: int, trained: Callable[..., Path], toy_file: Path) -> None:
    checkpoint = trained(NoisyConfig(), steps)
    runtime, eager = _export(checkpoint, toy_file, f"episodes={steps - 1}", "envs=1"), EagerPolicy.load(checkpoint)
    assert runtime.manifest.noise is not None and runtime.manifest.noise.shape == (2, 3)
    assert Manifest.read("bundle").noise == runtime.manifest.noise
    assert not {each.name for each in runtime.manifest.outputs} & {each.name for each in runtime.manifest.inputs}
    rng, actions = np.random.default_rng(1), []
    for frame in _recorded(toy_file, 4):
        noise = rng.standard_normal((2, 3)).astype(np.float32)
        actions.append(runtime.act({**frame, NOISE: noise}))
        assert np.abs(actions[-1] - eager.act({**frame, NOISE: noise})).max() < 1e-4
    runtime.reset()
    frame = _recorded(toy_file, 1)[0]
    drawn = [runtime.act(frame), runtime.act(frame)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2, "noise that is not given is drawn for each call"
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("target", ["openvino", pytest.param("aoti", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", [RecurrentConfig(), NoisyConfig()], ids=lambda config: config.name)
def test_other_targets_take_memory_and_noise(
    target: str, config: Any, trained: Callable[..., Path], toy_file: Path
) -> None:
    pytest.importorskip({"openvino": "openvino", "aoti": "torch"}[target])
    runtime = _export(trained(config, 2), toy_file, "episodes=0", f"target={target}")
    assert runtime.manifest.target == target


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> tuple[Path, Path]:
    """Demonstrations of two cameras, and the checkpoint of a policy that observes both."""
    folder = tmp_path_factory.mktemp("two-cameras")
    demos, out = folder / "demos.hdf5", folder / "train"
    words = ["task=toy/reach", "cameras=[top,front]", "image_size=64", "render=fast", "episode_steps=20", "workers=1"]
    assert cli.run(["collect", *words, "demos=3", "valid=0", f"out={demos}"]) == 0
    words = [f"demos={demos}", f"encoder={tiny_file}", "observation.cameras=[top,front]", "policy.layers=[32]"]
    words += ["training.epochs=3", "training.batch=32", "device=cpu", f"cache={folder / 'cache'}", f"out={out}"]
    assert cli.run(["train_bc", *words]) == 0
    return demos, out / "checkpoints" / "mlp" / "last.safetensors"


def test_a_program_of_two_cameras_acts_as_the_eager_policy_and_drives_a_robot(
    two_cameras: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("websockets", reason="needs the extra remote")
    from pixio_robot.deploy.serve.client import RemotePolicy

    demos, checkpoint = two_cameras
    runtime, eager = _export(checkpoint, demos, "episodes=2", "envs=1"), EagerPolicy.load(checkpoint)
    observed = {tensor.name: tensor.shape for tensor in runtime.manifest.observation}
    assert observed == {"rgb": (64, 64, 3), "rgb_front": (64, 64, 3), "proprio": (3,)}
    kept = [(each.name, each.frames) for each in runtime.manifest.memory]
    assert kept == [("rgb.cls", 3), ("rgb_front.cls", 3)]
    details = json.loads(Path("bundle/verification.json").read_text())["details"]
    assert {"tokens rgb.cls", "tokens rgb_front.cls", "actions", "closed_loop"} <= set(details)

    frames = _recorded(demos, 5)
    ours = np.stack([runtime.act(frame) for frame in frames])
    assert np.abs(ours - np.stack([eager.act(frame) for frame in frames])).max() < 1e-4
    runtime.reset()
    swapped = [{**each, "rgb": each["rgb_front"], "rgb_front": each["rgb"]} for each in frames]
    assert np.abs(ours - np.stack([runtime.act(frame) for frame in swapped])).max() > 1e-3, "each camera has its place"

    drive = ["run", "robot=task:toy/reach@top", "time=stepped", "steps=5", "render=fast"]
    assert cli.run([*drive, "bundle=bundle", "out=local"]) == 0, capsys.readouterr().err
    with ExitStack() as stack:
        server = stack.enter_context(new_server(Serve(bundle="bundle", threads=1, port=0)))
        address = f"{server.host}:{server.port}"
        with RemotePolicy(address, timeout=20) as remote:
            assert np.array_equal(np.stack([remote.act(frame) for frame in frames]), ours)
        assert cli.run([*drive, f"server={address}", "out=remote"]) == 0, capsys.readouterr().err
    sent = []
    for folder in ("local", "remote"):
        with h5py.File(next(Path(folder).glob("*.hdf5"))) as file:
            assert {"top_image", "front_image"} <= set(file["data/demo_0/obs"])
            sent.append(file["data/demo_0/actions"][:])
    assert len(sent[0]) == 5 and np.array_equal(*sent)
