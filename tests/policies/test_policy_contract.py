"""A policy defined here alone, with recurrent memory and noise: trained, resumed, saved, run on batches with resets."""

from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixio_robot import plugins
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.errors import PixioError
from pixio_robot.policies.agent import Agent
from pixio_robot.policies.evaluate import RolloutSettings, evaluate_policy
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.policy import Batch, Memory, Observation, Policy, PolicySpec
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings

CPU = torch.device("cpu")
SHORT = TrainingSettings(batch=32, epochs=4)
STEPS = ObservationSettings(steps=4)


@dataclass
class NoisyRnnConfig:
    """Architecture of `NoisyRnn`."""

    name: str = "noisy_rnn"
    width: int = 16
    bottleneck: list[int] = field(default_factory=lambda: [8])


class NoisyRnn(Policy):
    """A recurrent policy whose actions depend on noise; training unrolls it over the observation steps."""

    Config = NoisyRnnConfig
    tokens = "cls"

    def __init__(self, config: NoisyRnnConfig, spec: PolicySpec) -> None:
        super().__init__(config, spec)
        self.noise_shape = (spec.horizon, spec.action_dim)
        inputs = sum(shape.dim for shape in spec.tokens.values()) + sum(spec.vectors.values())
        self.cell = nn.GRUCell(inputs, config.width)
        self.head = nn.Linear(config.width, spec.horizon * spec.action_dim)
        self.spread = nn.Parameter(torch.full((spec.action_dim,), 0.1))

    def _inputs(self, observation: Observation) -> Tensor:  # (B, T, E)
        tokens = [observation[f"{name}.cls"].float().mean(2) for name in self.spec.tokens]
        return torch.cat([*tokens, *(observation[name] for name in self.spec.vectors)], dim=-1)

    def _actions(self, hidden: Tensor, noise: Tensor) -> Tensor:
        return self.head(hidden).unflatten(1, self.noise_shape) + self.spread * noise

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = self._inputs(batch.observation)
        hidden = inputs.new_zeros(len(inputs), self.config.width)
        for step in inputs.unbind(1):
            hidden = self.cell(step, hidden)
        actions, there = self._actions(hidden, torch.randn_like(batch.action)), ~batch.action_is_pad
        error = (actions - batch.action)[there]
        return error.square().mean(), {"error": error.abs().mean()}

    def initial_memory(self, batch: int) -> Memory:
        return {"hidden": torch.zeros(batch, self.config.width)}

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        assert noise is not None
        hidden = self.cell(self._inputs(observation)[:, -1], memory["hidden"])
        return self._actions(hidden, noise), {"hidden": hidden}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        others = [each for name, each in self.named_parameters() if name != "spread"]
        return [{"params": others, "lr": lr, "weight_decay": 1e-4}, {"params": [self.spread], "lr": 10 * lr}]


CONFIG = NoisyRnnConfig()


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the policy, as another package would with an entry point."""
    known = metadata.entry_points

    class Entry:
        name, value, group = "noisy_rnn", "tests:NoisyRnn", "pixio_robot.policies"

        def load(self) -> type[Policy]:
            return NoisyRnn

    def entry_points(group: str) -> list[Any]:
        return [*known(group=group), *([Entry()] if group == Entry.group else [])]

    plugins._entries.cache_clear()
    monkeypatch.setattr(plugins.metadata, "entry_points", entry_points)
    yield
    plugins._entries.cache_clear()


def test_it_learns_and_logs_its_numbers(clone: Any) -> None:
    clone("a", replace(SHORT, epochs=30, lr=1e-2), CONFIG, encoder="state", observation=STEPS, horizon=2)
    rows = clone.rows("a")
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["train/error"] < rows[0]["train/error"]


@pytest.mark.parametrize("change", [{}, {"ema": 0.8}, {"precision": "bf16", "optimizer": "adamw"}])
def test_resumed_equals_uninterrupted(clone: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise in training is a function of seed and epoch, as dropout is."""
    others = dict(observation=STEPS, horizon=2, statistics=StatisticsSettings("min_max", "mean_std"))
    clone.check_resumed(monkeypatch, replace(SHORT, **change), CONFIG, **others)


