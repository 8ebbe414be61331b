"""Metrics of a training run: rows in ``metrics.jsonl``, TensorBoard, Weights & Biases; throughput of its steps."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from ..errors import MissingExtra
from ..files import replacing
from .distributed import World


@dataclass(frozen=True)
class WandbRun:
    """Where Weights & Biases gets a copy of the metrics."""

    project: str
    config: Mapping[str, Any] = field(default_factory=dict)  # settings to show


class MetricLogger:
    """``metrics.jsonl`` and TensorBoard events of one learner, on request Weights & Biases; a context manager.

    Args:
        folder: the run folder.
        name: of the learner; a run folder may hold several.
        step: step at which the run starts or resumes; rows of later steps, left by an interrupted run, are dropped.
        wandb: None writes nothing there.
        enabled: False writes nothing, for all processes but the first.
    """

    def __init__(
        self, folder: Path, name: str, step: int, *, wandb: WandbRun | None = None, enabled: bool = True
    ) -> None:
        self.path, self.name = folder / "metrics.jsonl", name
        self.last: dict[str, float] = {}  # the latest value of every metric, earlier starts included
        self._events: Any = None
        self._wandb: Any = None
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # a crash may leave the last one incomplete
        with replacing(self.path) as temporary:
            kept = [row for row in rows if row["policy"] != name or row["step"] <= step]
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(str(folder / "tensorboard" / name), purge_step=step + 1)
        for row in self.rows():
            self.last |= {tag: value for tag, value in row.items() if "/" in tag}
        self._wandb = None if wandb is None else _start_wandb(folder, wandb)

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def rows(self) -> list[dict[str, Any]]:
        """Return this learner's rows so far."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []
        return [row for row in rows if row["policy"] == self.name]

    def write(self, epoch: float, step: int, values: dict[str, float]) -> None:
        """Write one row; tags are like ``train/loss``."""
        self.last |= values
        if self._events is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"policy": self.name, "epoch": epoch, "step": step, **values}) + "\n")
            for tag, value in values.items():
                self._events.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)


def _start_wandb(folder: Path, run: WandbRun) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb=", "wandb") from error
    return wandb.init(project=run.project, dir=str(folder), config=dict(run.config), id=folder.name, resume="allow")


class ThroughputMeter:
    """Means over the steps between two rows of metrics; losses stay on the device until a row is written.

    Args:
        batch: samples a step, over all processes.
        world: the processes that take part, and this one's device.
        flops: of one sample's training; None leaves out the numbers that need it.
        peak: of the device's matrix products [FLOP/s].
        unit: what a sample is, for the name of the speed.
    """

    def __init__(
        self, batch: int, world: World, *, flops: float | None = None, peak: float = 1.0, unit: str = "images"
    ) -> None:
        self._device, self._batch, self._flops, self._peak, self._world = world.device, batch, flops, peak, world
        self._unit = unit
        self._restart()

    def _restart(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._norm, self._finite = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._began = perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = perf_counter()
        yield
        self._waited += perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the training time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else steps still queued would count as paused
        began = perf_counter()
        yield
        self._paused += perf_counter() - began

    def add(self, losses: Mapping[str, Tensor], norm: Tensor, finite: Tensor) -> None:
        """Add one step; a step that is not finite counts for the time only."""
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + torch.where(finite, loss, 0.0)
        self._norm = self._norm + torch.where(finite, norm, 0.0)
        self._finite = self._finite + finite
        self._steps += 1

    def close(self) -> dict[str, float]:
        """Return the numbers of the steps since the last call and start again from zero."""
        finite = self._finite.clamp(min=1)
        losses = {name: float(self._world.mean(loss) / finite) for name, loss in self._losses.items()}  # waits
        seconds = perf_counter() - self._began - self._paused
        speed = self._steps * self._batch / seconds
        named = {f"train/{name}_loss": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        values = {"train/loss": sum(losses.values()) / len(losses), **named}
        numbers = {
            **{name: value if float(self._finite) else float("nan") for name, value in values.items()},
            "train/gradient_norm": float(self._norm / finite),
            "time/seconds": seconds,
            f"time/{self._unit}_per_s": speed,
            "time/waiting_for_data": self._waited / seconds,
        }
        if self._flops is not None:
            achieved = speed * self._flops / self._world.size
            numbers["time/tflops_per_device"] = achieved / 1e12
            numbers["time/share_of_peak"] = achieved / self._peak
        numbers["time/memory_gb"] = _memory(self._device) / 1e9
        self._restart()
        return numbers


def _memory(device: torch.device) -> float:
    """Return the peak memory of a CUDA device, or the present memory of this process on others [bytes]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
