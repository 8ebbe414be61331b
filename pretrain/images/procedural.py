"""Images that are computed instead of read, each a pure function of seed and index.

`Procedural` draws textures, shapes, text and simple 3-D scenes, to test pre-training and its probes without data.
`Synthetic` returns noise at almost no cost, to measure the speed of training without reading.

Shapes: N images, S side of a square image.
"""

import string
from typing import NamedTuple

import cv2
import numpy as np

from .image_set import ImageSet, fingerprint

Random = np.random.Generator
Colour = tuple[float, ...]  # red, green, blue in 0 to 255

_SIDE = 128  # of procedural images [px]
_POOL = (1024, 1280, 3)  # synthetic images are crops of one array of noise
_CUT = 256  # their side [px]
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX)
_LETTERS = np.array(list(string.ascii_letters + string.digits + " " * 12))
_FACES = [[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]]  # corners of a box
_SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
_SUN = np.array([0.45, 0.8, -0.4])  # direction towards the light: from the right, above and behind the camera


class Procedural(ImageSet):
    """Drawn images (128, 128, 3) with eight labels.

    Args:
        count: N, at least 1.
        seed: of the images.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.classes = tuple(KINDS)
        self.labels = (np.arange(count) % len(KINDS)).astype(np.int32)
        self.fingerprint = fingerprint(["procedural-2", count, seed])

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        return draw(self._seed, index)

    def name(self, index: int) -> str:
        return f"procedural:{self._seed}#{index}"


class Synthetic(ImageSet):
    """Noise (256, 256, 3) at a constant, very small cost.

    Args:
        count: N, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = np.random.default_rng(0).integers(0, 256, _POOL, np.uint8)
        self.fingerprint = fingerprint(["synthetic-1", count])

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        top, left = index * 37 % (_POOL[0] - _CUT + 1), index * 101 % (_POOL[1] - _CUT + 1)
        return self._pool[top : top + _CUT, left : left + _CUT]

    def name(self, index: int) -> str:
        return f"synthetic#{index}"


def draw(seed: int, index: int, side: int = _SIDE) -> np.ndarray:
    """Draw one image, (S, S, 3) uint8 RGB, of kind ``index % 8``, with uneven light and noise."""
    generator = np.random.default_rng([seed, index])
    image = list(KINDS.values())[index % len(KINDS)](generator, side)
    light = cv2.resize(generator.uniform(0.65, 1.1, (2, 2)), (side, side))[..., None]
    grain = generator.integers(0, int(generator.integers(2, 16)), image.shape)
    return np.clip(image * light + grain, 0, 255).astype(np.uint8)


def _clouds(generator: Random, side: int) -> np.ndarray:
    field = _noise(generator, side, generator.uniform(0.35, 1.0))
    field = np.abs(2 * field - 1) if generator.random() < 0.4 else field  # ridges
    return _palette(generator)[(255 * field).astype(np.uint8)]


def _waves(generator: Random, side: int) -> np.ndarray:
    rows, columns = np.mgrid[0:side, 0:side] / side + generator.uniform(0, 0.35) * _noise(generator, side, 0.4)
    angle, (first, second) = generator.uniform(0, np.pi), generator.uniform(2, 14, 2)
    field = np.sin(2 * np.pi * first * (np.cos(angle) * columns + np.sin(angle) * rows))
    if generator.random() < 0.5:  # checks instead of stripes
        field *= np.sin(2 * np.pi * second * (np.cos(angle) * rows - np.sin(angle) * columns))
    field = np.clip(generator.choice([1, 4]) * field, -1, 1)  # soft or sharp
    return _palette(generator)[(127.5 * (field + 1)).astype(np.uint8)]


