"""Rays of pixels and projection of points, with lens distortion.

Shapes: n points.
"""

import cv2
import numpy as np

from .frame import Intrinsics


def rays(intrinsics: Intrinsics, pixels: np.ndarray) -> np.ndarray:
    """Return the rays of pixels, (n, 2): x/z and y/z of the points that they show.

    Args:
        pixels: (n, 2) columns and rows [px].
    """
    distorted = (pixels - (intrinsics.cx, intrinsics.cy)) / (intrinsics.fx, intrinsics.fy)
    if not intrinsics.distorted:
        return distorted
    if intrinsics.model == "inverse_brown_conrady":
        return _brown_conrady(distorted, intrinsics.coefficients)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-10)
    coefficients = np.array(intrinsics.coefficients)
    return cv2.undistortPointsIter(distorted[:, None], np.eye(3), coefficients, np.eye(3), np.eye(3), criteria)[:, 0]


def project(intrinsics: Intrinsics, points: np.ndarray) -> np.ndarray:
    """Return the pixels (n, 2) [px] of points (n, 3) [m] in front of the camera."""
    undistorted = points[:, :2] / points[:, 2:]
    if intrinsics.distorted and intrinsics.model == "inverse_brown_conrady":
        distorted = undistorted.copy()
        for _ in range(20):  # fixed point iteration: distorted = undistorted - displacement
            distorted = undistorted - (_brown_conrady(distorted, intrinsics.coefficients) - distorted)
        undistorted = distorted
    elif intrinsics.distorted:
        ones = np.column_stack([undistorted, np.ones(len(undistorted))])
        coefficients, none = np.array(intrinsics.coefficients), np.zeros(3)
        undistorted = cv2.projectPoints(ones, none, none, np.eye(3), coefficients)[0][:, 0]
    scale, centre = np.array([[intrinsics.fx, intrinsics.fy], [intrinsics.cx, intrinsics.cy]], undistorted.dtype)
    return undistorted * scale + centre


def _brown_conrady(points: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Distort points (n, 2); D. C. Brown, "Decentering distortion of lenses", 1966, in OpenCV's order."""
    k1, k2, p1, p2, k3 = (*coefficients, 0.0)[:5]
    x, y = points[:, 0], points[:, 1]
    squared = x * x + y * y
    radial = 1 + squared * (k1 + squared * (k2 + squared * k3))
    return np.column_stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * radial + 2 * p2 * x * y + p1 * (squared + 2 * y * y),
        ]
    )
