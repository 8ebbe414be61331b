"""Policies on running episodes: histories, chunks of actions in step, memory, noise, and the same actions as cached."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.datasets.frame_cache import FrameCache
from pixio_robot.datasets.windows import observation_rows
from pixio_robot.encoders.load import Backbone
from pixio_robot.envs.state_actor import StateActor
from pixio_robot.errors import BadInput, CheckpointError
from pixio_robot.policies.agent import Agent, FrameHistory
from pixio_robot.policies.commands import Evaluate, evaluate
from pixio_robot.policies.loaded import LoadedPolicy, load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings

CPU = torch.device("cpu")
SMALL = MlpConfig(layers=[32])
SHORT = TrainingSettings(batch=32, epochs=2)


# histories


def test_recorded_and_running_histories_agree() -> None:
    lengths, steps = [4, 1, 6], 3
    frames = torch.arange(sum(lengths)).float().unsqueeze(1)
    firsts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    recorded = frames[torch.from_numpy(observation_rows(firsts, steps))]
    history = FrameHistory(steps)
    for row, frame in enumerate(frames):
        stacked = history.push(frame[None], reset_mask=np.array([row == firsts[row]]))
        assert torch.equal(stacked[0], recorded[row])


def test_episodes_in_one_batch_start_each_at_its_own_step() -> None:
    history = FrameHistory(3)
    for step in range(5):
        latest = torch.tensor([[float(step)], [10.0 + step]])
        stacked = history.push(latest, reset_mask=np.array([step == 0, step in (0, 3)]))
    assert stacked[:, :, 0].tolist() == [[2.0, 3.0, 4.0], [13.0, 13.0, 14.0]]


def test_a_pushed_history_does_not_change_the_ones_returned_before() -> None:
    history = FrameHistory(2)
    before = history.push(torch.zeros(1, 1), reset_mask=np.array([True]))
    copy = before.clone()
    history.push(torch.ones(1, 1), reset_mask=np.array([False]))
    assert torch.equal(before, copy)


def test_a_look_ahead_gives_what_a_push_would_and_keeps_nothing() -> None:
    history = FrameHistory(2)
    with pytest.raises(BadInput, match="no episode has started"):
        history.peek(torch.zeros(1, 1), np.array([0]))
    history.push(torch.tensor([[1.0], [2.0]]), np.ones(2, bool))
    ahead = history.peek(torch.tensor([[9.0]]), np.array([1]))
    assert ahead[:, :, 0].tolist() == [[2.0, 9.0]]
    pushed = history.push(torch.tensor([[5.0], [9.0]]), np.zeros(2, bool))
    assert torch.equal(pushed[1:], ahead) and pushed[0, :, 0].tolist() == [1.0, 5.0]


# one encoder, live and cached


@pytest.fixture
def trained(clone: Any) -> LoadedPolicy:
    return load_policy(clone("training").last)


def test_an_agent_observes_live_what_it_was_trained_on(
    trained: LoadedPolicy, toy_demos: EpisodeDataset, toy_cache: FrameCache
) -> None:
    """Actions from recorded images, step by step, equal actions from the cache with the data set's history."""
    agent = Agent(trained, CPU)
    images = np.concatenate(list(toy_demos.batches("rgb", 25, 25)))[:25]
    proprio = toy_demos.column("proprio")[25:50]
    active = np.array([True, False])  # a second environment that only waits changes nothing
    live = []
    for step in range(8):
        observations = {"rgb": np.stack([images[step]] * 2), "proprio": np.stack([proprio[step]] * 2)}
        live.append(agent.act(observations, np.array([step == 0] * 2), active)[0])
    history = observation_rows(toy_demos.episode_starts, 3)[25:33]
    tokens = torch.from_numpy(toy_cache.arrays["cls"][history])
    vectors = {"proprio": torch.from_numpy(toy_demos.column("proprio")[history])}
    with torch.inference_mode():
        cached, _ = trained.model.act({"rgb.cls": tokens}, vectors, {})
    assert np.abs(np.stack(live) - cached[:, 0].numpy()).max() < 2e-3


