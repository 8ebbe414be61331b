"""Which rows of concatenated episodes a sample uses: observations up to its frame, actions from it on.

Shapes: F frames, T observation steps, H horizon.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import BadInput


@dataclass(frozen=True)
class Window:
    """How many steps a policy observes and how many actions it predicts at once."""

    observation_steps: int = 1
    horizon: int = 1

    def __post_init__(self) -> None:
        for name, value in (("observation.steps", self.observation_steps), ("horizon", self.horizon)):
            if value < 1:
                raise BadInput(f"{name}={value} must be at least 1")


def observation_rows(episode_starts: np.ndarray, steps: int) -> np.ndarray:
    """Return, for every frame, the rows of the frames a policy observes there, (F, T) int64, oldest first.

    At its start an episode repeats its first frame.

    Args:
        episode_starts: (F,) int64, for each frame the row at which its episode starts.
        steps: T.

    >>> observation_rows(np.array([0, 0, 2, 2]), 2).tolist()
    [[0, 0], [0, 1], [2, 2], [2, 3]]
    """
    rows = np.arange(len(episode_starts))[:, None] - np.arange(steps - 1, -1, -1)[None, :]
    return np.maximum(rows, episode_starts[:, None])


def action_rows(episode_starts: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every frame, the rows of the actions to predict there, its own first.

    After the end of its episode a row repeats the last action, which is padding and no target. Chunks of actions:
    Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (ACT), RSS 2023, section IV-A.

    Args:
        episode_starts: (F,) int64, for each frame the row at which its episode starts.
        horizon: H.

    Returns:
        rows (F, H) int64, and whether each is padding, (F, H) bool.

    >>> rows, is_pad = action_rows(np.array([0, 0, 0, 3]), 2)
    >>> rows.tolist(), is_pad.tolist()
    ([[0, 1], [1, 2], [2, 2], [3, 3]], [[False, False], [False, False], [False, True], [False, True]])
    """
    rows = np.arange(len(episode_starts))[:, None] + np.arange(horizon)[None, :]
    ends = np.searchsorted(episode_starts, episode_starts, side="right")[:, None]
    return np.minimum(rows, ends - 1), rows >= ends
