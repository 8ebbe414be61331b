"""Scripted experts of the TriFinger: waypoints of the fingertips, planned once from the initial state.

K decisions; lengths in [m]; fingertips are (9,), three coordinates of each finger.
"""

from itertools import pairwise, permutations

import numpy as np

from .arena import HALF, Pose

_TIP = 0.0105  # from the fingertip's frame to a face that it touches, measured [m]
_PRESS = 0.006  # depth of a finger's target inside the cube, so that it surely touches it [m]
_STANDOFF = 0.03  # distance from which a finger approaches a face [m]
_HOVER = 0.1  # height at which fingers pass over the cube [m]


def reach_waypoints(tips: np.ndarray, cube: Pose, decisions: int, stride: float) -> np.ndarray:
    """Return waypoints (K, 9) of finger 0 to the nearest face: a point in front of it, then its centre.

    Args:
        tips: the fingertips at the start.
        cube: its pose.
        decisions: K.
        stride: largest displacement of a coordinate in a decision.
    """
    faces = [normal for normal in _normals(cube) if normal[2] > -0.5]
    nearest = min(faces, key=lambda normal: np.linalg.norm(cube.position + HALF * normal - tips[:3]))
    before, touch = (cube.position + (HALF + away) * nearest for away in (_STANDOFF, _TIP - _PRESS))
    path = _path([tips[:3], before, touch], stride, decisions)
    return np.hstack([path, np.tile(tips[3:], (decisions, 1))])


def move_waypoints(tips: np.ndarray, cube: Pose, goal: np.ndarray, decisions: int, stride: float) -> np.ndarray:
    """Return waypoints (K, 9) of three fingers that carry the cube to a goal between them, without squeezing it.

    The leading face stays free; the finger on the opposite face pushes and the other two guide.

    Args:
        tips: the fingertips at the start.
        cube: its pose.
        goal: (3,), target of its centre.
        decisions: K.
        stride: largest displacement of a coordinate in a decision.
    """
    way = goal - cube.position
    sides = sorted((normal for normal in _normals(cube) if abs(normal[2]) < 0.5), key=lambda normal: normal @ way)[:3]
    order = min(
        permutations(sides),
        key=lambda normals: np.sum((cube.position + HALF * np.array(normals) - tips.reshape(3, 3)) ** 2),
    )
    touch = cube.position + (HALF + _TIP) * np.array(order)
    before = touch + _STANDOFF * np.array(order)
    above = before.copy()
    above[:, 2] = _HOVER
    approach = _path([tips, above.ravel(), before.ravel(), touch.ravel()], stride)
    shares = np.linspace(0, 1, decisions - len(approach))[1:]  # the last decision waits
    carry = touch.ravel() + np.minimum(shares[:, None], 1) * np.tile(way, 3)
    return np.vstack([approach, carry, carry[-1:]])


def _normals(cube: Pose) -> list[np.ndarray]:
    """Return the outward normals of the six faces."""
    x, y, z, w = cube.quaternion
    axes = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
            [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
            [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return [sign * axis for axis in axes for sign in (1.0, -1.0)]


def _path(points: list[np.ndarray], stride: float, length: int | None = None) -> np.ndarray:
    """Return waypoints through `points` without the first, at most `stride` apart in each coordinate.

    With a length, the last point is repeated up to it.
    """
    path: list[np.ndarray] = []
    for begin, end in pairwise(points):
        legs = max(1, int(np.ceil(np.abs(end - begin).max() / stride)))
        path += [begin + (end - begin) * leg / legs for leg in range(1, legs + 1)]
    return np.array(path if length is None else [*path, *[path[-1]] * (length - len(path))][:length])
