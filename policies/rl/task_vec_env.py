"""A task as a vector environment of stable-baselines3, with seeds that count up and episodes that can be restored.

Shapes: B environments, A action.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from ...envs.registry import TaskSpec
from ...envs.rollout import vector_env
from ...errors import DataError


class TaskVecEnv(VecEnv):
    """Environments that reset themselves at the end of an episode; observations are dictionaries of arrays (B, ...).

    The k-th episode that starts, counted over all environments, has the seed ``first_seed + k``. Training episodes are
    therefore a function of the seed and the actions alone. Observations are only valid until the next step.

    Args:
        request: the environment.
        count: B.
        first_seed: of the first episode.
        processes: run each environment in a spawned process, which is faster when images are rendered.
    """

    def __init__(self, request: TaskSpec, count: int, first_seed: int, processes: bool) -> None:
        self._envs = vector_env(request, count, processes)
        self.request, self.first_seed = request, first_seed
        self.episodes_started, self.steps = 0, 0  # over all environments
        self._seeds = [0] * count  # of the running episodes
        self._past_actions: list[list[np.ndarray]] = [[] for _ in range(count)]  # of the running episodes
        self._returns = np.zeros(count)
        self._actions = np.zeros((count, *self._envs.single_action_space.shape), np.float32)  # type: ignore[misc]
        super().__init__(count, self._envs.single_observation_space, self._envs.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every environment."""
        return self._start(np.ones(self.num_envs, bool))

    def _start(self, reset_mask: np.ndarray) -> dict[str, np.ndarray]:
        seeds: list[int | None] = [None] * self.num_envs
        for row in np.flatnonzero(reset_mask):
            seeds[row] = self._seeds[row] = self.first_seed + self.episodes_started
            self.episodes_started += 1
            self._past_actions[row], self._returns[row] = [], 0.0
        return self._envs.reset(seed=seeds, options={"reset_mask": reset_mask})[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions (B, A) in [-1, 1] of the next `step_wait`.

        Raises:
            DataError: if one is not finite, with the step.
        """
        if not np.isfinite(actions).all():
            self._raise_not_finite("an action", actions)
        self._actions = np.asarray(actions, np.float32).copy()

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all environments; those whose episode ended return the first observation of their next episode.

        The last observation of an ended episode is ``infos[row]["terminal_observation"]``, as in stable-baselines3.

        Raises:
            DataError: if a reward is not finite, with the step.
        """
        observations, rewards, terminated, truncated, info = self._envs.step(self._actions)
        if not np.isfinite(rewards).all():
            self._raise_not_finite("a reward", rewards)
        self.steps += self.num_envs
        self._returns += rewards
        infos: list[dict[str, Any]] = []
        for row in range(self.num_envs):
            self._past_actions[row].append(self._actions[row])
            success = bool(info["success"][row])
            infos.append({"success": success, "is_success": success, "score": float(info["score"][row])})
        ended = terminated | truncated
        if ended.any():
            for row in np.flatnonzero(ended).tolist():
                infos[row]["terminal_observation"] = {key: value[row].copy() for key, value in observations.items()}
                infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
                infos[row]["episode"] = {"r": float(self._returns[row]), "l": len(self._past_actions[row])}
            observations = self._start(ended)
        return observations, np.asarray(rewards, np.float32), ended, infos

    def _raise_not_finite(self, what: str, values: np.ndarray) -> None:
        row = int(np.flatnonzero(~np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1))[0])
        raise DataError(
            f"{what} is not finite in environment {row} of {self.request.task} (seed {self._seeds[row]}, its step "
            f"{len(self._past_actions[row])}) after {self.steps} environment steps: {values[row]}"
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return what `load_state_dict` needs: counters, and seeds, actions and returns of the running episodes."""
        actions = [np.stack(past) if past else self._actions[:0] for past in self._past_actions]
        return {
            "counts": np.array([self.episodes_started, self.steps]),
            "seeds": np.array(self._seeds),
            "lengths": np.array([len(past) for past in self._past_actions]),
            "actions": np.concatenate(actions),
            "returns": self._returns.copy(),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore every environment from `state_dict()`, by repeating the actions of its episode from its seed.

        Raises:
            DataError: if the simulator gives other rewards now.
        """
        lengths, seeds = state["lengths"], state["seeds"].tolist()
        actions = np.split(state["actions"], np.cumsum(lengths)[:-1])
        returns, longest = np.zeros(self.num_envs), int(lengths.max())
        for step in range(longest + 1):
            reset_mask = lengths == longest - step  # so that all environments end together
            if reset_mask.any() or step == 0:
                every = reset_mask if step else np.ones(self.num_envs, bool)
                self._envs.reset(seed=seeds, options={"reset_mask": every})
                returns[reset_mask] = 0
            if step < longest:
                repeated = np.zeros_like(self._actions)
                for row, past in enumerate(actions):
                    place = step - (longest - len(past))
                    if place >= 0:
                        repeated[row] = past[place]
                returns += self._envs.step(repeated)[1]
        if not np.allclose(returns, state["returns"], rtol=1e-6, atol=1e-6):
            raise DataError(
                f"{self.request.task}: repeating the actions of the running episodes gives returns {returns}, they had "
                f"{state['returns']}; this run cannot resume with another simulator version"
            )
        self.episodes_started, self.steps = (int(number) for number in state["counts"])
        self._seeds, self._returns = seeds, state["returns"].copy()
        self._past_actions = [list(past) for past in actions]

    def close(self) -> None:
        """End the processes of the environments."""
        self._envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of each environment."""
        return list(self._envs.get_attr(attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of every environment."""
        self._envs.set_attr(attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of every environment."""
        return list(self._envs.call(method_name, *method_args, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return that none is wrapped."""
        return [False] * self.num_envs
