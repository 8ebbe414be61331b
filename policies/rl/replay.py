"""What is replayed: transitions with embedded observations, demonstrations among them, images moved a little.

Shapes: B batch, F transitions of demonstrations, T frames of history, S side of small images [px].
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
from ..pixel_network import moved
from .embedded_env import TOKENS
from .settings import AlgorithmSettings


@dataclass
class Transitions:
    """Steps of demonstrations as the learner would have stored them; the last of each, without a next, is left out."""

    observations: dict[str, np.ndarray]  # (F, ...)
    next_observations: dict[str, np.ndarray]
    actions: np.ndarray  # (F, A)
    rewards: np.ndarray  # (F, 1)


class Replay(DictReplayBuffer):
    """stable-baselines3's buffer, with a share of each batch from demonstrations and DrQ's shifts for images.

    Args:
        demos: demonstrations; None for none.
        demo_ratio: share of a batch that they are; 0.5 is RLPD's (Ball et al. 2023, arXiv 2302.02948).
        shift: move small images by a few pixels, those before and after a step by their own (DrQ-v2, Yarats et al.
            2021, arXiv 2107.09645). There is nothing like it for tokens.
    """

    def __init__(
        self,
        *arguments: Any,
        demos: Transitions | None = None,
        demo_ratio: float = 0.0,
        shift: bool = False,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.demos, self.demo_ratio, self.shift = demos, demo_ratio, shift

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Return a batch of B transitions, `DictReplayBufferSamples`; the base class promises another tuple."""
        shown = 0 if self.demos is None else round(self.demo_ratio * batch_size)
        batch = super().sample(batch_size - shown, env)
        if self.demos is not None and shown:
            batch = _joined(batch, self._of_demos(self.demos, shown))
        if self.shift:
            for observations in (batch.observations, batch.next_observations):
                observations[TOKENS] = _shifted(observations[TOKENS])
        return batch

    def _of_demos(self, demos: Transitions, count: int) -> DictReplayBufferSamples:
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
    """Move images (B, T, S, S, 3 a camera) uint8, all frames of a sample alike."""
    batch, history, side, _, channels = images.shape
    stacked = images.permute(0, 1, 4, 2, 3).reshape(batch, history * channels, side, side).float()
    return moved(stacked).to(torch.uint8).view(batch, history, channels, side, side).permute(0, 1, 3, 4, 2)


def require_memory(space: spaces.Dict, actions: int, settings: AlgorithmSettings) -> int:
    """Return the size of an algorithm's buffer [bytes], or refuse one that does not fit.

    Args:
        space: of the observations.
        actions: numbers of an action.

    Raises:
        BadInput: with what is needed and what there is.
    """
    each = sum(int(np.prod(part.shape or ())) * np.dtype(part.dtype).itemsize for part in space.values())
    capacity, copies = (settings.rollout, 1) if settings.name == "ppo" else (settings.buffer, 2)  # the next one too
    size, free = capacity * (copies * each + 4 * actions + 12), psutil.virtual_memory().available
    if size > 0.9 * free:
        raise BadInput(
            f"a buffer of {capacity:,} steps with {each:,} bytes an observation needs {size / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; lower algorithm.buffer (or algorithm.rollout), take obs=tokens, or another "
            "embedding.fusion"
        )
    return size
