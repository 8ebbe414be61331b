"""Point clouds of a fixed size from depth maps: cropped to a box, thinned by farthest point sampling.

Shapes: h, w of the depth map; n points.
"""

from collections.abc import Sequence

import numpy as np

_CANDIDATES = 4096  # most points that are sampled from; of more, an even share is


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Return which points are kept, (count,) int64: each next one is the farthest from all that were chosen before.

    Farthest point sampling (Eldar et al., "The farthest point strategy for progressive image sampling", 1997), begun at
    the point farthest from the middle. Fewer points than asked for are repeated in turn.

    Args:
        points: (n, 3), at least one.
        count: how many.
    """
    if len(points) <= count:
        return np.arange(count) % len(points)
    points = np.ascontiguousarray(points.T, np.float32)
    chosen, apart = np.empty(count, np.int64), np.full(points.shape[1], np.inf, np.float32)
    newest = int(_squares(points, points.mean(axis=1)).argmax())
    for number in range(count):
        chosen[number] = newest
        np.minimum(apart, _squares(points, points[:, newest]), out=apart)
        newest = int(apart.argmax())
    return chosen


def _squares(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    away = points - place[:, None]
    away *= away
    return away.sum(axis=0)


def point_cloud(points: np.ndarray, there: np.ndarray, box: Sequence[float], count: int) -> np.ndarray:
    """Return a cloud of `count` points, (count, 4) float32: the place in the box, each axis from -1 to 1, and 1.

    As in DP3 (Ze et al., "3D Diffusion Policy", RSS 2024, arXiv 2403.03954): cropped to the workspace, down-sampled by
    farthest point sampling, without colour. A cloud without points is all 0.

    Args:
        points: (h, w, 3) [m].
        there: (h, w) bool, which of them exist.
        box: least and most x, y and z of what is kept: (x0, x1, y0, y1, z0, z1) [m].
        count: how many points.
    """
    low, high = np.array(box[::2], np.float32), np.array(box[1::2], np.float32)
    found = points[there].astype(np.float32)
    found = found[((found >= low) & (found <= high)).all(axis=1)]
    cloud = np.zeros((count, 4), np.float32)
    if not len(found):
        return cloud
    if len(found) > _CANDIDATES:
        found = found[np.linspace(0, len(found) - 1, _CANDIDATES).astype(int)]
    found = found[farthest_points(found, count)]
    cloud[:, :3], cloud[:, 3] = 2 * (found - low) / (high - low) - 1, 1
    return cloud
