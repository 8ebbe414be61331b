"""What a learner sees: seeds, episodes, tokens and demonstrations, each stored as an agent would see it."""

from typing import Any

import numpy as np
import pytest
import torch
from pixio_robot.policies.visuomotor import EncoderIdentity, LoadedPolicy
from stable_baselines3.common.vec_env import VecEnv

from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.token_cache import TokenCache
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.errors import DataError
from pixio_robot.policies.agent import Agent, Perception
from pixio_robot.policies.rl.demonstrations import demo_transitions
from pixio_robot.policies.rl.embedded_env import FELT, TOKENS, EmbeddedVecEnv

CPU = torch.device("cpu")


def test_seeds_count_up_over_environments_and_both_keys_say_success(world: Any) -> None:
    tasks = world.tasks(world.request("state", horizon=3), 2, 40)
    starts = {plan.seed: plan.initial_state_hash for plan in plan_episodes(tasks.request, 5, 40)}
    env = tasks.request.make()
    first = {seed: env.reset(seed=seed)[0]["state"] for seed in starts}
    assert np.array_equal(tasks.reset()["state"], np.stack([first[40], first[41]]))
    for step in range(3):
        observations, rewards, dones, infos = tasks.step(world.actions(step, (2, 3)))
        assert all(info["success"] == info["is_success"] for info in infos) and rewards.dtype == np.float32
    assert dones.all() and np.array_equal(observations["state"], np.stack([first[42], first[43]]))
    assert infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 3
    assert not np.array_equal(infos[0]["terminal_observation"]["state"], observations["state"][0])


def test_episodes_under_way_are_taken_up_again(world: Any) -> None:
    one, other = (world.tasks(world.request("state", horizon=4), 3, 11) for _ in range(2))
    one.reset()
    for step in range(6):
        one.step(world.actions(step, (3, 3)))
    told = one.under_way()
    assert told["lengths"].tolist() == [2, 2, 2] and told["begun"].tolist() == [6, 18]
    other.take_up(told)
    for step in range(6, 12):
        mine, theirs = one.step(world.actions(step, (3, 3))), other.step(world.actions(step, (3, 3)))
        assert np.array_equal(mine[0]["state"], theirs[0]["state"]) and np.array_equal(mine[1], theirs[1])
    with pytest.raises(DataError, match="another simulator version"):
        other.take_up({**told, "returns": told["returns"] + 1})


def test_environments_are_stable_baselines_own_kind(world: Any) -> None:
    venv = world.embedded(world.policy("state"), None)
    assert isinstance(venv, VecEnv) and venv.get_attr("name") == ["toy/reach"] * 2
    assert venv.env_method("render") == [None, None] and not any(venv.env_is_wrapped(object))  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["mean", "concat", "spatial"])
def test_what_is_stored_is_what_an_agent_sees(world: Any, request: pytest.FixtureRequest, fusion: str) -> None:
    """Embeddings of stored observations, last ones of episodes too, give the agent's actions; the encoder runs once."""
    small: Backbone = request.getfixturevalue(
        "tiny" if fusion == "spatial" else "small"
    )  # the former has 16x16 patches
    policy = world.policy("bc", small, fusion=fusion, frames="flare")
    venv = world.embedded(policy, small)
    calls: list[int] = []
    small.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    loaded = LoadedPolicy(policy, EncoderIdentity.of(small, "fp32"), world.request("bc"), {}, 0)
    agent = Agent(loaded, small, CPU)
    env = world.request("bc").make()
    raw, _ = env.reset(seed=7)
    alone = np.ones(1, bool)

    def acted(observation: dict[str, np.ndarray]) -> np.ndarray:
        tokens, felt = torch.from_numpy(observation[TOKENS]), torch.from_numpy(observation[FELT])
        with torch.no_grad():
            return policy(tokens[None].float(), felt[None]).clamp(-1, 1).numpy()

    seen = venv.reset()
    assert venv.observation_space[TOKENS].dtype == np.float16 and seen[TOKENS].dtype == np.float16  # type: ignore[index]
    for step in range(5):
        expected = agent.act({key: value[None] for key, value in raw.items()}, np.array([step == 0]), alone)
        np.testing.assert_allclose(acted({key: value[0] for key, value in seen.items()}), expected, atol=2e-5)
        actions = world.actions(step, (2, 3))
        calls.clear()
        seen, _, dones, infos = venv.step(actions)
        assert calls == [4 if dones.all() else 2]
        raw = env.step(actions[0])[0]
    assert dones.all()
    expected = agent.act({key: value[None] for key, value in raw.items()}, ~alone, alone)
    np.testing.assert_allclose(acted(infos[0]["terminal_observation"]), expected, atol=2e-5)


def test_demonstrations_become_the_transitions_that_would_have_been_stored(
    world: Any, toy_demos: DemoSet, toy_cache: TokenCache, tiny: Backbone
) -> None:
    policy = world.policy("bc", tiny, frames="stack", history=3)
    transitions = demo_transitions(toy_demos, toy_cache, policy)
    tasks = world.tasks(toy_demos.request, 1, toy_demos.seeds[0])
    venv = EmbeddedVecEnv(tasks, Perception(policy, tiny, "fp32", CPU))
    seen = venv.reset()
    for step in range(6):
        for stored, mine in ((transitions.observations, seen),):
            np.testing.assert_allclose(stored[TOKENS][step], mine[TOKENS][0], atol=2e-3)
            np.testing.assert_array_equal(stored[FELT][step], mine[FELT][0])
        seen, rewards, _, _ = venv.step(transitions.actions[step : step + 1])
        np.testing.assert_allclose(transitions.rewards[step, 0], rewards[0], atol=1e-6)
        np.testing.assert_allclose(transitions.next_observations[TOKENS][step], seen[TOKENS][0], atol=2e-3)
    rows = toy_demos.rows("train")
    assert len(transitions.actions) == len(rows) - len(toy_demos.members("train"))
