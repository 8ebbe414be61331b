"""A task many times over as stable-baselines3 wants it: seeds that count up, and episodes that can be taken up again.

Shapes: B environments, A action.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from ...envs.registry import TaskSpec
from ...envs.rollout import vector_env
from ...errors import DataError


class TaskVecEnv(VecEnv):
    """Environments that begin their next episode by themselves; observations are dictionaries of arrays (B, ...).

    The k-th episode to begin, counted over all environments, has the seed ``first_seed + k``, so what is trained on is
    a function of the seed and the actions alone. Observations are only valid until the next step.

    Args:
        request: the environment.
        count: B.
        first_seed: of the first episode.
        processes: run each in a spawned worker, which pays when images are drawn.
    """

    def __init__(self, request: TaskSpec, count: int, first_seed: int, processes: bool) -> None:
        self._envs = vector_env(request, count, processes)
        self.request, self.first_seed = request, first_seed
        self.begun, self.steps = 0, 0  # episodes; environment steps, over all environments
        self._seeds_now = [0] * count
        self._taken: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._returns = np.zeros(count)
        self._actions = np.zeros((count, *self._envs.single_action_space.shape), np.float32)  # type: ignore[misc]
        super().__init__(count, self._envs.single_observation_space, self._envs.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in every environment."""
        return self._begin(np.ones(self.num_envs, bool))

    def _begin(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        seeds: list[int | None] = [None] * self.num_envs
        for row in np.flatnonzero(rows):
            seeds[row] = self._seeds_now[row] = self.first_seed + self.begun
            self.begun += 1
            self._taken[row], self._returns[row] = [], 0.0
        return self._envs.reset(seed=seeds, options={"reset_mask": rows})[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions (B, A) in [-1, 1].

        Raises:
            DataError: if one is not finite, with the step.
        """
        if not np.isfinite(actions).all():
            self._stop("an action", actions)
        self._actions = np.asarray(actions, np.float32).copy()

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step; ended environments give the first observation of their next episode.

        Their last one is ``infos[row]["terminal_observation"]``, as stable-baselines3 has it.

        Raises:
            DataError: if a reward is not finite, with the step.
        """
        observations, rewards, terminated, truncated, told = self._envs.step(self._actions)
        if not np.isfinite(rewards).all():
            self._stop("a reward", rewards)
        self.steps += self.num_envs
        self._returns += rewards
        infos: list[dict[str, Any]] = []
        for row in range(self.num_envs):
            self._taken[row].append(self._actions[row])
            success = bool(told["success"][row])
            infos.append({"success": success, "is_success": success, "score": float(told["score"][row])})
        ended = terminated | truncated
        if ended.any():
            for row in np.flatnonzero(ended).tolist():
                infos[row]["terminal_observation"] = {key: value[row].copy() for key, value in observations.items()}
                infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
                infos[row]["episode"] = {"r": float(self._returns[row]), "l": len(self._taken[row])}
            observations = self._begin(ended)
        return observations, np.asarray(rewards, np.float32), ended, infos

    def _stop(self, what: str, values: np.ndarray) -> None:
        row = int(np.flatnonzero(~np.isfinite(values.reshape(self.num_envs, -1)).all(axis=1))[0])
        raise DataError(
            f"{what} is not finite in environment {row} of {self.request.task} (seed {self._seeds_now[row]}, its step "
            f"{len(self._taken[row])}) after {self.steps} environment steps: {values[row]}"
        )

    def under_way(self) -> dict[str, np.ndarray]:
        """Return what `take_up` needs: seeds, lengths and actions of the present episodes, and their returns so far."""
        actions = [np.stack(taken) if taken else self._actions[:0] for taken in self._taken]
        return {
            "begun": np.array([self.begun, self.steps]),
            "seeds": np.array(self._seeds_now),
            "lengths": np.array([len(taken) for taken in self._taken]),
            "actions": np.concatenate(actions),
            "returns": self._returns.copy(),
        }

    def take_up(self, episodes: dict[str, np.ndarray]) -> None:
        """Bring every environment to where `under_way` left it, by repeating the actions from its seed.

        Raises:
            DataError: if the simulator does not repeat itself.
        """
        lengths, seeds = episodes["lengths"], episodes["seeds"].tolist()
        actions = np.split(episodes["actions"], np.cumsum(lengths)[:-1])
        returns, longest = np.zeros(self.num_envs), int(lengths.max())
        for step in range(longest + 1):
            due = lengths == longest - step
            if due.any() or step == 0:
                self._envs.reset(seed=seeds, options={"reset_mask": due if step else np.ones(self.num_envs, bool)})
                returns[due] = 0
            if step < longest:
                repeated = np.zeros_like(self._actions)
                for row, taken in enumerate(actions):
                    place = step - (longest - len(taken))
                    if place >= 0:
                        repeated[row] = taken[place]
                returns += self._envs.step(repeated)[1]
        if not np.allclose(returns, episodes["returns"], rtol=1e-6, atol=1e-6):
            raise DataError(
                f"{self.request.task}: repeating the actions of the episodes under way gives returns {returns}, they "
                f"had {episodes['returns']}; another simulator version cannot go on with this run"
            )
        self.begun, self.steps = (int(number) for number in episodes["begun"])
        self._seeds_now, self._returns = seeds, episodes["returns"].copy()
        self._taken = [list(taken) for taken in actions]

    def close(self) -> None:
        """End the workers."""
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
