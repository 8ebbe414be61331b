"""Environments, learners and commands that the tests of reinforcement learning share."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("stable_baselines3") is None:
    collect_ignore_glob = ["*"]
else:
    from pixio_robot.policies.rl.embedded_env import EmbeddedVecEnv
    from pixio_robot.policies.rl.learner import LearnerOptions, new_learner
    from pixio_robot.policies.rl.replay import ReplayOptions
    from pixio_robot.policies.rl.task_vec_env import TaskVecEnv

from pixio_robot.encoders.load import Backbone, load_encoder, save_encoder
from pixio_robot.encoders.pixio import PixioEncoder
from pixio_robot.envs.features import task_features
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.metrics import EpisodeRecord
from pixio_robot.policies.build import PolicyDesign, VisionPolicy, build_policy
from pixio_robot.policies.evaluate import Evaluation
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.rl.commands import TrainRL
from pixio_robot.policies.rl.settings import AlgorithmSettings
from pixio_robot.policies.settings import ObservationSettings


class World:
    """Small environments, policies, learners and commands; what is open is closed at the end of a test."""

    def __init__(self) -> None:
        self.open: list[TaskVecEnv] = []

    def settings(self, name: str, **changes: Any) -> AlgorithmSettings:
        tiny = dict(name=name, layers=[16, 16], batch=8, buffer=500, warmup=16, rollout=48, updates=0.25, epochs=2)
        return AlgorithmSettings(**{**tiny, **changes})

    def request(self, encoder: str, horizon: int = 5) -> TaskSpec:
        observe = {"state": ("state",), "none": ("proprio",)}.get(encoder, ("rgb", "proprio"))
        return TaskSpec("toy/reach", observe, image_size=32, render="fast", horizon=horizon)

    def policy(
        self, encoder: str, backbone: Backbone | None = None, config: MlpConfig | None = None, **changes: Any
    ) -> VisionPolicy:
        """Return an untrained policy.

        Args:
            encoder: a baseline, or "tokens" with `backbone`.
            changes: of the design, of its observation and of its config.
        """
        config = config or MlpConfig(layers=[16, 16], tanh_output=True)
        config = replace(config, **{key: changes.pop(key) for key in ("fusion", "frames") if key in changes})
        observation = ObservationSettings(steps=changes.pop("steps", 2))
        design = PolicyDesign(encoder, config, observation, **changes)
        cameras = ("rgb",) if design.observes_images else ()
        return build_policy(design, task_features(self.request(encoder)), cameras, backbone, seed=0).eval()

    def tasks(self, request: TaskSpec, count: int, first_seed: int) -> "TaskVecEnv":
        self.open.append(TaskVecEnv(request, count, first_seed, processes=False))
        return self.open[-1]

    def embedded(self, model: VisionPolicy) -> "EmbeddedVecEnv":
        encoder = "state" if "state" in model.spec.vectors else model.vision.spec.encoder
        return EmbeddedVecEnv(self.tasks(self.request(encoder), 2, 7), model)

    def learner(self, settings: AlgorithmSettings, model: VisionPolicy, **options: Any) -> Any:
        """Return a learner; `options` are those of `ReplayOptions` and `LearnerOptions`."""
        replay = {key: options.pop(key) for key in ("demos", "demo_ratio", "shift") if key in options}
        return new_learner(
            settings, self.embedded(model), model, LearnerOptions(**options, replay=ReplayOptions(**replay))
        )

    def actions(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)

    def command(self, out: Path, name: str = "sac", **changes: Any) -> TrainRL:
        command = TrainRL(
            task="toy/reach",
            algorithm=self.settings(name),
            obs="state",
            steps=240,
            envs=2,
            episode_steps=10,
            eval_every=120,
            eval_episodes=2,
            episodes=2,
            log_every=48,
            save_every=96,
            image_size=32,
            processes=False,
            out=str(out),
        )
        return replace(command, **changes)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for tasks in world.open:
        tasks.close()


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file of two narrow blocks for images of 32 px."""
    path = tmp_path_factory.mktemp("encoder") / "small.safetensors"
    encoder = PixioEncoder(dim=32, depth=2, heads=2, image_size=32)
    encoder.initialise(torch.Generator().manual_seed(0))
    save_encoder(encoder, path)
    return path


@pytest.fixture
def small(small_file: Path) -> Backbone:
    return load_encoder(str(small_file))


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the episodes of the learning curve and of the last policy."""
    row = EpisodeRecord("t", "sac", "none", "none", "none", "none", 0, 0, "s", 0.0, False, False, 0, 0.0, 1, 0.0)
    monkeypatch.setattr("pixio_robot.policies.rl.run.evaluate_policy", lambda *_: Evaluation([row], 0))
