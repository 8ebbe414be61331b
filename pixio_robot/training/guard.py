"""Steps that are not finite: skipped on the device, counted, and in the end fatal, with the offending images kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError
from ..files import replacing
from ..pretrain.images.image_set import ImageSet
from ..pretrain.loader import Batch
from .distributed import World


class Guard:
    """Makes optimiser steps whose gradients are finite and leaves out the others, without waiting for the device.

    Args:
        optimizer: a fused one takes the verdict as a tensor; for others the device is waited for.
        skipped: steps already left out by earlier starts of this run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, skipped: int) -> None:
        self._optimizer = optimizer
        self._fused = bool(optimizer.defaults.get("fused"))
        self._skipped = torch.tensor(skipped, device=device)
        self._in_a_row, self._longest, self._first_bad = (torch.zeros_like(self._skipped) for _ in range(3))

    def step(self, norm: Tensor, step: int) -> Tensor:
        """Make one step unless the gradients' norm is infinite or NaN; return whether it was finite, () bool."""
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
        """How many steps were left out; waits for the device."""
        return int(self._skipped)

    @property
    def longest(self) -> int:
        """The greatest number of steps left out in a row; waits for the device."""
        return int(self._longest)

    @property
    def first_bad(self) -> int:
        """The first step of that row; waits for the device."""
        return int(self._first_bad)

    def abort(self, batches: Sequence[Batch], images: ImageSet, out: Path, world: World) -> NoReturn:
        """Keep the images of the first bad step and end the run.

        Args:
            batches: this process's micro-batches of that step.

        Raises:
            DataError: always.
        """
        path = out / f"nonfinite-step-{self.first_bad:08d}-rank-{world.rank}.safetensors"
        kept = {
            name: torch.cat([getattr(each, name) for each in batches]) for name in ("images", "mask_noise", "indices")
        }
        names = json.dumps([images.name(int(index)) for index in kept["indices"]])
        with replacing(path) as temporary:
            save_file(kept, temporary, metadata={"names": names})
        raise DataError(
            f"{self.longest} steps in a row were not finite, from step {self.first_bad} on; its images are in {path}. "
            "Go on from the last checkpoint with clip=1.0, or begin anew with a lower lr or precision=fp32"
        )