def test_a_batch_of_environments_is_encoded_in_one_call(trained: LoadedPolicy) -> None:
    sizes: list[int] = []
    assert isinstance(trained.vision.encoder, Backbone)
    trained.vision.encoder.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    observations = {"rgb": np.zeros((5, 256, 256, 3), np.uint8), "proprio": np.zeros((5, 3), np.float32)}
    agent = Agent(trained, CPU)
    agent.act(observations, np.ones(5, bool), np.ones(5, bool))
    agent.act(observations, np.zeros(5, bool), np.array([True, False, True, False, False]))
    assert sizes == [5, 2]


@pytest.mark.parametrize("encoder", ["tiny", "none", "state", "cnn"])
def test_a_loaded_policy_acts_as_its_agent(clone: Any, encoder: str) -> None:
    """On one observation, on a batch of them, and step by step, chunks of actions included."""
    loaded = load_policy(
        clone(encoder, SHORT, encoder=encoder, horizon=2, statistics=StatisticsSettings("min_max")).last
    )
    rows = np.arange(25, 31)
    recorded = {key: clone.dataset.read(key, rows) for key in loaded.spec.observation}
    agent, mask = (
        Agent(
            load_policy(
                clone(encoder, SHORT, encoder=encoder, horizon=2, statistics=StatisticsSettings("min_max")).last
            ),
            CPU,
        ),
        np.zeros(1, bool),
    )
    expected = [
        agent.act({key: values[step : step + 1] for key, values in recorded.items()}, mask | (step == 0), ~mask)[0]
        for step in range(6)
    ]
    alone = [loaded.act({key: values[step] for key, values in recorded.items()}) for step in range(6)]
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    assert alone[0].shape == (3,) and len({tuple(each) for each in alone}) > 1
    loaded.reset()
    twice = {key: np.stack([values, values], axis=1) for key, values in recorded.items()}
    batch = [loaded.act({key: values[step] for key, values in twice.items()}) for step in range(6)]
    np.testing.assert_allclose(np.stack(batch), np.stack([alone, alone], axis=1), atol=1e-4)


def test_a_reset_forgets_the_past(trained: LoadedPolicy) -> None:
    world = [{key: values[0] for key, values in each.items()} for each in _world(3)]
    first = [trained.act(each) for each in world]
    trained.reset()
    again = [trained.act(each) for each in world]
    assert np.array_equal(first, again)
    assert not np.array_equal(trained.act(world[0]), first[0]), "without a reset, the history is another one"


def test_observations_that_do_not_fit_are_named(trained: LoadedPolicy) -> None:
    image, proprio = np.zeros((64, 64, 3), np.uint8), np.zeros(3, np.float32)
    for observation, message in (
        ({"rgb": image}, "lacks 'proprio'; it has: rgb"),
        ({"rgb": image[..., 0, 0], "proprio": proprio}, r"'rgb' has shape \(64,\)"),
        ({"rgb": image, "proprio": proprio[None]}, "or none of them"),
        ({"rgb": image, "proprio": np.zeros(5)}, r"'proprio' has shape \(5,\); the policy takes \(3,\)"),
    ):
        with pytest.raises(BadInput, match=message):
            trained.act(observation)
    assert trained.act({"instruction": np.array("reach"), "rgb": image[None], "proprio": proprio[None]}).shape == (1, 3)


# chunks


def _world(steps: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {
            "rgb": random.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8),
            "proprio": random.normal(size=(2, 3)).astype(np.float32),
        }
        for _ in range(steps)
    ]


