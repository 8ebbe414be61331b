"""The frames of a camera: a colour image, depth in metres with its validity, and the geometry and times of both.

Shapes: H height, W width of the colour image; h, w of the depth map.
"""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..errors import BadInput

NEAREST, FARTHEST = 1e-3, 1e3  # values outside this range are invalid [m]


class Intrinsics(NamedTuple):
    """A pinhole camera with lens distortion; pixel (0, 0) is the centre of the top left pixel.

    `model` is "none", "opencv" (Brown-Conrady, 4, 5 or 8 coefficients in OpenCV's order k1 k2 p1 p2 k3 k4 k5 k6) or
    "inverse_brown_conrady", which RealSense uses for colour: its polynomial maps distorted to undistorted points.
    """

    width: int  # [px]
    height: int  # [px]
    fx: float  # [px]
    fy: float  # [px]
    cx: float  # [px]
    cy: float  # [px]
    model: str = "none"
    coefficients: tuple[float, ...] = ()

    @property
    def matrix(self) -> np.ndarray:
        """Return K, (3, 3) [px]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    @property
    def distorted(self) -> bool:
        """Whether there is distortion: a model with coefficients other than 0."""
        return self.model != "none" and any(self.coefficients)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, width: int, height: int) -> "Intrinsics":
        """Return intrinsics without distortion from K, (3, 3) [px]."""
        fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
        return cls(width, height, fx, fy, cx, cy)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a camera. Depth is 0 where it is invalid, and nowhere else.

    Frames of a sensor have depth in the depth camera's geometry; `geometry.registered` transforms it to the colour
    camera's. A frame must be registered before it is cropped or resized.
    """

    rgb: np.ndarray | None  # (H, W, 3) uint8
    depth: np.ndarray | None  # (h, w) float32 along the optical axis [m]
    valid: np.ndarray | None  # (h, w) bool, with depth
    intrinsics: Intrinsics | None  # of the colour image; None if unknown
    depth_intrinsics: Intrinsics | None = None
    depth_to_color: np.ndarray | None = None  # (4, 4) from points in the depth camera to the colour camera [m]
    unit: float | None = None  # of the sensor's integers [m]; None if it measures in metres
    camera_to_world: np.ndarray | None = None  # (4, 4) of the colour camera, axes right, down, forward [m]
    sensor_time: float = 0.0  # of the colour image (of depth without colour), on the camera's clock [s]
    depth_time: float | None = None  # of the depth map, on the same clock [s]
    arrival_time: float = 0.0  # when it was received, on `time.monotonic`'s clock [s]
    sequence: int = 0  # number given by the camera; gaps are lost frames
    is_first: bool = False  # of an episode, if the source has episodes
    proprio: np.ndarray | None = None  # (P,) float32, if the source has it

    @property
    def skew(self) -> float:
        """Return the time between colour and depth [s]; 0 if one of them is missing."""
        if self.rgb is None or self.depth is None or self.depth_time is None:
            return 0.0
        return abs(self.sensor_time - self.depth_time)

    @property
    def is_registered(self) -> bool:
        """Whether depth is in the colour image's geometry; true for a frame with only one of them."""
        if self.rgb is None or self.depth is None:
            return True
        same_place = self.depth_to_color is not None and np.array_equal(self.depth_to_color, np.eye(4))
        return same_place and self.rgb.shape[:2] == self.depth.shape and self.intrinsics == self.depth_intrinsics

    def age(self, now: float | None = None) -> float:
        """Return the time since it arrived [s]; `now` is on `time.monotonic`'s clock."""
        return (time.monotonic() if now is None else now) - self.arrival_time

    def copy(self) -> "Frame":
        """Return a frame with copies of the arrays."""
        arrays = (None if each is None else each.copy() for each in (self.rgb, self.depth, self.valid))
        rgb, depth, valid = arrays
        return replace(self, rgb=rgb, depth=depth, valid=valid)


def metric(values: np.ndarray, unit: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Convert a sensor's depth to metres and validity.

    Args:
        values: (h, w) integers in `unit`, or floats [m].
        unit: of integers [m].

    Returns:
        depth (h, w) float32 [m], 0 where invalid, and valid (h, w) bool. Zeros, negative values, NaN, infinities, the
        largest 16-bit number (which several sensors send for "too far") and values outside 1 mm to 1 km are invalid.

    Raises:
        BadInput: if the array has another shape or type, or integers come without a unit.
    """
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise BadInput(f"depth must be integers or floats (h, w); got {values.dtype} {values.shape}")
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            valid = (values >= NEAREST) & (values <= FARTHEST)
        return np.where(valid, values, 0).astype(np.float32), valid
    if unit is None or not unit > 0:
        raise BadInput(f"depth in integers needs its unit in metres, such as 0.001; got {unit}")
    depth = values.astype(np.float32) * np.float32(unit)
    valid = (depth >= NEAREST) & (depth <= FARTHEST)
    if values.dtype == np.uint16:
        valid &= values < 65535
    depth[~valid] = 0
    return depth, valid


def to_sensor_units(depth: np.ndarray, unit: float) -> np.ndarray:
    """Return the sensor's integers, (h, w) uint16, so that `metric(to_sensor_units(depth, unit), unit)` is `depth`.

    Args:
        depth: (h, w) float32 as returned by `metric` [m].
        unit: of the integers [m].

    Raises:
        BadInput: if a distance does not fit into 16 bits.
    """
    steps = np.rint(depth / np.float32(unit))
    if steps.size and (steps.max() >= 65535 or steps.min() < 0):
        raise BadInput(f"a depth of {depth.max():.3f} m does not fit into 16 bits of {unit} m")
    return steps.astype(np.uint16)


def rgbd_frame(
    rgb: np.ndarray | None,
    depth: np.ndarray | None,
    intrinsics: Intrinsics | None,
    unit: float | None = None,
    sensor_time: float = 0.0,
    sequence: int = 0,
    camera_to_world: np.ndarray | None = None,
    is_first: bool = False,
) -> Frame:
    """Return a frame that arrives now, of a camera whose depth is registered to colour.

    Args:
        rgb: (H, W, 3) uint8.
        depth: (H, W), as for `metric`.
        unit: of depth in integers [m].
    """
    metres, valid = (None, None) if depth is None else metric(depth, unit)
    return Frame(
        rgb=rgb,
        depth=metres,
        valid=valid,
        intrinsics=intrinsics,
        depth_intrinsics=None if depth is None else intrinsics,
        depth_to_color=None if depth is None else np.eye(4),
        unit=unit,
        camera_to_world=camera_to_world,
        sensor_time=sensor_time,
        depth_time=None if depth is None else sensor_time,
        arrival_time=time.monotonic(),
        sequence=sequence,
        is_first=is_first,
    )


def check_size(what: str, values: np.ndarray, intrinsics: Intrinsics) -> None:
    """Refuse a map (h, w) whose size differs from its intrinsics.

    Raises:
        BadInput: with both sizes.
    """
    if values.shape[:2] != (intrinsics.height, intrinsics.width):
        raise BadInput(
            f"{what} of {values.shape[0]}x{values.shape[1]} px does not fit intrinsics of "
            f"{intrinsics.height}x{intrinsics.width} px"
        )
