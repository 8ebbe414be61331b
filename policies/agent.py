"""A policy on running episodes: one encoder call a step, history, recurrent memory and action queue for each episode.

Shapes: B batch of episodes, T observation steps, H horizon, A action.
"""

from collections.abc import Mapping
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ..action_queue import ActionQueue, check_n_action_steps
from ..envs.rollout import EPISODE_SEED
from ..errors import BadInput
from ..hardware import combine, threads
from .loaded import LoadedPolicy
from .policy import Memory

NOISE = "noise"  # in observations, instead of drawing it; for comparisons


class FrameHistory:
    """The last T frames of several running episodes; an episode that starts repeats its first frame.

    Args:
        steps: T.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.frames: Tensor | None = None  # (B, T, ...); None before the first

    def peek(self, latest: Tensor, rows: np.ndarray) -> Tensor:
        """Return what `push` would give for the running episodes `rows` (R,), (R, T, ...), and keep nothing.

        Args:
            latest: (R, ...), the latest frames of these episodes.
        """
        if self.frames is None:
            raise BadInput("no episode has started; push its first frame before a look ahead")
        return torch.cat([self.frames[torch.from_numpy(rows)][:, 1:], latest.unsqueeze(1)], dim=1)

    def push(self, latest: Tensor, reset_mask: np.ndarray) -> Tensor:
        """Add the latest frames (B, ...) and return (B, T, ...); where `reset_mask`, the past is forgotten."""
        fresh = latest.unsqueeze(1).expand(-1, self.steps, *latest.shape[1:])
        if self.frames is None or self.frames.shape[0] != len(latest):
            self.frames = fresh.clone()
            return self.frames
        mask = torch.as_tensor(np.asarray(reset_mask), device=latest.device).view(-1, 1, *[1] * (latest.ndim - 1))
        self.frames = torch.where(mask, fresh, torch.cat([self.frames[:, 1:], latest.unsqueeze(1)], dim=1))
        return self.frames


class Agent:
    """A policy on a batch of episodes.

    Args:
        loaded: the policy.
        device: where to compute.
        n_action_steps: actions of each chunk that are executed before the policy predicts again; None is all of them.
        seed: of the noise of policies that start from noise.

    Raises:
        BadInput: if the policy's chunks have fewer.
        CheckpointError: if its depth head is missing or is not the one of the training.
    """

    def __init__(
        self, loaded: LoadedPolicy, device: torch.device, n_action_steps: int | None = None, seed: int = 0
    ) -> None:
        self.loaded, self.device = loaded, device
        self.model = loaded.model.to(device).eval()
        self.model.vision.place(device)
        if loaded.vision.spec.depth_head is not None:
            loaded.vision.load_depth_head()
        self.n_action_steps = check_n_action_steps(n_action_steps, loaded.spec.horizon)
        self._histories: dict[str, FrameHistory] = {}
        self._queues: list[ActionQueue] = []
        self._memory: Memory = {}
        self._seed, self._started = seed, 0  # episodes that started
        self._episodes = self._steps = np.zeros(0, np.int64)  # (B,) number of the episode, and step in it
        self.seconds = {"encoding": 0.0, "policy": 0.0}

    @property
    def observation_steps(self) -> int:
        """How many frames a prediction observes."""
        return self.loaded.spec.observation_steps

    def act(
        self, observations: Mapping[str, np.ndarray], reset_mask: np.ndarray, active_mask: np.ndarray
    ) -> np.ndarray:
        """Return the actions of this step, of chunks that were predicted now or earlier, (B, A) in the data's units.

        Args:
            observations: each (B, ...).
            reset_mask: (B,) bool, episodes at their first step.
            active_mask: (B,) bool, episodes whose action matters; only their images are encoded, and only those that
                the next prediction observes.
        """
        self._count_steps(reset_mask)
        if len(self._queues) != len(reset_mask):
            self._queues = [ActionQueue(self.n_action_steps) for _ in reset_mask]
        for queue in np.array(self._queues, object)[reset_mask]:
            queue.clear()
        waits = np.array([len(queue) for queue in self._queues])
        recurrent = bool(self._memory) or bool(self.model.policy.initial_memory(1))
        needed = active_mask & ((waits < self.observation_steps) | recurrent)
        chunks = np.zeros((len(waits), self.loaded.spec.horizon, self.loaded.spec.action_dim), np.float32)
        if recurrent or (active_mask & (waits == 0)).any():
            chunks = self._predict(observations, reset_mask, needed)
        elif needed.any():
            self._observe(observations, reset_mask, needed)
        actions = []
        for queue, chunk in zip(self._queues, chunks, strict=True):
            if not len(queue):
                queue.put(chunk, queue.step)
            actions.append(queue.pop().action)
        return np.stack(actions)

    def predict(
        self, observations: Mapping[str, np.ndarray], reset_mask: np.ndarray, active_mask: np.ndarray
    ) -> np.ndarray:
        """Return chunks of actions from this step on, (B, H, A) float32; arguments are those of `act`."""
        self._count_steps(reset_mask)
        return self._predict(observations, reset_mask, active_mask)

    @torch.inference_mode()
    def _predict(
        self, observations: Mapping[str, np.ndarray], reset_mask: np.ndarray, active_mask: np.ndarray
    ) -> np.ndarray:
        observed = self._observe(observations, reset_mask, active_mask)
        began = perf_counter()
        vectors = {key: observed.pop(key) for key in self.loaded.spec.vectors}
        with threads(1):
            memory, noise = self._memory_of(reset_mask), self._noise(observations)
            actions, self._memory = self.model.act(observed, vectors, memory, noise)
        self.seconds["policy"] += perf_counter() - began
        return actions.cpu().numpy()

    @torch.inference_mode()
    def _observe(
        self, observations: Mapping[str, np.ndarray], reset_mask: np.ndarray, active_mask: np.ndarray
    ) -> dict[str, Tensor]:
        """Encode the latest frames and return all that are observed, (B, T, ...) each."""
        began = perf_counter()
        vision, spec = self.model.vision, self.loaded.spec
        seen = {key: np.asarray(observations[key])[active_mask] for key in vision.keys}
        if "points" in observations:
            seen["points"] = np.asarray(observations["points"])[active_mask]
        active = torch.from_numpy(np.asarray(active_mask))
        latest = {name: scatter_rows(values, active) for name, values in vision.encode(seen).items()}
        latest |= {key: _tensor(observations[key], self.device) for key in spec.vectors}
        observed = {
            name: self._histories.setdefault(name, FrameHistory(self.observation_steps)).push(values, reset_mask)
            for name, values in latest.items()
        }
        self.seconds["encoding"] += perf_counter() - began
        return observed

    def _memory_of(self, reset_mask: np.ndarray) -> Memory:
        """Return the memory of each episode, that of its start where it starts."""
        fresh = {
            name: values.to(self.device) for name, values in self.model.policy.initial_memory(len(reset_mask)).items()
        }
        mask = torch.from_numpy(np.asarray(reset_mask)).to(self.device)
        kept = {}
        for name, values in fresh.items():
            old = self._memory.get(name)
            if old is None or old.shape != values.shape:
                kept[name] = values
            else:
                kept[name] = torch.where(mask.view(-1, *[1] * (values.ndim - 1)), values, old)
        return kept

    def _count_steps(self, reset_mask: np.ndarray) -> None:
        fresh = np.asarray(reset_mask)
        if len(self._steps) != len(fresh):
            self._steps, self._episodes = np.zeros((2, len(fresh)), np.int64)
            fresh = np.ones(len(fresh), bool)
        self._steps = np.where(fresh, 0, self._steps + 1)
        self._episodes[fresh] = self._started + np.arange(fresh.sum())
        self._started += int(fresh.sum())

    def _noise(self, observations: Mapping[str, np.ndarray]) -> Tensor | None:
        """Return the noise of this step, (B, *noise_shape): a function of seed, episode and step in the episode."""
        shape = self.model.policy.noise_shape
        if shape is None:
            return None
        if NOISE in observations:
            return _tensor(observations[NOISE], self.device)
        episodes = observations.get(EPISODE_SEED, self._episodes)
        seeds = [combine(self._seed, int(each), int(step)) for each, step in zip(episodes, self._steps, strict=True)]
        rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32)).to(device)


def scatter_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Return values of the episodes of `mask`, (B,) bool, in their rows; zeros in the others'."""
    placed = values.new_zeros(len(mask), *values.shape[1:])
    placed[mask.to(values.device)] = values
    return placed
