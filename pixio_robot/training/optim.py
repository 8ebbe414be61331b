"""How weights move: AdamW groups, learning rate, warm-up and cosine (arXiv 2512.15715, table 9)."""

import math
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..pretrain.settings import Training


def peak_lr(settings: Training) -> float:
    """Return the highest learning rate: `lr` as it is, or `base_lr` times batch / 256 (Goyal et al. 2017).

    Raises:
        BadInput: if both or neither is set, or it is not positive.
    """
    if (settings.lr is None) == (settings.base_lr is None):
        raise BadInput(
            f"lr={settings.lr} and base_lr={settings.base_lr}: set exactly one; lr is absolute, "
            "base_lr is multiplied by batch / 256"
        )
    lr = settings.lr if settings.lr is not None else (settings.base_lr or 0.0) * settings.batch / 256
    if not lr > 0 or not math.isfinite(lr):
        raise BadInput(f"the learning rate is {lr}; it must be positive")
    return lr


def lr_at(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of a step: linear from 0, then half a cosine down to 0.

    Args:
        step: 0-based, of `steps`.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


def new_optimizer(model: nn.Module, settings: Training, device: torch.device) -> torch.optim.AdamW:
    """Return a fused AdamW in two groups: 1-D tensors (biases, norms) do not decay, everything else does.

    Class tokens, mask token and position tables are 3-D and so decay, as published.

    """
    decayed = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(settings.beta1, settings.beta2), fused=device.type in ("cpu", "cuda")
    )
