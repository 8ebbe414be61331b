"""Points of a depth map, registration to colour, and crops and resizes that keep intrinsics correct.

Shapes: H, W of the colour image; h, w of the depth map; n points.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from ..errors import BadInput
from .frame import Frame, Intrinsics, check_size, metric
from .lenses import rays
from .registration import register

_MIN_VALID = 0.5  # share of valid depth under a resized pixel that makes it valid


def points(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return the points of all pixels, (h, w, 3) [m]; those of invalid pixels are 0.

    Args:
        depth: (h, w) along the optical axis [m], 0 where invalid.

    Raises:
        BadInput: if the intrinsics have another size.
    """
    check_size("depth", depth, intrinsics)
    return (_grid(intrinsics) * depth[..., None]).astype(np.float32)


@lru_cache(maxsize=8)
def _grid(intrinsics: Intrinsics) -> np.ndarray:
    """Return x/z, y/z, 1 of every pixel, (h, w, 3)."""
    columns, rows = np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height))
    seen = rays(intrinsics, np.column_stack([columns.ravel(), rows.ravel()]).astype(float))
    return np.column_stack([seen, np.ones(len(seen))]).reshape(intrinsics.height, intrinsics.width, 3)


def registered(frame: Frame) -> Frame:
    """Return the frame with its depth in the colour image's geometry.

    Raises:
        BadInput: if the geometry of the two cameras is unknown.
    """
    if frame.is_registered:
        return frame
    if (
        frame.depth is None
        or frame.intrinsics is None
        or frame.depth_intrinsics is None
        or frame.depth_to_color is None
    ):
        known = {
            "the colour camera's intrinsics": frame.intrinsics,
            "the depth camera's intrinsics": frame.depth_intrinsics,
            "the pose of one camera to the other": frame.depth_to_color,
        }
        missing = ", ".join(name for name, value in known.items() if value is None)
        raise BadInput(f"depth cannot be registered to the colour image: the source does not provide {missing}")
    depth = register(frame.depth, frame.depth_intrinsics, frame.intrinsics, frame.depth_to_color)
    return replace(
        frame, depth=depth, valid=depth > 0, depth_intrinsics=frame.intrinsics, depth_to_color=np.eye(4), unit=None
    )


def crop(frame: Frame, top: int, left: int, height: int, width: int) -> Frame:
    """Return a part of a registered frame.

    Raises:
        BadInput: if the frame is not registered, or the part is not inside it.
    """
    full = _size(frame)
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > full[0] or left + width > full[1]:
        raise BadInput(f"{height}x{width} at row {top}, column {left} is not inside an image of {full[0]}x{full[1]}")
    part = np.s_[top : top + height, left : left + width]
    return _changed(
        frame,
        None if frame.rgb is None else np.ascontiguousarray(frame.rgb[part]),
        None if frame.depth is None else np.ascontiguousarray(frame.depth[part]),
        lambda known: known._replace(width=width, height=height, cx=known.cx - left, cy=known.cy - top),
    )


def resize(frame: Frame, height: int, width: int) -> Frame:
    """Resize a registered frame: colour by area averaging when it shrinks, depth by `resize_depth`.

    Raises:
        BadInput: if the frame is not registered.
    """
    full = _size(frame)
    if full == (height, width):
        return frame
    down, across = height / full[0], width / full[1]
    kind = cv2.INTER_AREA if down <= 1 and across <= 1 else cv2.INTER_LINEAR
    return _changed(
        replace(frame, unit=None),  # means of the sensor's integers are no integers
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
    """Return the largest central square of a registered frame, resized to `side` [px]; the input of policies."""
    height, width = _size(frame)
    least = min(height, width)
    return resize(crop(frame, (height - least) // 2, (width - least) // 2, least, least), side, side)


def resize_depth(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a depth map (h, w) [m]: each new pixel is the mean of the valid pixels under it, by the rules of `metric`.

    A new pixel with fewer than half of them valid is invalid. So holes keep their size, and every distance lies between
    the valid distances that it was computed from.
    """
    if depth.shape == (height, width):
        return depth
    shrinks = height <= depth.shape[0] and width <= depth.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    depth, known = metric(depth)
    share = cv2.resize(known.astype(np.float32), (width, height), interpolation=kind)
    total = cv2.resize(depth, (width, height), interpolation=kind)
    valid = share >= _MIN_VALID - 1e-4
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
        raise BadInput("the frame has neither colour nor depth")
    return int(known.shape[0]), int(known.shape[1])
