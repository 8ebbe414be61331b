"""Depth between cameras and sizes: points, registration to colour, crops and resizes that keep intrinsics true.

Shapes: H, W of the colour picture; h, w of the depth map; n points.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np

from ..errors import BadInput
from .frame import Frame, Intrinsics

_LEAST_SHARE = 0.5  # of valid depth under a resized pixel, for it to be valid
_NEAREST = 1e-6  # nearer than this is behind the camera [m]
_WIDEST = 16  # the largest square that one depth pixel fills in the colour picture [px]
_RIM = _WIDEST + 1  # around the picture while it is drawn; takes what falls outside, so that no pass must look [px]
_BLOCK = 16 * 1024  # depth pixels that are projected at a time
_SAMPLE = 4096  # depth pixels that say how large they are in the colour picture, about


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
    flat = np.ascontiguousarray(depth, np.float32).ravel()
    looks, shift = _corner_rays(source, target, np.ascontiguousarray(transform, float).tobytes())
    some = np.s_[:: max(len(flat) // _SAMPLE, 1)]
    down, right, _ = _rectangles(looks[:, :, some], shift, flat[some], target)
    drawing = _Drawing((target.height + 2 * _RIM, target.width + 2 * _RIM), _usual(down[1]), _usual(right[1]))
    for begin in range(0, len(flat), _BLOCK):  # so few at a time that they stay in the processor's cache
        part = np.s_[begin : begin + _BLOCK]
        drawing.add(*_rectangles(looks[:, :, part], shift, flat[part], target))
    drawn = drawing.finished()[_RIM:-_RIM, _RIM:-_RIM]
    return np.where(drawn < np.inf, drawn, np.float32(0))


class _Drawing:
    """A picture of rectangles, the nearest in front.

    Almost all are of the same four sizes, since depth pixels are alike. Each of these sizes has a picture of its own, in
    which only first pixels are drawn, all at once; an erosion, the least of what lies above and left, fills the rest.

    Args:
        shape: of the picture [px].
        down, right: how many pixels follow the first one in most rectangles, there or one more.
    """

    def __init__(self, shape: tuple[int, int], down: int, right: int) -> None:
        self.shape, self.down, self.right = shape, down, right
        self._pictures = np.full((4, *shape), np.inf, np.float32)
        self._odd: list[tuple[np.ndarray, ...]] = []

    def add(self, down: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], far: np.ndarray) -> None:
        """Draw rectangles: first row and column of each and how many follow, (n,) int32; distances, (n,) float32."""
        below, beside = down[1] - np.int32(self.down), right[1] - np.int32(self.right)
        places = down[0] * np.int32(self.shape[1])
        places += right[0]
        odd = np.flatnonzero((below | beside) & ~1)
        if len(odd):
            self._odd.append((places[odd], down[1][odd], right[1][odd], far[odd]))
            below[odd] = beside[odd] = 0
            far[odd] = np.inf
        below *= 2
        below += beside
        below *= np.int32(self.shape[0] * self.shape[1])
        np.minimum.at(self._pictures.ravel(), np.add(places, below, dtype=np.intp), far)

    def finished(self) -> np.ndarray:
        """Return the picture, float32, infinite where nothing was drawn."""
        for row in (0, 1):
            for column in (0, 1):
                _spread(self._pictures[2 * row + column], (1, self.right + 1 + column))
            np.minimum(self._pictures[2 * row], self._pictures[2 * row + 1], out=self._pictures[2 * row])
            _spread(self._pictures[2 * row], (self.down + 1 + row, 1))
        whole = np.minimum(self._pictures[0], self._pictures[2], out=self._pictures[0])
        for places, down, right, far in self._odd:
            for row in range(int(down.max()) + 1):
                for column in range(int(right.max()) + 1):
                    which = np.flatnonzero((down >= row) & (right >= column))
                    np.minimum.at(whole.ravel(), places[which] + (row * self.shape[1] + column), far[which])
        return whole


def _spread(picture: np.ndarray, size: tuple[int, int]) -> None:
    """Give each pixel the least of the `size` pixels that end with it."""
    if size != (1, 1):
        last = (size[1] - 1, size[0] - 1)
        cv2.erode(picture, np.ones(size, np.uint8), picture, last, borderType=cv2.BORDER_CONSTANT, borderValue=np.inf)


def _usual(spans: np.ndarray) -> int:
    """Return the span that, with the next larger one, is the most frequent."""
    counts = np.bincount(spans, minlength=2)
    return int((counts[:-1] + counts[1:]).argmax())


def _rectangles(
    looks: np.ndarray, shift: np.ndarray, depth: np.ndarray, target: Intrinsics
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return what depth pixels cover in the other picture with its rim, from corner to corner.

    Args:
        looks: (2, 3, n) and shift: (3,), as `_corner_rays` gives them.
        depth: (n,) float32 [m], 0 where invalid.

    Returns:
        the first row of each and how many follow, the same of columns, (n,) int32, and their distances, (n,) float32
        [m], infinite if invalid or behind the camera.
    """
    inverse = 1 / np.maximum(depth, np.float32(_NEAREST))
    moved = [each * inverse for each in shift]
    columns, rows, far = [], [], np.zeros_like(inverse)
    for corner in looks:
        x, y, z = (axis + more for axis, more in zip(corner, moved, strict=True))
        far += z
        np.maximum(z, np.float32(_NEAREST), out=z)
        if target.distorted:
            x, y = project(target, np.stack([x, y, z], axis=1)).T.astype(np.float32) + np.float32(0.5 + _RIM)
        else:
            x /= z
            y /= z
        columns.append(x)
        rows.append(y)
    far *= depth
    far *= np.float32(0.5)
    np.putmask(far, far <= _NEAREST, np.inf)
    return _cells(rows, target.height), _cells(columns, target.width), far


def _cells(edges: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first pixel that lies between two edges, counted from the rim's, and how many follow it, (n,) int32."""
    low, high = np.minimum(*edges), np.maximum(*edges)
    np.floor(low, out=low)
    np.floor(high, out=high)
    high -= low
    np.minimum(high, np.float32(_WIDEST - 1), out=high)
    np.clip(low, 0, size + _RIM, out=low)
    return low.astype(np.int32), high.astype(np.int32)


@lru_cache(maxsize=8)
def _corner_rays(source: Intrinsics, target: Intrinsics, pose: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return where the upper left and lower right corners of all pixels look, (2, 3, h w), and the shift, (3,); float32.

    In the other camera's axes; without distortion also multiplied by its matrix, so that a division gives pixels,
    counted from the outer edge of the rim.

    Args:
        pose: the bytes of the (4, 4) transform.
    """
    columns, rows = np.meshgrid(np.arange(source.width), np.arange(source.height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    transform, matrix = np.frombuffer(pose).reshape(4, 4), np.eye(3)
    if not target.distorted:
        matrix = target.matrix
        matrix[:2, 2] += 0.5 + _RIM
    half = 0.5 - 1e-3  # pixels that only touch are not shared
    looks = [np.column_stack([rays(source, pixels + away), np.ones(len(pixels))]).T for away in (-half, half)]
    turned = np.stack([matrix @ transform[:3, :3] @ each for each in looks])
    return turned.astype(np.float32), (matrix @ transform[:3, 3]).astype(np.float32)


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
