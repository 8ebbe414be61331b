"""Pictures of patch tokens: their three main directions as red, green and blue.

Shapes: B images, N patches, D width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files import replacing


def draw_feature_maps(path: Path, images: Tensor, rows: dict[str, tuple[Tensor, tuple[int, int]]]) -> None:
    """Write a picture with a column an image: the images, then each row's patch tokens.

    Colours are the first three principal components of the first row's tokens, of length 1, over all images; the other
    rows are shown along the same directions and to the same scale.

    Args:
        path: a PNG.
        images: (B, H, W, 3) uint8.
        rows: name to patch tokens (B, N, D) and their grid (rows, columns); D is the same in all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * len(images) + 1.4, 1.3 * (len(rows) + 1)), dpi=100)
    axes = figure.subplots(len(rows) + 1, len(images), squeeze=False)
    drawn: dict[str, np.ndarray] = {"input": images.numpy()}
    view: _View | None = None
    for name, (tokens, grid) in rows.items():
        unit = F.normalize(tokens.flatten(0, 1).double(), dim=1)
        view = view or _view(unit)
        drawn[name] = view.colours(unit).unflatten(0, (len(images), *grid)).numpy()
    for line, (name, pictures) in zip(axes, drawn.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    left = 1.35 / figure.get_figwidth()
    figure.subplots_adjust(left=left, right=0.995, top=0.99, bottom=0.01, wspace=0.04, hspace=0.04)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


class _View(NamedTuple):
    """Three directions among D and the range along each that becomes [0, 1]."""

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
