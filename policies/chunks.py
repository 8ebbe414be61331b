"""Action chunks: which future actions a policy learns to predict, and how they are executed.

Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (ACT), RSS 2023, section IV-A: a
policy that predicts the next K actions and executes them decides K times less often, so small errors add up less.

Shapes: F frames, B batch, K actions of a chunk, A action.
"""

import numpy as np

from ..errors import BadInput


def chunk_indices(starts: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every frame of concatenated episodes, the rows of its next actions, its own first.

    Past the end of its episode a row repeats the last one; such padding is no target.

    Args:
        starts: (F,) int64, for each frame the row at which its episode starts.
        chunk: K.

    Returns:
        rows (F, K) int64, and (F, K) bool: which of them lie within the episode.

    >>> rows, within = chunk_indices(np.array([0, 0, 0, 3]), 2)
    >>> rows.tolist(), within.tolist()
    ([[0, 1], [1, 2], [2, 2], [3, 3]], [[True, True], [True, True], [True, False], [True, False]])
    """
    rows = np.arange(len(starts))[:, None] + np.arange(chunk)[None, :]
    ends = np.searchsorted(starts, starts, side="right")[:, None]
    return np.minimum(rows, ends - 1), rows < ends


class ChunkQueue:
    """What is left of the chunks of several running episodes, each executed open-loop before the next is asked for.

    Args:
        chunk: K.
        n_action_steps: how many actions of each chunk are executed; None is all of them.

    Raises:
        BadInput: if there are fewer in a chunk.
    """

    def __init__(self, chunk: int, n_action_steps: int | None = None) -> None:
        self.chunk, self.execute = chunk, chunk if n_action_steps is None else n_action_steps
        if not 1 <= self.execute <= chunk:
            raise BadInput(f"n_action_steps={n_action_steps}: the policy's horizon is {chunk}; give 1 to {chunk}")
        self._left = np.zeros(0, np.int64)  # (B,) actions to execute before the next chunk is due
        self._chunks = np.zeros(0, np.float32)  # (B, K, A)

    def waits(self, starting: np.ndarray) -> np.ndarray:
        """Return after how many further steps each episode's next chunk is due, (B,); 0 is now.

        Args:
            starting: (B,) bool, episodes at their first step; what is left of earlier chunks is forgotten.
        """
        if self._left.shape != starting.shape:
            self._left = np.zeros(len(starting), np.int64)
        self._left[starting] = 0
        return self._left.copy()

    def refill(self, chunks: np.ndarray) -> None:
        """Take new chunks, (B, K, A), for the episodes whose next one is due."""
        due = self._left == 0
        if self._chunks.shape != chunks.shape:
            self._chunks = np.zeros_like(chunks)
        self._chunks[due] = chunks[due]
        self._left[due] = self.execute

    def pop(self) -> np.ndarray:
        """Return the action of this step, (B, A)."""
        actions = self._chunks[np.arange(len(self._left)), self.execute - self._left]
        self._left -= 1
        return actions
