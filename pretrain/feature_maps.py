"""Images of patch tokens: their three principal components as red, green and blue.

Shapes: B images, N patches, D width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .image_grid import draw_grid


def draw_feature_maps(path: Path, images: Tensor, rows: dict[str, tuple[Tensor, tuple[int, int]]]) -> None:
    """Write an image with one column per image: the images, then the patch tokens of each row.

    Colours are the first three principal components of the first row's normalised tokens, over all images. The other
    rows use the same directions and scale.

    Args:
        path: a PNG.
        images: (B, H, W, 3) uint8.
        rows: patch tokens (B, N, D) and their grid (rows, columns) by name; D is equal in all.
    """
    drawn: dict[str, np.ndarray] = {"input": images.numpy()}
    view: _View | None = None
    for name, (tokens, grid) in rows.items():
        unit = F.normalize(tokens.flatten(0, 1).double(), dim=1)
        view = view or _view(unit)
        drawn[name] = view.colours(unit).unflatten(0, (len(images), *grid)).numpy()
    draw_grid(path, drawn, side=1.3)


class _View(NamedTuple):
    """Three directions of D and the range along each that maps to [0, 1]."""

    mean: Tensor  # (D,)
    directions: Tensor  # (D, 3)
    low: Tensor  # (3,)
    high: Tensor

    def colours(self, unit: Tensor) -> Tensor:
        """Return (n, 3) in [0, 1] for tokens (n, D)."""
        along = (unit - self.mean) @ self.directions
        return ((along - self.low) / (self.high - self.low).clamp(min=1e-12)).clamp(0, 1)


def _view(unit: Tensor) -> _View:
    mean = unit.mean(dim=0)
    directions = torch.linalg.svd(unit - mean, full_matrices=False).Vh[:3].T
    along = (unit - mean) @ directions
    return _View(mean, directions, along.quantile(0.02, dim=0), along.quantile(0.98, dim=0))
