"""Pictures of patch tokens: their three main directions as red, green and blue.

Shapes: B images, N patches, D width.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import replacing


def draw_feature_maps(path: Path, images: Tensor, rows: dict[str, tuple[Tensor, tuple[int, int]]]) -> None:
    """Write a picture with a column an image: the images, then each row's patch tokens.

    A row's colours are the first three principal components over all its images; the sign of each is chosen so that
    it goes with the first row's where the grids agree.

    Args:
        path: a PNG.
        images: (B, H, W, 3) uint8.
        rows: name to patch tokens (B, N, D) and their grid (rows, columns).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * len(images) + 1.4, 1.3 * (len(rows) + 1)), dpi=100)
    axes = figure.subplots(len(rows) + 1, len(images), squeeze=False)
    drawn: dict[str, np.ndarray] = {"input": images.numpy()}
    reference: Tensor | None = None
    for name, (tokens, grid) in rows.items():
        components = _components(tokens)
        if reference is not None and reference.shape == components.shape:
            components = components * torch.sign((components * reference).sum(dim=0)).where(components.any(), 1.0)
        else:
            reference = components
        drawn[name] = _colours(components).unflatten(0, (len(images), *grid)).numpy()
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


def _components(tokens: Tensor) -> Tensor:
    """Return the first three principal components of all tokens, (B * N, 3)."""
    flat = tokens.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    left, values, _ = torch.linalg.svd(flat, full_matrices=False)
    return left[:, :3] * values[:3]


def _colours(components: Tensor) -> Tensor:
    """Stretch each component to [0, 1]."""
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    return ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
