"""A recorded episode as a policy: what a robot's program is tested with when there is no model.

Shapes: S steps of the episode, C chunk, A action.
"""

from collections.abc import Mapping

import numpy as np


class Replay:
    """Answers with the recorded actions in their order, whatever it sees; the last one is repeated at the end.

    Args:
        actions: (S, A) float32.
        chunk: C.
        stride: control steps between two questions.
    """

    def __init__(self, actions: np.ndarray, chunk: int = 1, stride: int = 1) -> None:
        self.actions, self.chunk, self.stride = np.asarray(actions, np.float32), chunk, stride
        self._step = 0

    def reset(self) -> None:
        """Begin the episode anew."""
        self._step = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (C, A) float32."""
        rows = np.minimum(self._step + np.arange(self.chunk), len(self.actions) - 1)
        self._step += self.stride
        return self.actions[rows]
