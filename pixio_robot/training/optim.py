"""Optimisers, learning-rate schedules and gradient clipping of every training loop."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput, UnknownName, closest

SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run.

    >>> Schedule(peak=1.0, steps=100, warmup_steps=10).at(5)
    0.5
    """

    peak: float  # highest learning rate
    steps: int  # optimiser steps of the whole run
    warmup_steps: int = 0
    name: str = "cosine"  # one of SCHEDULES

    def __post_init__(self) -> None:
        _check_name("schedule", self.name, SCHEDULES)

    def at(self, step: int) -> float:
        """Return the learning rate of a step, 0-based."""
        return lr_at(step, self.steps, self.warmup_steps, self.peak, self.name)


def lr_at(step: int, steps: int, warmup_steps: int, peak: float, schedule: str = "cosine") -> float:
    """Return the learning rate of a step.

    It rises linearly from 0 in the first `warmup_steps`. Then "constant" stays at `peak`, and "cosine" decays to 0
    along half a cosine.

    Args:
        step: 0-based, of `steps`.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


def peak_lr(lr: float | None, base_lr: float | None, batch: int) -> float:
    """Return the highest learning rate: `lr` itself, or `base_lr` times batch / 256 (Goyal et al. 2017).

    Raises:
        BadInput: if both or neither is set, or the rate is not positive.
    """
    if (lr is None) == (base_lr is None):
        raise BadInput(
            f"lr={lr} and base_lr={base_lr}: set exactly one; lr is absolute, base_lr is multiplied by batch / 256"
        )
    rate = lr if lr is not None else (base_lr or 0.0) * batch / 256
    if not rate > 0 or not math.isfinite(rate):
        raise BadInput(f"the learning rate is {rate}; it must be positive")
    return rate


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: 1-D tensors (biases, norms) do not decay, all others do.

    Class tokens, mask token and position tables are 3-D and so decay, as published (arXiv 2512.15715, table 9).
    """
    return [
        {"params": [each for each in model.parameters() if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in model.parameters() if each.ndim <= 1], "weight_decay": 0.0},
    ]


def new_optimizer(
    groups: Iterable[Tensor] | Iterable[dict[str, Any]],
    name: str,
    device: torch.device,
    *,
    lr: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.0,
) -> torch.optim.Optimizer:
    """Return an optimiser, fused where PyTorch has a fused one.

    Args:
        groups: parameters, or parameter groups. A group may have its own ``weight_decay``, and an ``lr_scale`` that
            `set_lr` multiplies the learning rate by.
        name: "adam", "adamw" or "sgd".
        betas: of Adam and AdamW.
        momentum: of SGD.

    Raises:
        UnknownName: for another name.
    """
    _check_name("optimizer", name, OPTIMIZERS)
    common: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda"))
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, **common)
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, betas=betas, **common)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's ``lr_scale``, 1 where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients down to a norm of at most `max_norm`; None leaves them unchanged.

    Returns:
        their norm before, over all processes, ().
    """
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")
