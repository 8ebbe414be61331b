"""What drives a robot: anything that turns an observation into the next actions.

Shapes: C chunk (actions planned at once), A action.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Policy(Protocol):
    """A policy at work on one robot; it keeps whatever it needs of the past."""

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (C, A) float32, for one observation, each array without a batch axis."""
