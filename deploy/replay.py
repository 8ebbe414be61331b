"""A recorded episode as a policy, to test a robot's program without a model.

Shapes: S steps of the episode, H horizon, A action.
"""

from collections.abc import Mapping

import numpy as np


class ReplayPolicy:
    """Returns the recorded actions in their order, whatever it observes; the last one is repeated at the end.

    Args:
        actions: (S, A) float32.
        horizon: H, actions per call.
        stride: control steps between two calls.
    """

    def __init__(self, actions: np.ndarray, horizon: int = 1, stride: int = 1) -> None:
        self.actions, self.horizon, self.stride = np.asarray(actions, np.float32), horizon, stride
        self._step = 0

    def reset(self) -> None:
        """Start the episode again."""
        self._step = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (H, A) float32."""
        rows = np.minimum(self._step + np.arange(self.horizon), len(self.actions) - 1)
        self._step += self.stride
        return self.actions[rows]
