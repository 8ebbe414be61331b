"""A checkpoint as a `RunningPolicy`: the same as an exported bundle, computed by torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from ..files import sha256_of
from ..policies.agent import Agent
from ..policies.loaded import LoadedPolicy, load_policy
from .export.describe import describe_policy
from .manifest import Manifest


class EagerPolicy:
    """A policy for one robot.

    Args:
        loaded: the policy with its encoder.
        device: where to compute.
    """

    def __init__(self, loaded: LoadedPolicy, device: torch.device = torch.device("cpu")) -> None:
        self.loaded, self.agent = loaded, Agent(loaded, device)
        self._first_step = True

    @classmethod
    def load(cls, checkpoint: Path | str, device: torch.device = torch.device("cpu")) -> "EagerPolicy":
        """Load a checkpoint with its encoder.

        Raises:
            CheckpointError: if it is missing or damaged, or its encoder has other weights now.
        """
        return cls(load_policy(checkpoint), device)

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""
        self._first_step = True

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (H, A) float32, for one observation, each array without a batch axis."""
        batch = {key: np.asarray(value)[None] for key, value in observation.items()}
        actions = self.agent.predict(batch, np.array([self._first_step]), np.ones(1, bool))[0]
        self._first_step = False
        return actions


def eager_policies(checkpoint: str, device: torch.device) -> tuple[Manifest, Callable[[], EagerPolicy], str]:
    """Return a checkpoint's manifest, what makes policies of it with their own history, and the file's SHA-256.

    Raises:
        CheckpointError: if it is missing or damaged, or its encoder has other weights now.
    """
    loaded, fingerprint = load_policy(checkpoint), sha256_of(Path(checkpoint))
    return describe_policy(loaded, fingerprint), lambda: EagerPolicy(loaded, device), fingerprint
