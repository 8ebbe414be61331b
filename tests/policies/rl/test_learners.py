"""Learners: what they hold, what they replay, and conversion from and to policies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.datasets.statistics import FeatureStatistics
from pixio_robot.encoders.load import Backbone, load_encoder
from pixio_robot.errors import CheckpointError
from pixio_robot.policies.build import VisionPolicy
from pixio_robot.policies.mlp import MlpConfig, MlpPolicy
from pixio_robot.policies.rl.demonstrations import demo_transitions
from pixio_robot.policies.rl.extractor import RunningNorm
from pixio_robot.policies.rl.learner import actor_config, copy_actor, init_actor
from pixio_robot.policies.rl.replay import ReplayOptions
from pixio_robot.policies.rl.sb3 import extractor_of
from pixio_robot.policies.vision import PIXELS

ALGORITHMS = ("sac", "td3", "ppo")


def _config(settings: Any, normalise: bool) -> MlpConfig:
    return replace(actor_config(settings), batch_norm=normalise)


def _acted(model: VisionPolicy, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Return the actions of a policy, clipped as environments clip them, for stored observations (B, ...)."""
    tensors = {key: torch.from_numpy(values) for key, values in observation.items()}
    vectors = {key: tensors.pop(key)[:, None] for key in model.spec.vectors}
    with torch.no_grad():
        return model.eval().act(tensors, vectors, {})[0][:, 0].clamp(-1, 1).numpy()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("encoder", ["state", "tokens", "cnn"])
def test_the_actor_becomes_a_policy(world: Any, small: Backbone, name: str, encoder: str) -> None:
    """After learning, the exported policy gives the algorithm's own deterministic action."""
    normalise, settings = encoder != "cnn", world.settings(name)
    model = world.policy(encoder, small if encoder == "tokens" else None, _config(settings, normalise))
    learner = world.learner(settings, model, normalise=normalise, shift=encoder == "cnn")
    learner.learn(48, log_interval=None)
    if normalise:
        extractor_of(learner).norm.update(torch.randn(50, model.policy.neck.dim) * 2 + 1)
        learner.learn(24, log_interval=None, reset_num_timesteps=False)
    copy_actor(learner, model)
    observation = learner.env.reset()
    expected = np.clip(learner.predict(observation, deterministic=True)[0], -1, 1)
    np.testing.assert_allclose(_acted(model, observation), expected, atol=2e-5)
    assert learner.num_timesteps >= 48 and learner._n_updates > 0


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_actor_and_critics_share_the_extractor_and_critics_train_it(world: Any, name: str) -> None:
    settings = world.settings(name)
    learner = world.learner(settings, world.policy("cnn", None, _config(settings, False)), normalise=False)
    actor = {id(parameter) for group in learner.actor.optimizer.param_groups for parameter in group["params"]}
    critic = {id(parameter) for group in learner.critic.optimizer.param_groups for parameter in group["params"]}
    shared = {id(parameter) for parameter in extractor_of(learner).parameters()}
    assert shared and shared <= critic and not shared & actor
    pixels = extractor_of(learner).vision.pixels
    before = [parameter.clone() for parameter in pixels.parameters()]
    learner.learn(32, log_interval=None)
    assert all(not torch.equal(*pair) for pair in zip(before, pixels.parameters(), strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_frozen_encoder_is_not_part_of_the_learner(world: Any, small: Backbone, name: str) -> None:
    learner = world.learner(world.settings(name), world.policy("tokens", small))
    count = sum(parameter.numel() for parameter in learner.policy.parameters())
    assert count < 40_000 < sum(parameter.numel() for parameter in small.parameters()) + 30_000
    assert not any("backbone" in key or "network" in key for key in learner.policy.state_dict())
    assert extractor_of(learner).vision.encoder is small, "it is shared, not copied"


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_an_encoder_that_learns_keeps_its_weights_at_first_and_then_moves(
    world: Any, small: Backbone, small_file: Path, name: str
) -> None:
    """PPO's orthogonal initialisation must not change it; a policy hands its trained encoder on."""
    settings = world.settings(name, batch=4, rollout=8, epochs=1)
    model = world.policy("tokens", small, _config(settings, False), tune="full")
    learner = world.learner(settings, model, normalise=False)
    copied = extractor_of(learner).vision.backbone
    assert copied is not small and copied.fingerprint() == small.fingerprint()
    assert learner.observation_space["rgb"].dtype == np.uint8
    learner.learn(48, log_interval=None)
    assert copied.fingerprint() != small.fingerprint()
    copy_actor(learner, model)
    fresh = world.policy("tokens", load_encoder(str(small_file)), model.policy.config, tune="full")
    other = world.learner(settings, fresh, normalise=False)
    init_actor(other, model, "rl.safetensors")
    assert extractor_of(other).vision.backbone.fingerprint() == copied.fingerprint()


def test_running_statistics_are_those_of_all_that_was_added() -> None:
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    norm = RunningNorm(3)
    for part in values.split(17):
        norm.update(part)
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0, unbiased=False))