def _mosaic(generator: Random, side: int) -> np.ndarray:
    cells = int(generator.integers(8, 90))
    ground = np.ones((side, side), np.uint8)
    ground[tuple(generator.integers(0, side, (2, cells)))] = 0
    distance, owner = cv2.distanceTransformWithLabels(ground, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    shade = 1.15 - generator.uniform(0, 1.2) * distance[..., None] * np.sqrt(cells) / side  # darker towards the border
    return (_palette(generator)[generator.integers(0, 256, cells + 1)][owner] * np.clip(shade, 0, 1)).astype(np.uint8)


def _shapes(generator: Random, side: int) -> np.ndarray:
    image = _backdrop(generator, side)
    for _ in range(int(generator.integers(3, 14))):
        corners = int(generator.choice([3, 4, 5, 6, 10, 40, 40]))  # 40: an ellipse
        radii = np.full((corners, 1), side * generator.uniform(0.05, 0.3))
        radii[::2] *= 0.45 if corners == 10 else 1  # a star
        angles = generator.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        points = radii * np.stack([np.cos(angles), np.sin(angles)], -1) * generator.uniform(0.5, 1, 2)
        thickness = -1 if generator.random() < 0.75 else int(generator.integers(1, 6))
        _polygon(image, generator.uniform(0, side, 2) + points, _colour(generator), thickness)
    return image


def _strokes(generator: Random, side: int) -> np.ndarray:
    image = _backdrop(generator, side)
    for _ in range(int(generator.integers(1, 4))):
        colour, begin = _colour(generator), np.array([generator.uniform(0.1, 0.9) * side, side])
        branches = [(begin, generator.normal(-np.pi / 2, 0.3), *side * generator.uniform((0.15, 0.02), (0.3, 0.07)))]
        while branches:
            begin, angle, length, width = branches.pop()
            end = begin + length * np.array([np.cos(angle), np.sin(angle)])
            _polygon(image, np.stack([begin, end]), colour, max(1, round(width)))
            for turn in generator.uniform(0.2, 0.8, 2) * (-1, 1) if length > side * 0.05 else ():
                branches.append((end, angle + turn, length * generator.uniform(0.65, 0.85), width * 0.7))
    return image


def _text(generator: Random, side: int) -> np.ndarray:
    page = np.full((side, side, 3), _colour(generator, 170), np.uint8)
    ink, font, height = _colour(generator, 0, 110), int(generator.choice(_FONTS)), generator.uniform(7, 26) * side / 128
    for bottom in np.arange(0.7 * height, side + height, height * generator.uniform(1.1, 1.6)):
        words = "".join(generator.choice(_LETTERS, int(2 * side / height)))
        at = (round(generator.uniform(-0.5, 1.5) * height), round(bottom))
        cv2.putText(page, words, at, font, height / 24, ink, 1 + int(height > 18), cv2.LINE_AA)
    page = 255 - page if generator.random() < 0.4 else page  # light on dark
    image = _backdrop(generator, side)
    _paste(image, page, _SQUARE * side + generator.normal(0, generator.choice([0, 0.12]) * side, (4, 2)))
    return image


def _room(generator: Random, side: int) -> np.ndarray:
    size = generator.uniform((3, 2.3, 3), (5.5, 3.2, 7))  # [m]
    eye = np.array([generator.uniform(0.25, 0.75) * size[0], generator.uniform(1, 1.8), -0.4])
    camera = _Camera(eye, generator.normal(0, 0.15), generator.uniform(0, 0.22), generator.uniform(0.6, 0.95))
    image, room = _backdrop(generator, side), _box((0, 0, 0.05), size)
    camera.draw(image, [(room, _colour(generator, 90))], inside=True)
    _paste(image, _TEXTURES[generator.integers(4)](generator, side), camera.project(room[_FACES[2]], side))
    things = []
    for _ in range(int(generator.integers(2, 8))):  # furniture, and windows on the far wall
        window = int(generator.random() < 0.3)
        extent = generator.uniform(0.3, (1.4, 1.5, 0.9)) * (1, 1, 0.02 if window else 1)
        low = generator.uniform((0, window * 0.5, size[2] - extent[2] if window else 1), size - extent) * (1, window, 1)
        things.append((_box(low, low + extent), _colour(generator)))
    camera.draw(image, things)
    return image


def _table(generator: Random, side: int) -> np.ndarray:
    distance, pitch = generator.uniform(0.75, 1.3), generator.uniform(0.5, 1.1)  # [m], [rad] down
    eye = np.array([generator.uniform(-0.25, 0.25), distance * np.sin(pitch), -distance * np.cos(pitch)])
    camera = _Camera(eye, -np.arctan2(eye[0], -eye[2]), pitch, generator.uniform(0.9, 1.4))
    image, half = _backdrop(generator, side), generator.uniform(0.35, 0.6, 3) * (1, 0, 1)
    board, blocks = _box(-half - (0, 0.05, 0), half), []
    camera.draw(image, [(board, _colour(generator, 60))])
    _paste(image, _TEXTURES[generator.integers(4)](generator, side), camera.project(board[_FACES[3]], side))
    shadows = image.copy()
    for _ in range(int(generator.integers(2, 9))):
        size, turn = generator.uniform(0.05, 0.2, 3), cv2.Rodrigues(np.array([0, generator.uniform(0, np.pi), 0]))[0]
        block = _box(-size / 2, size / 2) @ turn + generator.uniform(-0.7, 0.7, 3) * half + (0, size[1] / 2, 0)
        blocks.append((block, _colour(generator)))
        fallen = block - _SUN * (block[:, 1:2] / _SUN[1])  # along the light, down to the table
        _polygon(shadows, cv2.convexHull(camera.project(fallen, side).astype(np.float32))[:, 0], (0, 0, 0))
    image = cv2.addWeighted(image, 0.6, shadows, 0.4, 0)
    camera.draw(image, blocks)
    return image


class _Camera(NamedTuple):
    """A pinhole camera in metres: x right, y up, z forward."""

    eye: np.ndarray
    yaw: float  # [rad]
    pitch: float  # down [rad]
    focal: float  # [sides of the image]

    def project(self, points: np.ndarray, side: int) -> np.ndarray:
        """Return the pixels (n, 2) of points (n, 3)."""
        tilt, turn = (cv2.Rodrigues(np.array(each))[0] for each in ((-self.pitch, 0, 0), (0, -self.yaw, 0)))
        seen = (points - self.eye) @ (tilt @ turn).T
        return side * (0.5 + seen[:, :2] * (1, -1) * self.focal / np.maximum(seen[:, 2:], 0.05))

    def draw(self, image: np.ndarray, boxes: list[tuple[np.ndarray, Colour]], inside: bool = False) -> None:
        """Draw boxes with corners (8, 3), the farthest first, from outside or inside, with shaded faces."""
        for corners, colour in sorted(boxes, key=lambda box: -float(np.linalg.norm(box[0].mean(0) - self.eye))):
            pixels = self.project(corners, len(image))
            for face in _FACES:
                middle = corners[face].mean(0)
                normal = (middle - corners.mean(0)) * (-1 if inside else 1)
                if normal @ (self.eye - middle) > 0:
                    light = 0.6 + 0.4 * normal @ _SUN / np.linalg.norm(normal)
                    _polygon(image, pixels[face], tuple(light * value for value in colour))


def _box(low: object, high: object) -> np.ndarray:
    """Return the corners (8, 3) of a box in the order of `_FACES`: the far four first."""
    (a, b, c), (d, e, f) = np.asarray(low, float), np.asarray(high, float)
    return np.array([(x, y, z) for z in (c, f) for y in (b, e) for x in (a, d)])


def _polygon(image: np.ndarray, points: np.ndarray, colour: Colour, thickness: int = -1) -> None:
    """Fill a polygon of points (n, 2) [px], or draw its outline if a thickness is given."""
    pixels = np.clip(points * 16, -1e6, 1e6).astype(np.int32)[None]  # in 1/16 px
    if thickness < 0:
        cv2.fillPoly(image, pixels, colour, cv2.LINE_AA, 4)
    else:
        cv2.polylines(image, pixels, True, colour, thickness, cv2.LINE_AA, 4)


def _paste(image: np.ndarray, texture: np.ndarray, corners: np.ndarray) -> None:
    """Draw a texture of the image's size onto a quadrilateral (4, 2) [px]."""
    side = len(image)
    matrix = cv2.getPerspectiveTransform((_SQUARE * side).astype(np.float32), corners.astype(np.float32))
    mask = np.zeros((side, side), np.uint8)
    _polygon(mask, corners, (255,))
    cv2.copyTo(cv2.warpPerspective(texture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), mask, image)


def _noise(generator: Random, side: int, roughness: float) -> np.ndarray:
    """Return a random field (S, S) in [0, 1]: octaves of noise, each `roughness` times the coarser one."""
    total, weight, cells = np.zeros((side, side)), 1.0, int(generator.integers(2, 6))
    while cells < side:
        octave = generator.random((cells, max(2, int(cells * generator.uniform(0.5, 1.5)))))
        total += weight * cv2.resize(octave, (side, side), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * roughness, cells * 2
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


def _palette(generator: Random) -> np.ndarray:
    """Return 256 colours (256, 3), interpolated between a few random ones."""
    stops = generator.integers(0, 256, (int(generator.integers(2, 6)), 1, 3), np.uint8)
    return cv2.resize(stops, (1, 256))[:, 0]


def _backdrop(generator: Random, side: int) -> np.ndarray:
    """Return smooth patches of similar colours, (S, S, 3) uint8."""
    cells = int(generator.integers(1, 5))
    patches = np.clip(_colour(generator) + generator.normal(0, 45, (cells, cells, 3)), 0, 255).astype(np.uint8)
    return cv2.resize(patches, (side, side), interpolation=cv2.INTER_CUBIC)


def _colour(generator: Random, low: int = 0, high: int = 256) -> Colour:
    return tuple(map(float, generator.integers(low, high, 3)))


_TEXTURES = (_clouds, _waves, _mosaic, _backdrop)  # of floors and table tops
KINDS = {each.__name__[1:]: each for each in (_clouds, _waves, _mosaic, _shapes, _strokes, _text, _room, _table)}
