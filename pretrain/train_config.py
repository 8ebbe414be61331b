"""How a training run is configured: values that the loop and its commands share."""

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput, UnknownName, closest
from ..training.distributed import PARALLEL, World
from ..training.metric_log import WandbRun
from .loader import Batching
from .training_set import TrainingSet


@dataclass(frozen=True)
class Length:
    """Length of a run, in optimiser steps or in epochs.

    Raises:
        BadInput: if both or neither is set, or the epochs are not positive.
    """

    steps: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise BadInput(f"steps={self.steps} and epochs={self.epochs}: set exactly one")
        _check_positive("epochs", self.epochs)

    def count(self, epoch_length: float, batch: int) -> int:
        """Return the number of steps.

        Args:
            epoch_length: images of an epoch; with weights, the expected number.
            batch: images a step.
        """
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 0.0) * epoch_length / batch))


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay (arXiv 2512.15715, table 9).

    Raises:
        BadInput: if a number is out of range.
    """

    lr: float  # highest learning rate
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.05  # not on biases and norms
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float | None = None  # largest gradient norm
    abort_after: int = 3  # non-finite steps in a row

    def __post_init__(self) -> None:
        for name, value, high in (
            ("warmup", self.warmup, 1.0),
            ("beta1", self.beta1, 0.9999),
            ("beta2", self.beta2, 0.99999),
        ):
            if not 0 <= value <= high:
                raise BadInput(f"{name}={value} must lie from 0 to {high:g}")
        _check_positive("clip", self.clip)
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"weight_decay={self.weight_decay} must be 0 or positive")


@dataclass(frozen=True)
class Execution:
    """How the model is compiled and distributed; changes speed and memory only.

    Raises:
        UnknownName: for an unknown `parallel`.
    """

    parallel: str = "auto"
    compile: bool = False
    activation_checkpointing: str = "none"  # a key of `Objective.checkpointable_blocks`

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise UnknownName(
                f"no parallel {self.parallel!r}; there are: {', '.join(PARALLEL)}{closest(self.parallel, PARALLEL)}"
            )


@dataclass(frozen=True)
class Logging:
    """Steps between metrics, images and checkpoints."""

    log_every: int = 20
    valid_every: int = 200
    visualize_every: int = 500
    save_every: int = 500
    keep_last: int = 2  # latest checkpoints to keep
    keep_every: int | None = None  # also keep checkpoints of steps divisible by this
    wandb: WandbRun | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    seed: int
    length: Length
    batching: Batching
    optimisation: Optimisation
    execution: Execution = Execution()
    logging: Logging = Logging()
    recorded: dict[str, Any] = field(default_factory=dict)  # settings that identify the run, kept with its checkpoints

    def steps(self, data: TrainingSet) -> int:
        """Return the optimiser steps of the whole run."""
        return self.length.count(data.order.epoch_length, self.batching.batch)

    def summary(self, data: TrainingSet, world: World) -> str:
        """Return one line that says what is about to be trained, with the numbers that are most often wrong."""
        steps, batch = self.steps(data), self.batching.batch
        expected = data.order.epoch_length
        drawn = "" if expected == data.order.length else f", {expected:.0f} of them expected an epoch"
        return (
            f"{data.split.training} training images{drawn}, {len(data.split.evaluated)} validation images; {steps} "
            f"steps of {batch} on {world.size} process(es) = {steps * batch / expected:.3g} epochs; highest learning "
            f"rate {self.optimisation.lr:.3g}"
        )


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise BadInput(f"{name}={value} must be positive and finite, or null")
