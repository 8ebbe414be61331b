"""The Control Suite's reacher_easy: sampling-based model-predictive control on the task's model, without training.

The cross-entropy method (Rubinstein 1999; for control e.g. Howell et al. 2022, arXiv 2212.00541) over piecewise linear
plans, rolled out by `mujoco.rollout`. The reward is the suite's, made dense where it is flat.

Shapes: N plans, H steps of the horizon, K knots, U actuators.
"""

from typing import Any

import numpy as np

_PLANS, _HORIZON, _KNOTS = 32, 8, 4  # N, H, K
_ITERATIONS = 2
_ELITES = 6  # plans that the next distribution is fitted to
_FIRST_SPREAD = 0.6  # standard deviation of actions in the first iteration
_LINK = 0.12  # length of both links [m]


class ReacherExpert:
    """Plans the actions of an episode at every step.

    Args:
        model: the task's MuJoCo model.
        substeps: physics steps in a step of the task.
        seed: of the samples.
    """

    def __init__(self, model: Any, substeps: int, seed: int) -> None:
        import mujoco
        from mujoco import rollout

        self._mujoco, self._rollout = mujoco, rollout
        self.model, self.substeps = model, substeps
        self._data, self._rng = mujoco.MjData(model), np.random.default_rng(seed)
        self._plan = np.zeros((_HORIZON, model.nu))

    def action(self, data: Any) -> np.ndarray:
        """Return the next action, (U,) in [-1, 1], for the simulator's present state."""
        self._improve(data)
        chosen, self._plan = self._plan[0], np.concatenate([self._plan[1:], self._plan[-1:]])
        return chosen

    def _improve(self, data: Any) -> None:
        kind = self._mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(self._mujoco.mj_stateSize(self.model, kind))
        self._mujoco.mj_getState(self.model, data, state, kind)
        at = np.linspace(0, _HORIZON - 1, _KNOTS)
        middle = np.stack([np.interp(at, np.arange(_HORIZON), column) for column in self._plan.T], axis=1)
        spread = np.full_like(middle, _FIRST_SPREAD)
        for _ in range(_ITERATIONS):
            noise = self._rng.standard_normal((_PLANS, *middle.shape))
            noise[0] = 0  # the current plan stays a candidate
            knots = np.clip(middle + spread * noise, -1, 1)
            plans = _between(at, knots)
            returns = self._returns(state, plans)
            elites = knots[np.argsort(-returns, kind="stable")[:_ELITES]]
            middle, spread = elites.mean(axis=0), elites.std(axis=0) + 0.02
            self._plan = plans[int(returns.argmax())]

    def _returns(self, state: np.ndarray, plans: np.ndarray) -> np.ndarray:
        low, high = self.model.actuator_ctrlrange.T
        controls = (low + high) / 2 + plans * (high - low) / 2
        held = np.repeat(controls, self.substeps, axis=1)
        states, _ = self._rollout.rollout(
            self.model, [self._data], initial_state=np.tile(state, (len(plans), 1)), control=held
        )
        qpos = states[:, self.substeps - 1 :: self.substeps, 1 : 1 + self.model.nq]
        return self._reward(qpos).sum(axis=1)

    def _reward(self, qpos: np.ndarray) -> np.ndarray:
        """Return the rewards (N, H) of joint angles (N, H, 2): 1 inside the target, minus the distance to it."""
        shoulder, wrist = qpos[..., 0], qpos[..., 0] + qpos[..., 1]
        tip = _LINK * np.stack([np.cos(shoulder) + np.cos(wrist), np.sin(shoulder) + np.sin(wrist)], axis=-1)
        target = self.model.geom("target")
        distance = np.linalg.norm(tip - target.pos[:2], axis=-1)
        return (distance < 0.9 * target.size[0]) - distance


def _between(at: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return plans (N, H, U) by linear interpolation between knots (N, K, U) at steps (K,)."""
    steps = np.arange(_HORIZON)
    right = np.clip(np.searchsorted(at, steps, side="right"), 1, len(at) - 1)
    share = ((steps - at[right - 1]) / (at[right] - at[right - 1]))[None, :, None]
    return (1 - share) * knots[:, right - 1] + share * knots[:, right]
