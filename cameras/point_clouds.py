"""Point clouds of a fixed size from depth maps: cropped to a box and downsampled by farthest point sampling.

Shapes: h, w of the depth map; n points.
"""

from collections.abc import Sequence

import numpy as np

_CANDIDATES = 4096  # largest number of points to sample from; more are thinned evenly first


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of selected points, (count,) int64: each is the farthest from all selected before.

    Farthest point sampling (Eldar et al., "The farthest point strategy for progressive image sampling", 1997), starting
    at the point farthest from the mean. If there are fewer points than `count`, they are repeated in turn.

    Args:
        points: (n, 3), at least one.
        count: number of indices.
    """
    if len(points) <= count:
        return np.arange(count) % len(points)
    points = np.ascontiguousarray(points.T, np.float32)
    chosen, apart = np.empty(count, np.int64), np.full(points.shape[1], np.inf, np.float32)
    last = int(_squares(points, points.mean(axis=1)).argmax())
    for number in range(count):
        chosen[number] = last
        np.minimum(apart, _squares(points, points[:, last]), out=apart)
        last = int(apart.argmax())
    return chosen


def _squares(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    away = points - place[:, None]
    away *= away
    return away.sum(axis=0)


def point_cloud(points: np.ndarray, valid: np.ndarray, box: Sequence[float], count: int) -> np.ndarray:
    """Return a cloud of `count` points, (count, 4) float32: the position in the box, each axis from -1 to 1, and 1.

    As in DP3 (Ze et al., "3D Diffusion Policy", RSS 2024, arXiv 2403.03954): cropped to the workspace, downsampled by
    farthest point sampling, without colour. A cloud without points is all 0.

    Args:
        points: (h, w, 3) [m].
        valid: (h, w) bool, the mask of valid points.
        box: smallest and largest x, y and z that are kept: (x0, x1, y0, y1, z0, z1) [m].
        count: number of points.
    """
    low, high = np.array(box[::2], np.float32), np.array(box[1::2], np.float32)
    found = points[valid].astype(np.float32)
    found = found[((found >= low) & (found <= high)).all(axis=1)]
    cloud = np.zeros((count, 4), np.float32)
    if not len(found):
        return cloud
    if len(found) > _CANDIDATES:
        found = found[np.linspace(0, len(found) - 1, _CANDIDATES).astype(int)]
    found = found[farthest_points(found, count)]
    cloud[:, :3], cloud[:, 3] = 2 * (found - low) / (high - low) - 1, 1
    return cloud
