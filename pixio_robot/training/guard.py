"""Optimiser steps with non-finite gradients: skipped on the device, counted, and fatal after several in a row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError
from ..files import replacing
from .distributed import World


class Guard:
    """Makes optimiser steps whose gradients are finite and skips the others, without a wait for the device.

    Args:
        optimizer: a fused one takes the verdict as a tensor; with any other each step waits for the device.
        device: of the parameters.
        skipped: steps that earlier starts of this run skipped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, skipped: int = 0) -> None:
        self._optimizer = optimizer
        self._fused = bool(optimizer.defaults.get("fused"))
        self._skipped = torch.tensor(skipped, device=device)
        self._in_a_row, self._longest, self._first_bad = (torch.zeros_like(self._skipped) for _ in range(3))

    def step(self, norm: Tensor, step: int) -> Tensor:
        """Make one step unless the gradients' norm is infinite or NaN; return whether it is finite, () bool."""
        finite = torch.isfinite(norm)
        optimizer: Any = self._optimizer
        if self._fused:
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
        if self._fused or bool(finite):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._in_a_row = torch.where(finite, 0, self._in_a_row + 1)
        longer = self._in_a_row > self._longest
        self._first_bad = torch.where(longer, step + 1 - self._in_a_row, self._first_bad)
        self._longest = torch.where(longer, self._in_a_row, self._longest)
        self._skipped = self._skipped + ~finite
        return finite

    @property
    def skipped(self) -> int:
        """Number of skipped steps; waits for the device."""
        return int(self._skipped)

    @property
    def longest(self) -> int:
        """Greatest number of steps skipped in a row; waits for the device."""
        return int(self._longest)

    @property
    def first_bad(self) -> int:
        """First step of that row; waits for the device."""
        return int(self._first_bad)

    def abort(self, tensors: Mapping[str, Tensor], names: Sequence[str], out: Path, world: World) -> NoReturn:
        """Save this process's samples of the first bad step and end the run.

        Args:
            tensors: the samples, as they enter the model.
            names: of the samples, where they come from.
            out: the run folder.

        Raises:
            DataError: always.
        """
        path = out / f"nonfinite-step-{self.first_bad:08d}-rank-{world.rank}.safetensors"
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata={"names": json.dumps(list(names))})
        raise DataError(
            f"{self.longest} steps in a row were not finite, from step {self.first_bad}; the samples of that step are "
            f"in {path}. Resume from the last checkpoint with clip=1.0, or start again with a lower lr or "
            "precision=fp32"
        )
