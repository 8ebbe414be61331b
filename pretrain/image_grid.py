"""Grids of images with named rows."""

from pathlib import Path

import numpy as np

from ..files import replacing


def draw_grid(path: Path, rows: dict[str, np.ndarray], side: float) -> None:
    """Write an image with one column per image and one row per name.

    Args:
        path: a PNG.
        rows: names to (B, H, W, 3) of uint8, or float in [0, 1]; B is equal in all.
        side: of a cell [inch], at 100 dots per inch.
    """
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(side * columns + 1.4, side * len(rows)), dpi=100)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    left = 1.35 / figure.get_figwidth()
    figure.subplots_adjust(left=left, right=0.995, top=0.99, bottom=0.01, wspace=0.04, hspace=0.04)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
