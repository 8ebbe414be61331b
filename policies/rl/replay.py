"""The replay buffer: transitions with embedded observations, mixed with demonstrations; images are shifted.

Shapes: B batch, F transitions of demonstrations, T observation steps, S side of small images [px].
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from torch import Tensor

from ...errors import BadInput
from ..pixel_network import random_shift
from ..vision import PIXELS
from .settings import AlgorithmSettings


@dataclass(frozen=True)
class Transitions:
    """Steps of demonstrations as the learner would have stored them; the last step of each has no next one."""

    observations: dict[str, np.ndarray]  # (F, ...)
    next_observations: dict[str, np.ndarray]
    actions: np.ndarray  # (F, A)
    rewards: np.ndarray  # (F, 1)


@dataclass(frozen=True)
class ReplayOptions:
    """What a buffer adds to that of stable-baselines3."""

    demos: Transitions | None = None
    demo_ratio: float = 0.0  # share of a batch from demonstrations; 0.5 in RLPD (Ball et al. 2023, arXiv 2302.02948)
    shift: bool = False  # shift small images by a few pixels, as DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645)


class MixedReplay(DictReplayBuffer):
    """The buffer of stable-baselines3, with a share of each batch from demonstrations and DrQ's shifts of images.

    The images before and after a step are shifted independently. There is no augmentation of tokens.
    """

    def __init__(self, *arguments: Any, options: ReplayOptions = ReplayOptions(), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.options = options

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Return a batch of B transitions, `DictReplayBufferSamples`; the base class declares another tuple."""
        demos = self.options.demos
        count = 0 if demos is None else round(self.options.demo_ratio * batch_size)
        batch = super().sample(batch_size - count, env)
        if demos is not None and count:
            batch = _joined(batch, self._sample_demos(demos, count))
        if self.options.shift:
            for observations in (batch.observations, batch.next_observations):
                observations[PIXELS] = _shifted(observations[PIXELS])
        return batch

    def _sample_demos(self, demos: Transitions, count: int) -> DictReplayBufferSamples:
        rows = np.random.randint(0, len(demos.actions), size=count)
        return DictReplayBufferSamples(
            observations={key: self.to_torch(values[rows]) for key, values in demos.observations.items()},
            actions=self.to_torch(demos.actions[rows]),
            next_observations={key: self.to_torch(values[rows]) for key, values in demos.next_observations.items()},
            dones=torch.zeros(count, 1, device=self.device),
            rewards=self.to_torch(demos.rewards[rows]),
        )


def _joined(first: DictReplayBufferSamples, second: DictReplayBufferSamples) -> DictReplayBufferSamples:
    def join(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return {key: torch.cat([one[key], other[key]]) for key in one}
        return None if one is None else torch.cat([one, other])

    return DictReplayBufferSamples(*(join(one, other) for one, other in zip(first, second, strict=True)))


def _shifted(images: Tensor) -> Tensor:
    """Shift images (B, T, S, S, 3 * cameras) uint8, all frames of a sample by the same pixels."""
    batch, steps, side, _, channels = images.shape
    stacked = images.permute(0, 1, 4, 2, 3).reshape(batch, steps * channels, side, side).float()
    return random_shift(stacked).to(torch.uint8).view(batch, steps, channels, side, side).permute(0, 1, 3, 4, 2)


def require_memory(space: spaces.Dict, actions: int, settings: AlgorithmSettings) -> int:
    """Return the size of an algorithm's buffer [bytes], or refuse one that does not fit.

    Args:
        space: of the observations.
        actions: numbers of an action.

    Raises:
        BadInput: with the memory that is needed and the memory that is free.
    """
    each = sum(int(np.prod(part.shape or ())) * np.dtype(part.dtype).itemsize for part in space.values())
    capacity, copies = (settings.rollout, 1) if settings.name == "ppo" else (settings.buffer, 2)  # the next one too
    size, free = capacity * (copies * each + 4 * actions + 12), psutil.virtual_memory().available
    if size > 0.9 * free:
        raise BadInput(
            f"a buffer of {capacity:,} steps with {each:,} bytes an observation needs {size / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; lower algorithm.buffer (or algorithm.rollout), use obs=tokens, or another "
            "fusion="
        )
    return size
