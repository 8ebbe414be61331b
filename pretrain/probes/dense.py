"""Losses and measures of dense probes.

Shapes: B images, H x W pixels; depth [m], 0 where unknown.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DepthErrors(NamedTuple):
    """Of each image on its own, over its known pixels; NaN where none is known."""

    rmse: Tensor  # (B,) [m]
    abs_rel: Tensor  # (B,) mean of |error| / depth
    delta1: Tensor  # (B,) share of pixels whose ratio to the truth is below 1.25, either way


def silog(prediction: Tensor, truth: Tensor, variance: float = 0.5) -> Tensor:
    """Return the scale-invariant logarithmic loss (Eigen et al., arXiv:1406.2283) over known pixels.

    Args:
        prediction, truth: (B, H, W).
        variance: lambda; 1 forgives any common factor, 0 none.
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
