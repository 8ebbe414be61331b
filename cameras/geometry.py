"""Depth between cameras and sizes: points, registration to colour, crops and resizes that keep intrinsics true.

Shapes: H, W of the colour picture; h, w of the depth map; n points.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from ..errors import BadInput
from .frame import Frame, Intrinsics

_LEAST_SHARE = 0.5  # of valid depth under a resized pixel, for it to be valid
_NEAREST = 1e-6  # nearer than this is behind the camera [m]
_WIDEST = 16  # the largest square that one depth pixel fills in the colour picture [px]


def rays(intrinsics: Intrinsics, pixels: np.ndarray) -> np.ndarray:
    """Return where pixels look, (n, 2): x/z and y/z of the points they see.

    Args:
        pixels: (n, 2) columns and rows [px].
    """
    bent = (pixels - (intrinsics.cx, intrinsics.cy)) / (intrinsics.fx, intrinsics.fy)
    if not intrinsics.distorted:
        return bent
    if intrinsics.model == "inverse_brown_conrady":
        return _brown_conrady(bent, intrinsics.coefficients)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-10)
    coefficients = np.array(intrinsics.coefficients)
    return cv2.undistortPointsIter(bent[:, None], np.eye(3), coefficients, np.eye(3), np.eye(3), criteria)[:, 0]


def project(intrinsics: Intrinsics, points: np.ndarray) -> np.ndarray:
    """Return the pixels (n, 2) [px] of points (n, 3) [m] in front of the camera."""
    straight = points[:, :2] / points[:, 2:]
    if intrinsics.distorted and intrinsics.model == "inverse_brown_conrady":
        bent = straight.copy()
        for _ in range(20):  # the fixed point of bent = straight - what bending adds
            bent = straight - (_brown_conrady(bent, intrinsics.coefficients) - bent)
        straight = bent
    elif intrinsics.distorted:
        ones = np.column_stack([straight, np.ones(len(straight))])
        coefficients, none = np.array(intrinsics.coefficients), np.zeros(3)
        straight = cv2.projectPoints(ones, none, none, np.eye(3), coefficients)[0][:, 0]
    scale, centre = np.array([[intrinsics.fx, intrinsics.fy], [intrinsics.cx, intrinsics.cy]], straight.dtype)
    return straight * scale + centre


def _brown_conrady(points: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Bend points (n, 2); D. C. Brown, "Decentering distortion of lenses", 1966, in OpenCV's order."""
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


