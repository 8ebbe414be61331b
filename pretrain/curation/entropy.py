"""Colour entropy of an image: low for rendered pages, flat graphics and products on white.

Shapes: H height, W width.
"""

import numpy as np

DEFINITION = "mean of the channels' entropies over 256 levels, in bits"  # goes into every sidecar


def colour_entropy(image: np.ndarray) -> float:
    """Return the mean over channels of the entropy of their levels, 0 to 8 [bits].

    Args:
        image: (H, W, 3) uint8.

    >>> colour_entropy(np.zeros((4, 4, 3), np.uint8))
    0.0
    """
    pixels = image.shape[0] * image.shape[1]
    total = 0.0
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        shares = counts[counts > 0] / pixels
        total -= float((shares * np.log2(shares)).sum())
    return total / 3 + 0.0