def _world(steps: int, batch: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "rgb": rng.integers(0, 255, (batch, 64, 64, 3), dtype=np.uint8),
            "proprio": rng.normal(size=(batch, 3)).astype(np.float32),
            "noise": rng.normal(size=(batch, 2, 3)).astype(np.float32),
        }
        for _ in range(steps)
    ]


@pytest.mark.parametrize("n_action_steps", [1, 2])
def test_episodes_of_a_batch_keep_their_own_memory(clone: Any, n_action_steps: int) -> None:
    """Two episodes in one batch, one of them restarted, act as each does alone."""
    checkpoint = clone("a", replace(SHORT, epochs=1), CONFIG, observation=ObservationSettings(steps=1), horizon=2).last
    world, resets = _world(7, 2), np.zeros((7, 2), bool)
    resets[0], resets[3, 1] = True, True
    together = Agent(load_policy(checkpoint), CPU, n_action_steps)
    alone = [Agent(load_policy(checkpoint), CPU, n_action_steps) for _ in range(2)]
    for seen, reset in zip(world, resets, strict=True):
        actions = together.act(seen, reset, np.ones(2, bool))
        for row, agent in enumerate(alone):
            expected = agent.act(
                {key: values[row : row + 1] for key, values in seen.items()}, reset[row : row + 1], np.ones(1, bool)
            )
            np.testing.assert_allclose(actions[row], expected[0], atol=1e-5)


def test_memory_matters_and_a_reset_clears_it(clone: Any) -> None:
    loaded = load_policy(clone("a", replace(SHORT, epochs=1), CONFIG, observation=ObservationSettings(steps=1)).last)
    seen = {key: values[0] for key, values in _world(1, 1)[0].items() if key != "noise"}
    agent, one, none = Agent(loaded, CPU), np.ones(1, bool), np.zeros(1, bool)
    still = {**{key: value[None] for key, value in seen.items()}, "noise": np.zeros((1, 1, 3), np.float32)}
    first, second, again = (agent.act(still, reset, one) for reset in (one, none, one))
    assert not np.array_equal(first, second) and np.array_equal(first, again)


def test_noise_is_a_function_of_the_seed(clone: Any) -> None:
    checkpoint = clone("a", replace(SHORT, epochs=1), CONFIG, observation=ObservationSettings(steps=1)).last
    world = [{key: values for key, values in each.items() if key != "noise"} for each in _world(4, 2)]

    def actions(seed: int) -> np.ndarray:
        agent = Agent(load_policy(checkpoint), CPU, seed=seed)
        return np.stack([agent.act(seen, np.full(2, step == 0), np.ones(2, bool)) for step, seen in enumerate(world)])

    assert np.array_equal(actions(0), actions(0)) and not np.array_equal(actions(0), actions(1))


def test_outcomes_do_not_depend_on_how_many_episodes_run_at_once(
    clone: Any, toy_request: TaskSpec, tmp_path: Any
) -> None:
    loaded = load_policy(clone("a", replace(SHORT, epochs=1), CONFIG, observation=ObservationSettings(steps=1)).last)
    request = replace(toy_request, horizon=6)
    plans = plan_episodes(request, 3, first_seed=10_000)
    returns = [
        [
            round(row.episode_return, 4)
            for row in evaluate_policy(loaded, request, plans, CPU, tmp_path / f"{width}", RolloutSettings(width)).rows
        ]
        for width in (1, 3)
    ]
    assert returns[0] == returns[1]


class WrongShape(NoisyRnn):
    """Forgets the axis of the horizon."""

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        actions, memory = super().predict(observation, memory, noise)
        return actions[:, 0], memory


class Failing(NoisyRnn):
    """Raises on its first batch."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        raise KeyError(0)


class Unfinished(Policy):
    """Lacks everything."""

    Config = NoisyRnnConfig


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WrongShape, r"WrongShape\): predict returns \(2, 3\), the contract asks for \(B, H, A\) = \(2, 2, 3\)"),
        (Failing, r"Failing\) fails on a first batch: KeyError: 0"),
        (Unfinished, r"Unfinished\) lacks loss, predict"),
    ],
)
def test_a_mistake_in_a_policy_is_named_before_training(
    kind: type[Policy], message: str, clone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixio_robot.policies.build.find_plugin", lambda group, name: kind)
    with pytest.raises(PixioError, match=message):
        clone("broken", SHORT, CONFIG, observation=STEPS, horizon=2)