def points(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return the points of all pixels, (h, w, 3) [m]; those of invalid pixels are 0.

    Args:
        depth: (h, w) along the optical axis [m], 0 where invalid.

    Raises:
        BadInput: if the intrinsics are of another size.
    """
    _check_size("depth", depth, intrinsics)
    return (_grid(intrinsics) * depth[..., None]).astype(np.float32)


@lru_cache(maxsize=8)
def _grid(intrinsics: Intrinsics) -> np.ndarray:
    """Return x/z, y/z, 1 of every pixel, (h, w, 3)."""
    columns, rows = np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height))
    seen = rays(intrinsics, np.column_stack([columns.ravel(), rows.ravel()]).astype(float))
    return np.column_stack([seen, np.ones(len(seen))]).reshape(intrinsics.height, intrinsics.width, 3)


def register(depth: np.ndarray, source: Intrinsics, target: Intrinsics, transform: np.ndarray) -> np.ndarray:
    """Draw depth as another camera would have measured it, the nearest surface in front.

    Each depth pixel fills the rectangle between its projected corners, so that a picture of finer pixels has no seams.
    What the depth camera did not see stays 0.

    Args:
        depth: (h, w) float32 [m], 0 where invalid.
        source, target: intrinsics of the depth camera and of the other.
        transform: (4, 4) from points in the depth camera to points in the other [m].

    Returns:
        (H, W) float32 [m], of the target's size.

    Raises:
        BadInput: if the intrinsics are of another size than `depth`.
    """
    _check_size("depth", depth, source)
    flat = depth.ravel().astype(np.float32)
    inverse = np.divide(1, flat, out=np.zeros_like(flat), where=flat > 0)
    rotation = np.ascontiguousarray(transform[:3, :3], float).tobytes()
    corners = [_seen_at(target, turned, inverse, transform[:3, 3]) for turned in _corner_rays(source, rotation)]
    far = flat * (corners[0][2] + corners[1][2]) / 2
    where = np.flatnonzero((flat > 0) & (far > _NEAREST))
    edge = _WIDEST + 1  # a rim around the picture takes what falls outside, so that no pass must look
    shape = (target.height + 2 * edge, target.width + 2 * edge)
    begins, spans = [], []
    for axis, size in ((0, target.width), (1, target.height)):
        one, other = (each[axis][where] for each in corners)
        first, last = (
            np.floor(np.clip(each, -edge, size)).astype(np.int32)
            for each in (np.minimum(one, other), np.maximum(one, other))
        )
        begins.append(first + edge)
        spans.append(np.minimum(last - first, _WIDEST - 1))
    places = begins[1].astype(np.int64) * shape[1] + begins[0]
    drawn, far = np.full(shape[0] * shape[1], np.inf, np.float32), far[where]
    for down in range(int(spans[1].max(initial=-1)) + 1):
        high = spans[1] >= down
        for right in range(int(spans[0].max(initial=-1)) + 1):
            which = np.flatnonzero(high & (spans[0] >= right))
            if which.size:
                np.minimum.at(drawn, places[which] + (down * shape[1] + right), far[which])
    nearest = drawn.reshape(shape)[edge : edge + target.height, edge : edge + target.width]
    return np.where(np.isfinite(nearest), nearest, np.float32(0))


def _seen_at(
    target: Intrinsics, looks: np.ndarray, inverse: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return columns and rows [px] plus a half, and distance over distance, where a camera sees points along rays.

    Args:
        looks: (3, n) float32 rays in the target's axes.
        inverse: (n,) float32, one over the points' depth [1/m].
        shift: (3,) from one camera to the other [m].
    """
    x, y, z = (axis + np.float32(moved) * inverse for axis, moved in zip(looks, shift, strict=True))
    positive = np.maximum(z, np.float32(1e-6))
    if target.distorted:
        columns, rows = project(target, np.stack([x, y, positive], axis=1)).T.astype(np.float32) + np.float32(0.5)
        return columns, rows, z
    np.divide(np.float32(1), positive, out=positive)
    x *= positive
    x *= np.float32(target.fx)
    x += np.float32(target.cx + 0.5)
    y *= positive
    y *= np.float32(target.fy)
    y += np.float32(target.cy + 0.5)
    return x, y, z


@lru_cache(maxsize=8)
def _corner_rays(source: Intrinsics, rotation: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return where the upper left and lower right corners of all pixels look, each (3, h w) float32, rotated."""
    columns, rows = np.meshgrid(np.arange(source.width), np.arange(source.height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    matrix = np.frombuffer(rotation).reshape(3, 3)
    half = 0.5 - 1e-4  # pixels that only touch are not shared
    first, last = (
        np.ascontiguousarray(
            matrix @ np.column_stack([rays(source, pixels + shift), np.ones(len(pixels))]).T, np.float32
        )
        for shift in (-half, half)
    )
    return first, last


def registered(frame: Frame) -> Frame:
    """Return the frame with its depth in the colour picture's geometry.

    Raises:
        BadInput: if the two cameras' geometry is not known.
    """
    if frame.is_registered:
        return frame
    assert frame.depth is not None
    if frame.intrinsics is None or frame.depth_intrinsics is None or frame.depth_to_color is None:
        known = {
            "the colour camera's intrinsics": frame.intrinsics,
            "the depth camera's intrinsics": frame.depth_intrinsics,
            "the pose of one camera to the other": frame.depth_to_color,
        }
        missing = ", ".join(name for name, value in known.items() if value is None)
        raise BadInput(f"depth cannot be brought into the colour picture: the source does not tell {missing}")
    depth = register(frame.depth, frame.depth_intrinsics, frame.intrinsics, frame.depth_to_color)
    return replace(
        frame, depth=depth, valid=depth > 0, depth_intrinsics=frame.intrinsics, depth_to_color=np.eye(4), unit=None
    )


def crop(frame: Frame, top: int, left: int, height: int, width: int) -> Frame:
    """Cut a part out of a registered frame.

    Raises:
        BadInput: if the frame is not registered, or the part is not inside.
    """
    full = _size(frame)
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > full[0] or left + width > full[1]:
        raise BadInput(f"{height}x{width} at row {top}, column {left} is not inside a picture of {full[0]}x{full[1]}")
    part = np.s_[top : top + height, left : left + width]
    return _changed(
        frame,
        None if frame.rgb is None else np.ascontiguousarray(frame.rgb[part]),
        None if frame.depth is None else np.ascontiguousarray(frame.depth[part]),
        lambda known: known._replace(width=width, height=height, cx=known.cx - left, cy=known.cy - top),
    )


def resize(frame: Frame, height: int, width: int) -> Frame:
    """Resize a registered frame: colour over areas where it shrinks, depth as `resize_depth` says.

    Raises:
        BadInput: if the frame is not registered.
    """
    full = _size(frame)
    if full == (height, width):
        return frame
    down, across = height / full[0], width / full[1]
    kind = cv2.INTER_AREA if down <= 1 and across <= 1 else cv2.INTER_LINEAR
    return _changed(
        frame,
        None if frame.rgb is None else cv2.resize(frame.rgb, (width, height), interpolation=kind),
        None if frame.depth is None else resize_depth(frame.depth, height, width),
        lambda known: known._replace(
            width=width,
            height=height,
            fx=known.fx * across,
            fy=known.fy * down,
            cx=(known.cx + 0.5) * across - 0.5,
            cy=(known.cy + 0.5) * down - 0.5,
        ),
    )


def squared(frame: Frame, side: int) -> Frame:
    """Return the largest central square of a registered frame at `side` px, which is what policies see."""
    height, width = _size(frame)
    least = min(height, width)
    return resize(crop(frame, (height - least) // 2, (width - least) // 2, least, least), side, side)


def resize_depth(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a depth map (h, w) [m], 0 where invalid, with the mean of the valid pixels under each new one.

    Where fewer than half of them are valid the new one is invalid, so holes neither shrink nor leave ghosts: no
    distance is smaller or larger than the valid ones it stands for.
    """
    if depth.shape == (height, width):
        return depth
    shrinks = height <= depth.shape[0] and width <= depth.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize((depth > 0).astype(np.float32), (width, height), interpolation=kind)
    total = cv2.resize(depth.astype(np.float32), (width, height), interpolation=kind)
    valid = share >= _LEAST_SHARE - 1e-4
    return np.divide(total, share, out=np.zeros_like(total), where=valid)


def _changed(
    frame: Frame,
    rgb: np.ndarray | None,
    depth: np.ndarray | None,
    move: Callable[[Intrinsics], Intrinsics],
) -> Frame:
    intrinsics, depth_intrinsics = (
        None if known is None else move(known) for known in (frame.intrinsics, frame.depth_intrinsics)
    )
    valid = None if depth is None else depth > 0
    return replace(frame, rgb=rgb, depth=depth, valid=valid, intrinsics=intrinsics, depth_intrinsics=depth_intrinsics)


def _size(frame: Frame) -> tuple[int, int]:
    if not frame.is_registered:
        raise BadInput("depth must be registered to colour before a frame is cropped or resized; call registered()")
    known = frame.rgb if frame.rgb is not None else frame.depth
    if known is None:
        raise BadInput("the frame holds neither colour nor depth")
    return int(known.shape[0]), int(known.shape[1])


def _check_size(what: str, values: np.ndarray, intrinsics: Intrinsics) -> None:
    if values.shape[:2] != (intrinsics.height, intrinsics.width):
        raise BadInput(
            f"{what} of {values.shape[0]}x{values.shape[1]} px does not fit intrinsics of "
            f"{intrinsics.height}x{intrinsics.width} px"
        )
