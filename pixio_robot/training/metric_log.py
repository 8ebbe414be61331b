"""What a training run writes down: rows of numbers, and where the time of a stretch of steps went."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from ..errors import MissingExtra
from ..pretrain.settings import Training
from ..run_folder import MetricsLog
from .distributed import World
from .states import TrainState


class MetricLogger:
    """``metrics.jsonl``, TensorBoard and, if asked for, Weights & Biases; only the first process writes.

    Args:
        name: of the learner, in the rows.
        position: where the run goes on; rows of later steps are dropped.
        epoch: images of one pass.
    """

    def __init__(
        self, out: Path, name: str, settings: Training, position: TrainState, epoch: float, world: World
    ) -> None:
        self._epoch = epoch
        self.last: dict[str, float] = {}  # the latest value of every number, of earlier starts too
        self._metrics = MetricsLog(out, name, position.step) if world.first else None
        for row in self._metrics.rows() if self._metrics else ():
            self.last |= {name: value for name, value in row.items() if "/" in name}
        self._wandb: Any = _wandb_run(out, settings) if world.first and settings.wandb else None

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._metrics:
            self._metrics.__exit__(kind, error, at)
        if self._wandb:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def write(self, position: TrainState, values: dict[str, float]) -> None:
        """Write one row."""
        self.last |= values
        if self._metrics:
            self._metrics.write(round(position.samples / self._epoch, 6), position.step, values)
        if self._wandb:
            self._wandb.log(values, step=position.step)


def _wandb_run(out: Path, settings: Training) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb=", "wandb") from error
    from dataclasses import asdict

    return wandb.init(project=settings.wandb, dir=str(out), config=asdict(settings), id=out.name, resume="allow")


class ThroughputMeter:
    """Sums over the steps between two rows; losses stay on the device until the row is written.

    Args:
        batch: images a step.
        flops: of one image's training.
        peak: of the device's matrix products [FLOP/s].
    """

    def __init__(self, device: torch.device, batch: int, flops: float, peak: float, world: World) -> None:
        self._device, self._batch, self._flops, self._peak, self._world = device, batch, flops, peak, world
        self._restart()

    def _restart(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._norm, self._finite = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        self._steps, self._waited, self._aside = 0, 0.0, 0.0
        self._began = perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count time inside as waiting for images."""
        began = perf_counter()
        yield
        self._waited += perf_counter() - began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count time inside as no training."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else the steps that are still queued would count as aside
        began = perf_counter()
        yield
        self._aside += perf_counter() - began

    def add(self, losses: dict[str, Tensor], norm: Tensor, finite: Tensor) -> None:
        """Add one step; one that was not finite counts for time alone."""
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + torch.where(finite, loss, 0.0)
        self._norm = self._norm + torch.where(finite, norm, 0.0)
        self._finite = self._finite + finite
        self._steps += 1

    def close(self) -> dict[str, float]:
        """Return the numbers of the stretch and begin the next."""
        finite = self._finite.clamp(min=1)
        losses = {name: float(self._world.mean(loss) / finite) for name, loss in self._losses.items()}  # waits
        seconds = perf_counter() - self._began - self._aside
        speed = self._steps * self._batch / seconds
        achieved = speed * self._flops / self._world.size
        named = {f"train/{name}_loss": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        values = {"train/loss": sum(losses.values()) / len(losses), **named}
        numbers = {
            **{name: value if float(self._finite) else float("nan") for name, value in values.items()},
            "train/gradient_norm": float(self._norm / finite),
            "time/seconds": seconds,
            "time/images_per_s": speed,
            "time/waiting_for_data": self._waited / seconds,
            "time/tflops_per_device": achieved / 1e12,
            "time/share_of_peak": achieved / self._peak,
            "time/memory_gb": _memory(self._device) / 1e9,
        }
        self._restart()
        return numbers


def _memory(device: torch.device) -> float:
    """Return the greatest memory of the device so far, or this process's now on a CPU [bytes]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
