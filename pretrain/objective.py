"""What a training run trains: the loop in ``train.py`` is the same for reconstruction and distillation.

Shapes: B images of a micro-batch.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .loader import Batch
from .monitor import Matrix, Monitor


class Objective(ABC):
    """A module, its losses, and what is measured and kept of it.

    In every method `trained` is `model` as `distribute` returned it.
    """

    name: str  # of the stage and of the rows in metrics.jsonl
    model: nn.Module
    wrapped_modules: list[Any]  # parts of the model with ``blocks``, sharded and compiled block by block
    activation_checkpointed: dict[
        str, list[Any]
    ]  # blocks whose activations are computed twice, by the name of the choice
    arguments: dict[str, Any]  # what rebuilds the model
    size: int  # side of the training crops [px]
    blocks: int  # numbers of mask noise an image
    flops: float  # of one image's training

    @abstractmethod
    def losses(self, trained: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Return a loss, (), of every part that learns by itself; the gradient is that of their sum."""

    @abstractmethod
    def parts(self, trained: nn.Module) -> list[nn.Module]:
        """Return the modules that learn by themselves; their gradients are clipped apart."""

    @abstractmethod
    def measure(self, trained: nn.Module, monitor: Monitor) -> tuple[dict[str, float], Matrix]:
        """Return numbers on held-out images, and the cosine between class tokens; `trained` is in evaluation mode."""

    @abstractmethod
    def image(self, trained: nn.Module, monitor: Monitor, path: Path, first: bool) -> None:
        """Draw what the model makes of a few held-out images; only the `first` process writes."""

    @abstractmethod
    def save(self, whole: nn.Module, out: Path, settings: dict[str, Any], step: int) -> None:
        """Write what others may use into `out`; only the first process calls this.

        Args:
            whole: `model` with the trained weights, on the CPU.
        """

    @abstractmethod
    def blank(self) -> nn.Module:
        """Return `model` without its weights, on the meta device."""
