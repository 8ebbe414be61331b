"""Images of dense probes: image, target, prediction and error in rows."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ...files import replacing
from .dense_data import IGNORED, DenseSet

_SHOWN = 6  # test images in a figure


def draw_dense(test: DenseSet, predictions: Sequence[np.ndarray], kind: str, title: str, path: Path) -> None:
    """Draw some test images, their targets, predictions and errors, with colour bars for depth [m]."""
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(test) - 1, min(_SHOWN, len(test))).round().astype(int))
    figure = Figure(figsize=(1.7 * len(chosen) + 1.2, 7.2), layout="constrained")
    axes = figure.subplots(4, len(chosen), squeeze=False)
    pairs = [test.read(int(index)) for index in chosen]
    guesses = [predictions[int(index)] for index in chosen]
    if kind == "depth":
        truths = [np.where(pair.target > 0, pair.target, np.nan) for pair in pairs]
        errors = [np.abs(guess - truth) for guess, truth in zip(guesses, truths, strict=True)]
        known = np.concatenate([truth[np.isfinite(truth)] for truth in truths] or [np.zeros(1)])
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        wrong = [error[np.isfinite(error)] for error in errors]
        most = float(np.percentile(np.concatenate(wrong), 99)) if known.size else 1.0
        styles = [("viridis", low, high), ("viridis", low, high), ("magma", 0.0, max(most, 1e-6))]
        label = "depth [m]"
    else:
        truths = [np.where(pair.target != IGNORED, pair.target, np.nan) for pair in pairs]
        errors = [
            np.where(np.isnan(truth), np.nan, guess != truth) for guess, truth in zip(guesses, truths, strict=True)
        ]
        styles = [("tab20", -0.5, 19.5), ("tab20", -0.5, 19.5), ("magma", 0.0, 1.0)]
        truths, guesses = [truth % 20 for truth in truths], [guess % 20 for guess in guesses]
        label = "class"
    for row, (name, maps) in enumerate(
        zip(("image", "truth", "prediction", "error"), ([p.image for p in pairs], truths, guesses, errors), strict=True)
    ):
        shown = None
        for column, values in enumerate(maps):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.imshow(_small(values))
            else:
                cmap, least, greatest = styles[row - 1]
                shown = axis.imshow(values, cmap=cmap, vmin=least, vmax=greatest, interpolation="nearest")
        axes[row, 0].set_ylabel(name)
        if shown is not None and (kind == "depth" or row < 3):
            figure.colorbar(shown, ax=list(axes[row]), label="error [m]" if row == 3 else label, shrink=0.9)
    figure.suptitle(title if len(title) < 90 else f"...{title[-87:]}", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _small(image: np.ndarray) -> np.ndarray:
    scale = 384 / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
