"""Experts for the Control Suite: sampling model-predictive control on the task's own model, with nothing trained.

The cross-entropy method (Rubinstein 1999; for control e.g. Howell et al. 2022, arXiv 2212.00541) over piecewise linear
plans, rolled out by `mujoco.rollout`. Rewards are the suite's, made dense where they are flat, and computed from states
and sensors alone.

Shapes: N plans, H steps of the horizon, K knots, U actuators.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import UnknownName

_ELITES = 6  # plans that the next distribution is fitted to
_FIRST_SPREAD = 0.6  # of actions, before anything is known


class Trajectories(NamedTuple):
    """What rolled-out plans come to."""

    qpos: np.ndarray  # (N, H, nq)
    qvel: np.ndarray  # (N, H, nv)
    sensors: np.ndarray  # (N, H, sensordata)


Reward = Callable[[Any, Trajectories], np.ndarray]  # (model, trajectories) to (N, H)


class Search(NamedTuple):
    """How hard an expert thinks."""

    plans: int  # N
    horizon: int  # H, steps of the task
    iterations: int
    replan: int  # actions taken before it thinks again
    knots: int


def _sensor(model: Any, name: str, trajectories: Trajectories, size: int) -> np.ndarray:
    start = int(model.sensor(name).adr[0])
    return trajectories.sensors[..., start : start + size]


def _linear(values: np.ndarray, least: float, margin: float, at_margin: float = 0.0) -> np.ndarray:
    """Return 1 from `least` on, falling linearly below, as dm_control's tolerance does, but without its floor at 0."""
    return np.minimum(1.0, 1.0 - (1.0 - at_margin) * (least - values) / margin)


def _standing(model: Any, seen: Trajectories) -> np.ndarray:
    height = seen.qpos[..., 0] + 1.3  # the torso's body lies 1.3 m up in the model
    upright = np.cos(seen.qpos[..., 2])
    return (3 * np.clip(_linear(height, 1.2, 1.2), -1, 1) + (1 + upright) / 2) / 4


def _walking(speed: float) -> Reward:
    def reward(model: Any, seen: Trajectories) -> np.ndarray:
        forward = _sensor(model, "torso_subtreelinvel", seen, 3)[..., 0]
        return _standing(model, seen) * (5 * np.clip(_linear(forward, speed, speed), -0.2, 1) + 1) / 6

    return reward


def _running(model: Any, seen: Trajectories) -> np.ndarray:
    return _sensor(model, "torso_subtreelinvel", seen, 3)[..., 0] / 10


def _reaching(model: Any, seen: Trajectories) -> np.ndarray:
    shoulder, wrist = seen.qpos[..., 0], seen.qpos[..., 0] + seen.qpos[..., 1]
    tip = 0.12 * np.stack([np.cos(shoulder) + np.cos(wrist), np.sin(shoulder) + np.sin(wrist)], axis=-1)
    distance = np.linalg.norm(tip - model.geom("target").pos[:2], axis=-1)
    return (distance < 0.9 * model.geom("target").size[0]) - distance


_TASKS: dict[str, tuple[Reward, Search]] = {
    "reacher_easy": (_reaching, Search(plans=32, horizon=8, iterations=2, replan=1, knots=4)),
    "walker_stand": (_standing, Search(plans=32, horizon=13, iterations=2, replan=1, knots=5)),
    "walker_walk": (_walking(1.0), Search(plans=48, horizon=20, iterations=2, replan=1, knots=8)),
    "cheetah_run": (_running, Search(plans=48, horizon=25, iterations=2, replan=2, knots=10)),
}


class SamplingExpert:
    """Plans the actions of an episode of one of the tasks it knows.

    Args:
        task: e.g. "walker_walk".
        model: of the task.
        substeps: physics steps of a step of the task.
        seed: of its samples.

    Raises:
        UnknownName: for a task without a reward here.
    """

    def __init__(self, task: str, model: Any, substeps: int, seed: int) -> None:
        if task not in _TASKS:
            raise UnknownName(f"dmc/{task} has no expert; there are experts for: {', '.join(_TASKS)}")
        import mujoco
        from mujoco import rollout

        self._mujoco, self._rollout = mujoco, rollout
        self.reward, self.search = _TASKS[task]
        self.model, self.substeps = model, substeps
        self._data, self._rng = mujoco.MjData(model), np.random.default_rng(seed)
        self._plan, self._taken = np.zeros((self.search.horizon, model.nu)), 0

    def action(self, data: Any) -> np.ndarray:
        """Return the next action, (U,) in [-1, 1], for the simulator's present state."""
        if self._taken % self.search.replan == 0:
            self._improve(data)
        self._taken += 1
        chosen, self._plan = self._plan[0], np.concatenate([self._plan[1:], self._plan[-1:]])
        return chosen

    def _improve(self, data: Any) -> None:
        search, kind = self.search, self._mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(self._mujoco.mj_stateSize(self.model, kind))
        self._mujoco.mj_getState(self.model, data, state, kind)
        at = np.linspace(0, search.horizon - 1, search.knots)
        middle = np.stack([np.interp(at, np.arange(search.horizon), column) for column in self._plan.T], axis=1)
        spread = np.full_like(middle, _FIRST_SPREAD)
        for _ in range(search.iterations):
            noise = self._rng.standard_normal((search.plans, *middle.shape))
            noise[0] = 0  # what was best so far competes
            knots = np.clip(middle + spread * noise, -1, 1)
            plans = self._between(at, knots)
            returns = self._returns(state, plans)
            elites = knots[np.argsort(-returns, kind="stable")[:_ELITES]]
            middle, spread = elites.mean(axis=0), elites.std(axis=0) + 0.02
            self._plan = plans[int(returns.argmax())]

    def _between(self, at: np.ndarray, knots: np.ndarray) -> np.ndarray:
        """Return plans (N, H, U) that are linear between knots (N, K, U)."""
        steps = np.arange(self.search.horizon)
        right = np.clip(np.searchsorted(at, steps, side="right"), 1, len(at) - 1)
        share = ((steps - at[right - 1]) / (at[right] - at[right - 1]))[None, :, None]
        return (1 - share) * knots[:, right - 1] + share * knots[:, right]

    def _returns(self, state: np.ndarray, plans: np.ndarray) -> np.ndarray:
        low, high = self.model.actuator_ctrlrange.T
        controls = (low + high) / 2 + plans * (high - low) / 2
        held = np.repeat(controls, self.substeps, axis=1)
        states, sensors = self._rollout.rollout(
            self.model, [self._data], initial_state=np.tile(state, (len(plans), 1)), control=held
        )
        last = slice(self.substeps - 1, None, self.substeps)
        nq, nv = self.model.nq, self.model.nv
        seen = Trajectories(states[:, last, 1 : 1 + nq], states[:, last, 1 + nq : 1 + nq + nv], sensors[:, last])
        return self.reward(self.model, seen).sum(axis=1)