@pytest.mark.parametrize(("steps", "n_action_steps"), [(1, None), (3, None), (3, 2), (3, 1)])
@pytest.mark.parametrize("encoder", ["tiny", "cnn"])
def test_chunks_are_executed_in_step_and_frames_between_are_not_forgotten(
    clone: Any, encoder: str, steps: int, n_action_steps: int | None
) -> None:
    """Two episodes, the second one restarted out of step, act as predictions of an agent that encodes every frame."""
    others = dict(encoder=encoder, horizon=4, observation=ObservationSettings(steps=steps))
    checkpoint = clone("a", SHORT, **others).last
    acting = Agent(load_policy(checkpoint), CPU, n_action_steps)
    watching = Agent(load_policy(checkpoint), CPU)
    every, since = n_action_steps or 4, np.zeros(2, int)
    chunks = np.zeros((2, 4, 3), np.float32)
    encoded, predictions = 0, 0
    encode, act = acting.model.vision.encode, acting.model.act

    def counting(observations: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        nonlocal encoded
        encoded += len(observations["rgb"])
        return encode(observations)

    def predicting(*arguments: Any) -> Any:
        nonlocal predictions
        predictions += 1
        return act(*arguments)

    acting.model.vision.encode = counting  # type: ignore[method-assign]
    acting.model.act = predicting  # type: ignore[method-assign]
    for step, seen in enumerate(_world(15)):
        reset_mask = np.array([step == 0, step in (0, 6)])
        since[reset_mask] = 0
        fresh = watching.predict(seen, reset_mask, np.ones(2, bool))
        due = since % every == 0
        chunks[due] = fresh[due]
        actions = acting.act(seen, reset_mask, np.ones(2, bool))
        np.testing.assert_allclose(actions, chunks[np.arange(2), since % every], atol=1e-5)
        since += 1
    expected = {(1, None): 4 + 2 + 3, (3, 1): 30, (3, 2): 30}
    if (steps, n_action_steps) in expected:
        assert encoded == expected[steps, n_action_steps]
    else:  # of four frames, the three that the next prediction observes
        assert 20 <= encoded < 30
    assert predictions == len(
        {step for step in range(15) if step % every == 0 or (step >= 6 and (step - 6) % every == 0)}
    )


def test_as_many_actions_are_executed_as_the_horizon_has(clone: Any) -> None:
    loaded = load_policy(clone("a", SHORT, encoder="none", horizon=3).last)
    for wrong in (0, 4, -1):
        with pytest.raises(BadInput, match="horizon is 3; give 1 to 3"):
            Agent(loaded, CPU, wrong)


def test_evaluation_executes_as_many_as_asked(clone: Any) -> None:
    checkpoint = clone("a", SHORT, encoder="state", horizon=4).last
    returns = {}
    for n_action_steps in (None, 4, 1):
        command = Evaluate(checkpoint=str(checkpoint), episodes=2, envs=1, videos=False, n_action_steps=n_action_steps)
        _, evaluation = evaluate(command)
        returns[n_action_steps] = [row.episode_return for row in evaluation.rows]
    assert returns[None] == returns[4] != returns[1]
    with pytest.raises(BadInput, match="give 1 to 4"):
        evaluate(replace(command, n_action_steps=5))


@pytest.mark.parametrize("action", ["none", "min_max"])
def test_an_expert_acts_with_the_first_of_its_chunk(clone: Any, action: str) -> None:
    statistics = StatisticsSettings(action, "none" if action == "none" else "mean_std")
    checkpoint = clone("a", SHORT, encoder="state", horizon=4, statistics=statistics).last
    state = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    first = load_policy(checkpoint).act({"state": state})
    np.testing.assert_allclose(StateActor(checkpoint).act(state), first, atol=1e-6)


def test_reinforcement_does_not_begin_from_chunks(clone: Any) -> None:
    pytest.importorskip("stable_baselines3")
    from pixio_robot.policies.rl.commands import TrainRL, train_rl
    from pixio_robot.policies.rl.settings import AlgorithmSettings

    config = MlpConfig(layers=[16], tanh_output=True)
    checkpoint = clone("a", SHORT, config, encoder="state", horizon=4).last
    command = TrainRL(task="toy/reach", obs="state", init_from=str(checkpoint), steps=100, out="rl")
    command.episode_steps, command.algorithm = 10, AlgorithmSettings(layers=[16], warmup=10)
    with pytest.raises(CheckpointError, match=r"chunks of 4 actions.*horizon=1"):
        train_rl(command)


def test_token_use_reads_the_first_action(clone: Any) -> None:
    from pixio_robot.cortexbench.token_use import token_use

    loaded = load_policy(clone("a", SHORT, horizon=4).last)
    used = token_use(loaded.model, clone.prepare(horizon=4).data)
    assert used is not None and len(used) == 8 and np.isfinite(used).all()
