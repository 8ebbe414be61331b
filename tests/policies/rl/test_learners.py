"""Learners: what they hold, what they replay, and the way from and to policies."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import TokenCache
from pixio_robot.encoders.load import Backbone
from pixio_robot.errors import CheckpointError
from pixio_robot.policies.rl.demonstrations import demo_transitions
from pixio_robot.policies.rl.embedded_env import FELT, TOKENS
from pixio_robot.policies.rl.extractor import RunningNorm
from pixio_robot.policies.rl.learner import copy_actor, extractor_of, head_settings, init_actor
from pixio_robot.policies.settings import PolicySettings

ALGORITHMS = ("sac", "td3", "ppo")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", ["state", "bc", "cnn"])
def test_the_actor_becomes_a_policy(world: Any, small: Backbone, name: str, kind: str) -> None:
    """After learning, the exported policy gives the algorithm's own deterministic action."""
    normalise = kind != "cnn"
    policy = world.policy(kind, small if kind == "bc" else None, head_settings(world.settings(name), normalise))
    model = world.learner(name, policy, small if kind == "bc" else None, normalise, shift=kind == "cnn")
    model.learn(48, log_interval=None)
    if normalise:
        extractor_of(model).norm.update(torch.randn(50, policy.embedder.dim) * 2 + 1)
        model.learn(24, log_interval=None, reset_num_timesteps=False)
    copy_actor(model, policy)
    observation = model.env.reset()
    expected = np.clip(model.predict(observation, deterministic=True)[0], -1, 1)
    tokens = torch.from_numpy(observation[TOKENS]) if TOKENS in observation else None
    felt = torch.from_numpy(observation[FELT])
    with torch.no_grad():
        found = policy.eval()(tokens, felt).clamp(-1, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert model.num_timesteps >= 48 and model._n_updates > 0


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_actor_and_critics_share_what_sees_and_critics_teach_it(world: Any, name: str) -> None:
    model = world.learner(name, world.policy("cnn", None, head_settings(world.settings(name), False)), normalise=False)
    actor = {id(parameter) for group in model.actor.optimizer.param_groups for parameter in group["params"]}
    critic = {id(parameter) for group in model.critic.optimizer.param_groups for parameter in group["params"]}
    seeing = {id(parameter) for parameter in extractor_of(model).parameters()}
    assert seeing and seeing <= critic and not seeing & actor
    before = [parameter.clone() for parameter in extractor_of(model).pixels.parameters()]
    model.learn(32, log_interval=None)
    assert all(not torch.equal(*pair) for pair in zip(before, extractor_of(model).pixels.parameters(), strict=True))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_frozen_encoder_is_nowhere_in_the_learner(world: Any, small: Backbone, name: str) -> None:
    model = world.learner(name, world.policy("bc", small), small)
    count = sum(parameter.numel() for parameter in model.policy.parameters())
    assert count < 40_000 < sum(parameter.numel() for parameter in small.parameters()) + 30_000
    assert not any("backbone" in key or "network" in key for key in model.policy.state_dict())


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_an_encoder_that_learns_keeps_its_weights_at_first_and_then_moves(
    world: Any, small: Backbone, name: str
) -> None:
    """PPO's orthogonal initialisation must not touch it."""
    settings = world.settings(name, batch=4, rollout=8, epochs=1)
    policy = world.policy("bc", small, head_settings(settings, False))
    model = world.learner(name, policy, small, False, learned=small, settings=settings)
    mine = extractor_of(model).backbone
    assert mine is not small and mine.fingerprint() == small.fingerprint()
    assert model.observation_space[TOKENS].dtype == np.uint8
    model.learn(48, log_interval=None)
    assert mine.fingerprint() != small.fingerprint()


def test_running_statistics_are_those_of_all_that_was_added() -> None:
    values = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    norm = RunningNorm(3)
    for part in values.split(17):
        norm.update(part)
    torch.testing.assert_close(norm.running_mean, values.mean(0))
    torch.testing.assert_close(norm.running_var, values.var(0, unbiased=False))


@pytest.mark.parametrize(("name", "kind"), [("sac", "bc"), ("td3", "state"), ("ppo", "bc"), ("sac", "cnn")])
def test_an_actor_begins_as_the_cloned_policy(world: Any, small: Backbone, name: str, kind: str) -> None:
    backbone = small if kind == "bc" else None
    cloned = world.policy(kind, backbone, PolicySettings(layers=[16, 16], tanh_output=name != "ppo", activation="relu"))
    norm = cloned.head.layers[0]
    with torch.no_grad():  # as training leaves it
        for tensor, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 1, 2),
            (norm.weight, 1, 2),
            (norm.bias, 0, 1),
        ):
            tensor.uniform_(low, high)
        cloned.head.layers[-2 if name != "ppo" else -1].weight.mul_(100)
    normalise = kind != "cnn"
    model = world.learner(
        name,
        world.policy(kind, backbone, head_settings(world.settings(name), normalise)),
        backbone,
        normalise,
        begun=True,
    )
    init_actor(model, cloned, "bc.safetensors")
    observation = model.env.reset()
    tokens = torch.from_numpy(observation[TOKENS]) if TOKENS in observation else None
    with torch.no_grad():
        expected = cloned(tokens, torch.from_numpy(observation[FELT])).clamp(-1, 1).numpy()
    found = model.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(np.clip(found, -1, 1), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01
    other = world.policy(kind, backbone, PolicySettings(layers=[8], tanh_output=name != "ppo"))
    with pytest.raises(CheckpointError, match=r"clone with policy.layers=\[16,16\]"):
        init_actor(model, other, "bc.safetensors")


def test_a_batch_has_its_share_of_demonstrations(
    world: Any, toy_demos: DemoSet, toy_cache: TokenCache, small: Backbone
) -> None:
    policy = world.policy("bc", small)
    transitions = demo_transitions(toy_demos, toy_cache, policy)
    marked = replace(transitions, rewards=np.full_like(transitions.rewards, 99.0))
    model = world.learner("sac", policy, small, demos=marked, demo_ratio=0.25)
    model.learn(40, log_interval=None)
    batch = model.replay_buffer.sample(64)
    assert len(batch.rewards) == 64 and int((batch.rewards == 99).sum()) == 16
    assert batch.observations[TOKENS].shape[0] == 64


def test_only_replayed_images_are_moved(world: Any, small: Backbone) -> None:
    model = world.learner("sac", world.policy("cnn"), normalise=False, shift=True)
    model.learn(20, log_interval=None)
    buffer = model.replay_buffer
    np.random.seed(0)
    moved = buffer.sample(32).observations[TOKENS]
    buffer.shift = False
    np.random.seed(0)
    still = buffer.sample(32).observations[TOKENS]
    assert moved.shape == still.shape and moved.dtype == still.dtype == torch.uint8 and not torch.equal(moved, still)
    inner = moved[:, :, 3:-3, 3:-3]
    found = [
        any(
            torch.equal(inner[row], still[row, :, 3 + y : 61 + y, 3 + x : 61 + x])
            for y in range(-3, 4)
            for x in range(-3, 4)
        )
        for row in range(32)
    ]
    assert all(found)