def _trained_norm(policy: MlpPolicy) -> None:
    """Give the batch norm of a head numbers as training leaves them."""
    norm = policy.head.layers[0]
    with torch.no_grad():
        for tensor, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 1, 2),
            (norm.weight, 1, 2),
            (norm.bias, 0, 1),
        ):
            tensor.uniform_(low, high)
        policy.head.layers[-2 if policy.config.tanh_output else -1].weight.mul_(100)


@pytest.mark.parametrize(("name", "encoder"), [("sac", "tokens"), ("td3", "state"), ("ppo", "tokens"), ("sac", "cnn")])
def test_an_actor_starts_as_the_cloned_policy(world: Any, small: Backbone, name: str, encoder: str) -> None:
    backbone, settings = small if encoder == "tokens" else None, world.settings(name)
    cloned = world.policy(encoder, backbone, MlpConfig(layers=[16, 16], tanh_output=name != "ppo"))
    _trained_norm(cloned.policy)
    normalise = encoder != "cnn"
    model = world.policy(encoder, backbone, _config(settings, normalise))
    learner = world.learner(settings, model, normalise=normalise, warm_start=True)
    init_actor(learner, cloned, "bc.safetensors")
    observation = learner.env.reset()
    expected = _acted(cloned, observation)
    found = learner.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(np.clip(found, -1, 1), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01
    other = world.policy(encoder, backbone, MlpConfig(layers=[8], tanh_output=name != "ppo"))
    with pytest.raises(CheckpointError, match=r"clone with policy.layers=\[16,16\]"):
        init_actor(learner, other, "bc.safetensors")


def test_policies_that_are_no_actors_are_refused(world: Any, small: Backbone) -> None:
    settings, config = world.settings("sac"), MlpConfig(layers=[16, 16], tanh_output=True)
    learner = world.learner(settings, world.policy("tokens", small, actor_config(settings)), warm_start=True)
    with pytest.raises(CheckpointError, match=r"predicts chunks of 3 actions.*horizon=1"):
        init_actor(learner, world.policy("tokens", small, config, horizon=3), "bc.safetensors")
    with pytest.raises(CheckpointError, match=r"policy\.fusion=mean policy\.frames=flare"):
        init_actor(learner, world.policy("tokens", small, config, fusion="first"), "bc.safetensors")
    scaled = world.policy("tokens", small, config)
    statistics = {"action": FeatureStatistics("mean_std", (0.0,) * 3, (2.0,) * 3)}
    scaled.policy.spec = replace(scaled.spec, statistics=statistics)
    with pytest.raises(CheckpointError, match=r"statistics\.action=none"):
        init_actor(learner, scaled, "bc.safetensors")


def test_a_batch_has_its_share_of_demonstrations(
    world: Any, toy_demos: EpisodeDataset, small: Backbone, tmp_path: Path
) -> None:
    model = world.policy("tokens", small)
    transitions = demo_transitions(toy_demos, model, tmp_path)
    marked = replace(transitions, rewards=np.full_like(transitions.rewards, 99.0))
    learner = world.learner(world.settings("sac"), model, demos=marked, demo_ratio=0.25)
    learner.learn(40, log_interval=None)
    batch = learner.replay_buffer.sample(64)
    assert len(batch.rewards) == 64 and int((batch.rewards == 99).sum()) == 16
    assert batch.observations["rgb.cls"].shape[0] == 64


def test_only_replayed_images_are_shifted(world: Any) -> None:
    learner = world.learner(world.settings("sac"), world.policy("cnn"), normalise=False, shift=True)
    learner.learn(20, log_interval=None)
    buffer = learner.replay_buffer
    np.random.seed(0)
    shifted = buffer.sample(32).observations[PIXELS]
    buffer.options = ReplayOptions()
    np.random.seed(0)
    still = buffer.sample(32).observations[PIXELS]
    assert shifted.shape == still.shape and shifted.dtype == still.dtype == torch.uint8
    assert not torch.equal(shifted, still)
    inner = shifted[:, :, 3:-3, 3:-3]
    found = [
        any(
            torch.equal(inner[row], still[row, :, 3 + y : 61 + y, 3 + x : 61 + x])
            for y in range(-3, 4)
            for x in range(-3, 4)
        )
        for row in range(32)
    ]
    assert all(found)
