"""A checkpoint as a `RunningPolicy`: the same as an exported bundle, computed by torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..policies.agent import Agent
from ..policies.visuomotor import LoadedPolicy, load_policy, load_policy_encoder
from .export.describe import BundleOptions, describe
from .export.source import ExportSource
from .manifest import Manifest


class EagerPolicy:
    """An agent for one robot.

    Args:
        agent: the policy with its encoder.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._fresh = True

    @classmethod
    def load(cls, checkpoint: Path | str, device: torch.device = torch.device("cpu")) -> "EagerPolicy":
        """Load a checkpoint with its encoder.

        Raises:
            CheckpointError: if it is missing or damaged, or its encoder has other weights now.
        """
        loaded = load_policy(checkpoint)
        backbone = None if loaded.encoder is None else load_policy_encoder(loaded.encoder)
        return cls(Agent(loaded, backbone, device))

    @property
    def loaded(self) -> LoadedPolicy:
        """The policy and what it was trained for."""
        return self.agent.loaded

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode."""
        self._fresh = True

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (C, A) float32, for one observation, each array without a batch axis."""
        batch = {key: value[None] for key, value in observation.items()}
        actions = self.agent.predict(batch, np.array([self._fresh]), np.ones(1, bool))[0]
        self._fresh = False
        return actions


def eager_policies(checkpoint: str, device: torch.device) -> tuple[Manifest, Callable[[], EagerPolicy], str]:
    """Return a checkpoint's manifest, as an export would have it, what makes policies of it, and the file's SHA-256.

    Raises:
        BadInput: if no manifest can describe what it observes.
        CheckpointError: if it is missing or damaged, or its encoder has other weights now.
    """
    source = ExportSource.of_checkpoint(checkpoint)
    _, manifest = describe(source, BundleOptions())
    loaded, backbone = source.policy, source.backbone
    return (
        replace(manifest, target="torch", program=""),
        lambda: EagerPolicy(Agent(loaded, backbone, device)),
        source.fingerprint,
    )
