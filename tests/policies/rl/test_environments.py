"""What a learner observes: seeds, episodes, tokens and demonstrations, stored as an agent observes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv

from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.errors import DataError, UnknownName
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.evaluate import task_of
from pixio_robot.policies.loaded import LoadedPolicy
from pixio_robot.policies.rl.demonstrations import demo_transitions
from pixio_robot.policies.rl.embedded_env import EmbeddedVecEnv

CPU = torch.device("cpu")


def test_seeds_count_up_over_environments_and_infos_report_success_twice(world: Any) -> None:
    tasks = world.tasks(world.request("state", horizon=3), 2, 40)
    seeds = [plan.seed for plan in plan_episodes(tasks.request, 5, 40)]
    env = tasks.request.make()
    first = {seed: env.reset(seed=seed)[0]["state"] for seed in seeds}
    assert np.array_equal(tasks.reset()["state"], np.stack([first[40], first[41]]))
    for step in range(3):
        observations, rewards, dones, infos = tasks.step(world.actions(step, (2, 3)))
        assert all(info["success"] == info["is_success"] for info in infos) and rewards.dtype == np.float32
    assert dones.all() and np.array_equal(observations["state"], np.stack([first[42], first[43]]))
    assert infos[0]["TimeLimit.truncated"] and infos[0]["episode"]["l"] == 3
    assert not np.array_equal(infos[0]["terminal_observation"]["state"], observations["state"][0])


def test_running_episodes_are_restored(world: Any) -> None:
    one, other = (world.tasks(world.request("state", horizon=4), 3, 11) for _ in range(2))
    one.reset()
    for step in range(6):
        one.step(world.actions(step, (3, 3)))
    state = one.state_dict()
    assert state["lengths"].tolist() == [2, 2, 2] and state["counts"].tolist() == [6, 18]
    other.load_state_dict(state)
    for step in range(6, 12):
        first, second = one.step(world.actions(step, (3, 3))), other.step(world.actions(step, (3, 3)))
        assert np.array_equal(first[0]["state"], second[0]["state"]) and np.array_equal(first[1], second[1])
    with pytest.raises(DataError, match="another simulator version"):
        other.load_state_dict({**state, "returns": state["returns"] + 1})


def test_environments_are_a_vector_environment_of_stable_baselines(world: Any) -> None:
    venv = world.embedded(world.policy("state"))
    assert isinstance(venv, VecEnv) and venv.get_attr("name") == ["toy/reach"] * 2
    assert venv.env_method("render") == [None, None] and not any(venv.env_is_wrapped(object))  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["mean", "concat", "spatial"])
def test_stored_observations_are_what_an_agent_observes(
    world: Any, request: pytest.FixtureRequest, fusion: str
) -> None:
    """Actions of stored observations, last ones of episodes too, are the agent's; a step is one encoder call."""
    name = "tiny" if fusion == "spatial" else "small"  # the former has 16x16 patches
    encoder: Backbone = request.getfixturevalue(name)
    model = world.policy("tokens", encoder, fusion=fusion)
    venv = world.embedded(model)
    calls: list[int] = []
    encoder.network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    agent = Agent(LoadedPolicy(model, {}, {}, 0), CPU)
    env = world.request("tokens").make()
    raw, _ = env.reset(seed=7)
    alone = np.ones(1, bool)
    (tokens,) = set(venv.observation_space.spaces) - {"proprio"}
    assert tokens == ("rgb.patches" if fusion == "spatial" else "rgb.cls")

    def acted(observation: dict[str, np.ndarray]) -> np.ndarray:
        frames = {tokens: torch.from_numpy(observation[tokens])[None].float()}
        vectors = {"proprio": torch.from_numpy(observation["proprio"])[None, None]}
        with torch.no_grad():
            return model.act(frames, vectors, {})[0][:, 0].numpy()

    observed = venv.reset()
    assert venv.observation_space[tokens].dtype == np.float16 and observed[tokens].dtype == np.float16
    for step in range(5):
        expected = agent.act({key: value[None] for key, value in raw.items()}, np.array([step == 0]), alone)
        np.testing.assert_allclose(acted({key: value[0] for key, value in observed.items()}), expected, atol=2e-5)
        actions = world.actions(step, (2, 3))
        calls.clear()
        observed, _, dones, infos = venv.step(actions)
        assert calls == [4 if dones.all() else 2]
        raw = env.step(actions[0])[0]
    assert dones.all()
    expected = agent.act({key: value[None] for key, value in raw.items()}, ~alone, alone)
    np.testing.assert_allclose(acted(infos[0]["terminal_observation"]), expected, atol=2e-5)


def test_demonstrations_become_the_transitions_that_would_have_been_stored(
    world: Any, toy_demos: EpisodeDataset, tiny: Backbone, tmp_path: Path
) -> None:
    model = world.policy("tokens", tiny, frames="stack", steps=3)
    transitions = demo_transitions(toy_demos, model, tmp_path, ["front"])
    request = task_of(toy_demos.provenance, "toy")
    tasks = world.tasks(request, 1, toy_demos.provenance["seeds"][0])
    venv = EmbeddedVecEnv(tasks, model)
    observed = venv.reset()
    for step in range(6):
        stored = transitions.observations
        np.testing.assert_allclose(stored["rgb.cls"][step], observed["rgb.cls"][0], atol=2e-3)
        np.testing.assert_array_equal(stored["proprio"][step], observed["proprio"][0])
        observed, rewards, _, _ = venv.step(transitions.actions[step : step + 1])
        np.testing.assert_allclose(transitions.rewards[step, 0], rewards[0], atol=1e-6)
        np.testing.assert_allclose(transitions.next_observations["rgb.cls"][step], observed["rgb.cls"][0], atol=2e-3)
    rows = toy_demos.rows("train")
    assert len(transitions.actions) == len(rows) - len(toy_demos.split("train"))
    with pytest.raises(UnknownName, match="has no camera top"):
        demo_transitions(toy_demos, model, tmp_path, ["top"])
