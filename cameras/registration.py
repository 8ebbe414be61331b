"""Registration: a depth camera's map, rendered from the viewpoint of the colour camera.

Shapes: H, W of the other camera's image; h, w of the depth map.
"""

from functools import lru_cache

import cv2
import numpy as np

from .frame import Intrinsics, check_size, metric
from .lenses import project, rays

_NEAREST = 1e-6  # nearer than this is behind the camera [m]
_WIDEST = 16  # the largest square that one depth pixel fills in the colour image [px]
_RIM = _WIDEST + 1  # border of the image while it is rendered; receives pixels outside, so no pass checks bounds [px]
_BLOCK = 16 * 1024  # depth pixels that are projected in one step
_SAMPLE = 4096  # approximate number of depth pixels that measure the pixel size in the colour image
_STEP = 16  # distance between the depth pixels that are tested for being in view [px]


def register(depth: np.ndarray, source: Intrinsics, target: Intrinsics, transform: np.ndarray) -> np.ndarray:
    """Render depth as another camera would measure it; the nearest surface wins.

    Each depth pixel fills the rectangle between its projected corners, so an image of smaller pixels has no gaps. What
    the depth camera did not observe stays 0.

    Args:
        depth: (h, w) [m]; what `metric` treats as invalid is ignored.
        source, target: intrinsics of the depth camera and of the other camera.
        transform: (4, 4) from points in the depth camera to points in the other [m].

    Returns:
        (H, W) float32 [m], of the target's size.

    Raises:
        BadInput: if the intrinsics are of another size than `depth`.
    """
    check_size("depth", depth, source)
    depth = metric(np.ascontiguousarray(depth, np.float32))[0]
    corner_rays, shift = _corner_rays(source, target, np.ascontiguousarray(transform, float).tobytes())
    part = _in_view(corner_rays, shift, depth, target)
    corner_rays, depth = corner_rays[:, :, part[0], part[1]], depth[part]
    if not depth.size:
        return np.zeros((target.height, target.width), np.float32)
    some = max(int((depth.size / _SAMPLE) ** 0.5), 1)
    drawing = _Drawing(target, *_rectangles(corner_rays[..., ::some, ::some], shift, depth[::some, ::some], target)[:2])
    step = max(_BLOCK // depth.shape[1], 1)
    for begin in range(0, len(depth), step):  # blocks that fit into the processor's cache
        rows = np.s_[begin : begin + step]
        drawing.add(*_rectangles(corner_rays[:, :, rows], shift, depth[rows], target))
    return drawing.finished()


def _in_view(corner_rays: np.ndarray, shift: np.ndarray, depth: np.ndarray, target: Intrinsics) -> tuple[slice, slice]:
    """Return the rows and columns of the depth map that can be visible in the other image.

    Between the nearest depth and infinity, the projection of a ray is a line segment, so testing its two ends is
    enough; a grid of pixels is tested. With lens distortion all pixels are assumed to be in view.
    """
    everything = slice(0, depth.shape[0]), slice(0, depth.shape[1])
    nearest = cv2.minMaxLoc(depth, mask=(depth > 0).astype(np.uint8))[0]  # 0 if there is none
    if target.distorted or nearest <= 0:
        return everything
    grid = corner_rays[0, :, ::_STEP, ::_STEP]
    ends = np.stack([grid, grid + shift[:, None, None] / nearest])
    if (ends[:, 2] <= _NEAREST).any():
        return everything
    inside = np.ones(grid.shape[1:], bool)
    for axis, size in ((0, target.width), (1, target.height)):
        at = ends[:, axis] / ends[:, 2]
        inside &= (at.max(axis=0) > 0) & (at.min(axis=0) < size + 2 * _RIM)
    kept = [np.flatnonzero(inside.any(axis=other)) * _STEP for other in (1, 0)]
    if not len(kept[0]):
        return slice(0, 0), slice(0, 0)
    first, last = ([max(int(each[0]) - _STEP, 0) for each in kept], [int(each[-1]) + 2 * _STEP for each in kept])
    return slice(first[0], last[0]), slice(first[1], last[1])


class _Drawing:
    """A depth image made of rectangles; the nearest one wins.

    Almost all rectangles have the same size or are one pixel larger. Of these only the four corners of the excess are
    written, vectorised; an erosion, the minimum over the pixels above and left, fills the rest. Other rectangles are
    filled pixel by pixel.

    Args:
        target: intrinsics of the image.
        rows, columns: both corners of a sample of the rectangles.
    """

    def __init__(self, target: Intrinsics, rows: np.ndarray, columns: np.ndarray) -> None:
        self.height, self.width = target.height + 2 * _RIM, target.width + 2 * _RIM
        spans = [np.floor(each[1]) - np.floor(each[0]) for each in (rows, columns)]
        self._order = [1 if np.median(each) >= 0 else -1 for each in spans]
        self.down, self.right = (_usual(np.abs(each)) for each in spans)
        self._image = np.full((self.height, self.width), np.inf, np.float32)
        self._odd: list[np.ndarray] = []

    def add(self, rows: np.ndarray, columns: np.ndarray, far: np.ndarray) -> None:
        """Add rectangles; the arguments are overwritten.

        Args:
            rows, columns: of both corners, measured from the outer edge of the rim, (2, ...) float32 [px].
            far: distances, (...) float32.
        """
        np.floor(rows, out=rows)
        np.floor(columns, out=columns)
        (top, bottom), (left, right) = rows[:: self._order[0]], columns[:: self._order[1]]
        larger = [
            np.clip(end - begin, -1, _WIDEST).astype(np.int32) - np.int32(usual)
            for begin, end, usual in ((top, bottom, self.down), (left, right, self.right))
        ]
        odd = np.flatnonzero((larger[0] | larger[1]) >> 1)
        if len(odd):
            self._odd.append(np.stack([each.ravel()[odd] for each in (top, bottom, left, right, far)]))
            far.ravel()[odd] = np.inf
            for each in larger:
                each.ravel()[odd] = 0
        np.clip(top, 0, self.height - _RIM, out=top)
        np.clip(left, 0, self.width - _RIM, out=left)
        places = top.astype(np.int32)
        places *= self.width
        places += left.astype(np.int32)
        larger[0] *= self.width
        image, far = self._image.ravel(), far.ravel()
        for move in (None, larger[1], larger[0], -larger[1]):  # to all four corners in turn
            if move is not None:
                places += move
            np.minimum.at(image, places.ravel(), far)

    def finished(self) -> np.ndarray:
        """Return the image without its rim, float32, 0 where there is no rectangle."""
        if self.down or self.right:
            kernel, last = np.ones((self.down + 1, self.right + 1), np.uint8), (self.right, self.down)
            cv2.erode(self._image, kernel, self._image, last, 1, cv2.BORDER_CONSTANT, np.inf)
        if self._odd:
            self._draw_odd(self._image.ravel())
        inner = self._image[_RIM:-_RIM, _RIM:-_RIM]
        return np.where(inner < np.inf, inner, np.float32(0))

    def _draw_odd(self, image: np.ndarray) -> None:
        """Fill rectangles of other sizes, pixel by pixel."""
        top, bottom, left, right, far = np.concatenate(self._odd, axis=1)
        (down, below), (across, beside) = (
            (np.clip(np.minimum(*pair), 0, most).astype(int), np.minimum(abs(pair[1] - pair[0]), _WIDEST - 1))
            for pair, most in (((top, bottom), self.height - _RIM), ((left, right), self.width - _RIM))
        )
        places = down * self.width + across
        for row in range(int(below.max()) + 1):
            for column in range(int(beside.max()) + 1):
                which = np.flatnonzero((below >= row) & (beside >= column))
                np.minimum.at(image, places[which] + (row * self.width + column), far[which])


def _usual(spans: np.ndarray) -> int:
    """Return the span that is the most frequent together with the next larger one."""
    counts = np.bincount(np.minimum(spans, _WIDEST - 2).astype(int).ravel(), minlength=2)
    return int((counts[:-1] + counts[1:]).argmax())


def _rectangles(
    corner_rays: np.ndarray, shift: np.ndarray, depth: np.ndarray, target: Intrinsics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the corners of depth pixels in the other image.

    Args:
        corner_rays: (2, 3, h, w) and shift: (3,), from `_corner_rays`.
        depth: (h, w) float32 [m], 0 where invalid.

    Returns:
        rows and columns of both corners, measured from the outer edge of the rim, (2, h, w) float32 [px]; distances,
        (h, w) float32 [m], infinite if invalid or behind the camera.
    """
    inverse = depth / np.maximum(depth * depth, np.float32(_NEAREST**2))  # 0 where invalid
    places, far = np.empty((2, 2, *depth.shape), np.float32), np.zeros_like(inverse)
    moved = [each * inverse for each in shift]
    for number, corner in enumerate(corner_rays):
        x, y = places[1, number], places[0, number]
        z = corner[2] + moved[2]
        far += z
        np.maximum(z, np.float32(_NEAREST), out=z)
        np.add(corner[0], moved[0], out=x)
        np.add(corner[1], moved[1], out=y)
        if target.distorted:
            seen = project(target, np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)).T + (0.5 + _RIM)
            x[...], y[...] = seen.reshape(2, *depth.shape)
        else:
            x /= z
            y /= z
    far *= depth
    far *= np.float32(0.5)
    np.putmask(far, far <= _NEAREST, np.inf)
    return places[0], places[1], far


@lru_cache(maxsize=8)
def _corner_rays(source: Intrinsics, target: Intrinsics, pose: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return rays of the upper left and lower right corners of all pixels, (2, 3, h, w), and the shift, (3,); float32.

    They are in the other camera's axes. Without distortion they are also multiplied by its matrix, so a division gives
    pixels, measured from the outer edge of the rim.

    Args:
        pose: the bytes of the (4, 4) transform.
    """
    columns, rows = np.meshgrid(np.arange(source.width), np.arange(source.height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(float)
    transform, matrix = np.frombuffer(pose).reshape(4, 4), np.eye(3)
    if not target.distorted:
        matrix = target.matrix
        matrix[:2, 2] += 0.5 + _RIM
    half = 0.5 - 1e-3  # so that neighbours do not overlap
    corner_rays = [np.column_stack([rays(source, pixels + offset), np.ones(len(pixels))]).T for offset in (-half, half)]
    rotated = np.stack([matrix @ transform[:3, :3] @ each for each in corner_rays])
    rotated = rotated.reshape(2, 3, source.height, source.width)
    return rotated.astype(np.float32), (matrix @ transform[:3, 3]).astype(np.float32)
