"""Interface of a training objective; the loop in ``train.py`` serves reconstruction and distillation.

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
    """A model, its losses, its validation metrics and its files.

    In every method `trained` is `model` as `distribute` returned it.
    """

    name: str  # of the progress stage and of the rows in metrics.jsonl
    model: nn.Module
    wrapped_modules: list[Any]  # parts of the model with ``blocks``, sharded and compiled block by block
    checkpointable_blocks: dict[str, list[Any]]  # choice of activation_checkpointing to the blocks it applies to
    arguments: dict[str, Any]  # that rebuild the model
    size: int  # side of the training crops [px]
    mask_blocks: int  # numbers of mask noise an image
    flops: float  # of one image's forward and backward pass

    @abstractmethod
    def losses(self, trained: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Return the loss of every independent part, (); the gradient is that of their sum."""

    @abstractmethod
    def parts(self, trained: nn.Module) -> list[nn.Module]:
        """Return the independent parts of the model; the gradients of each are clipped separately."""

    @abstractmethod
    def measure(self, trained: nn.Module, monitor: Monitor) -> tuple[dict[str, float], Matrix]:
        """Return metrics on validation images, and the cosine between class tokens; `trained` is in evaluation mode."""

    @abstractmethod
    def visualize(self, trained: nn.Module, monitor: Monitor, path: Path, first: bool) -> None:
        """Write an image of the model's output for a few validation images; only the `first` process writes."""

    @abstractmethod
    def save(self, whole: nn.Module, out: Path, settings: dict[str, Any], step: int) -> None:
        """Write the trained networks into `out`; only the first process calls this.

        Args:
            whole: `model` with the trained weights, on the CPU.
            settings: that trained it, ready for JSON.
            step: number of training steps.
        """

    @abstractmethod
    def blank(self) -> nn.Module:
        """Return `model` without weights, on the meta device."""
