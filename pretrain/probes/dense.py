"""Losses and metrics of dense probes.

Shapes: B images, H x W pixels; depth [m], 0 where unknown.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DepthErrors(NamedTuple):
    """Errors of each image over its known pixels; NaN where none is known."""

    rmse: Tensor  # (B,) [m]
    abs_rel: Tensor  # (B,) mean of |error| / depth
    delta1: Tensor  # (B,) share of pixels within a factor of 1.25 of the truth


def silog(prediction: Tensor, truth: Tensor, variance: float = 0.5) -> Tensor:
    """Return the scale-invariant logarithmic loss (Eigen et al., arXiv:1406.2283) over known pixels.

    Args:
        prediction, truth: (B, H, W).
        variance: lambda; with 1 the loss is invariant to a common factor, with 0 not.
    """
    known = truth > 0
    difference = prediction[known].log() - truth[known].log()
    return (difference.square().mean() - variance * difference.mean().square()).clamp(min=1e-12).sqrt()


def depth_errors(prediction: Tensor, truth: Tensor) -> DepthErrors:
    """Return the errors of each image, (B, H, W) against (B, H, W)."""
    known = truth > 0
    count = known.sum((1, 2)).float()
    safe = torch.where(known, truth, 1.0)
    error = prediction - safe
    close = torch.maximum(prediction / safe, safe / prediction) < 1.25

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0.0).sum((1, 2)) / count

    return DepthErrors(mean(error.square()).sqrt(), mean(error.abs() / safe), mean(close.float()))
