"""Resumable checkpoints of a training run, written with torch.distributed.checkpoint.

Each is a folder ``step-00000500`` with sharded tensors, written in the background, and ``state.json``. It gets its
name when it is complete on the disk. A run may resume with another number of processes. PyTorch's reader unpickles the
index of the shards, so these files are for the run that wrote them only; do not exchange weights in this format.
"""

import json
import logging
import os
import re
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as flat
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import CheckpointError, DataError
from .distributed import World, unwrapped

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Progress of a run. It needs no generator state, since noise is a function of seed, step and sample."""

    step: int = 0  # optimiser steps done
    samples: int = 0  # samples seen
    skipped: int = 0  # steps skipped because gradients were not finite
    seconds: float = 0.0  # spent training, over all starts
    numbers: dict[str, float] = field(default_factory=dict)  # of the learner, e.g. its lowest validation loss


class States:
    """The checkpoints of one run.

    Args:
        folder: where they are written.
        keep_last: number of latest checkpoints to keep.
        keep_every: also keep those of steps divisible by this.
        identity: JSON values that a resumed run must share with the run that wrote them: the network's arguments and
            the settings.
    """

    def __init__(
        self, folder: Path, world: World, keep_last: int, keep_every: int | None, identity: dict[str, Any]
    ) -> None:
        self.folder, self.world, self.identity = folder, world, identity
        self.keep_last, self.keep_every = keep_last, keep_every
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None  # separate from training's collectives
        self._pending: Future[Any] | None = None
        self._named = Event()
        self._failed: OSError | None = None
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may save alone
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".step-*"):  # from a run that was killed while writing
                shutil.rmtree(left)
        world.wait()

    def latest(self) -> Path | None:
        """Return the latest complete checkpoint in the first process's folder, or None.

        Raises:
            DataError: if another process does not see it.
        """
        found = [max(_whole(self.folder), default=None) if self.world.first else None]
        if self.world.size > 1:
            dist.broadcast_object_list(found)
        if found[0] is not None and not found[0].is_dir():
            raise DataError(f"{found[0]} is not there for process {self.world.rank}; all must share the run folder")
        return found[0]

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Copy model, optimiser and state, and write them in the background; every process calls this."""
        self.wait()
        final = self.folder / f"step-{state.step:08d}"
        temporary = final.with_name(f".{final.name}")
        if self.world.first:
            temporary.mkdir(parents=True, exist_ok=True)
            described = {"position": asdict(state), "identity": self.identity}
            with (temporary / "state.json").open("w") as file:
                json.dump(described, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
        self.world.wait()
        future: Any = dcp.async_save(
            _tensors(model, optimizer)[0],
            checkpoint_id=str(temporary),
            process_group=self._group,
            no_dist=self.world.size == 1,
        )
        self._pending, self._named = future, Event()
        future.add_done_callback(lambda done: self._name(done, temporary, final))

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            CheckpointError: if it could not be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except CheckpointException as error:
            raise CheckpointError(f"a checkpoint could not be written below {self.folder}: {_reason(error)}") from error
        self._named.wait()
        if self.world.any(self._failed is not None):
            raise CheckpointError(
                f"a checkpoint below {self.folder} could not be renamed when complete: {self._failed}"
            )

    def _name(self, done: Future[Any], temporary: Path, final: Path) -> None:
        """Rename a complete checkpoint; by then all processes have written, the first is the last to know."""
        try:
            if self.world.first:
                if done.exception() is None:
                    os.replace(temporary, final)
                    self._thin()
                else:
                    shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:  # a callback's own exceptions are lost
            self._failed = error
        finally:
            self._named.set()

    def _thin(self) -> None:
        for path in sorted(_whole(self.folder))[: -self.keep_last]:
            if not (self.keep_every and int(path.name[5:]) % self.keep_every == 0):
                shutil.rmtree(path)

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
        """Load a checkpoint into model and optimiser; return its state.

        Raises:
            DataError: if it was written by a run with other settings; names them.
            CheckpointError: if it is damaged.
        """
        try:
            described = json.loads((path / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); delete it to resume from the one before"
            ) from error
        if changed := _differences(described["identity"], self.identity):
            raise DataError(f"{path} was written with {', '.join(changed)}; choose another out= to start a new run")
        tensors, groups = _tensors(model, optimizer)
        try:
            dcp.load(tensors, checkpoint_id=str(path), process_group=self._group, no_dist=self.world.size == 1)
        except (Exception, CheckpointException) as error:
            why = _reason(error)
            raise CheckpointError(f"{path} cannot be read ({why}); delete it to resume from the one before") from error
        flat.set_state_dict(
            model,
            optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict={**tensors["optimizer"], **groups},
            options=_OPTIONS,
        )
        return TrainState(**described["position"])


_OPTIONS = flat.StateDictOptions(flatten_optimizer_state_dict=True)


def _reason(error: BaseException) -> str:
    """Return the first line of the error in the first process that failed."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors to write, and the optimiser's settings, which come from the run's settings instead."""
    weights, values = flat.get_state_dict(model, optimizer, options=_OPTIONS)
    groups = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    values = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {"model": weights, "optimizer": values}, groups


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]


def _differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """Name what differs between two nested dicts of JSON values."""
    found = []
    for name in dict.fromkeys([*theirs, *ours]):
        old, new = theirs.get(name), ours.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{name}.")
        elif json.dumps(old) != json.dumps(new):
            found.append(f"{prefix}{name} {old!r} instead of {new!r}")
    return found


def gathered_weights(model: nn.Module, world: World) -> dict[str, Tensor]:
    """Return the whole weights of a distributed model, complete in the first process; every process calls this."""
    options = flat.StateDictOptions(full_state_dict=True, cpu_offload=world.size > 1)
    tensors: dict[str, Any] = flat.get_model_state_dict(unwrapped(model), options=options)
    return tensors
