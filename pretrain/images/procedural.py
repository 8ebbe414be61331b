"""Images that are computed instead of read, each a pure function of seed and number.

`Procedural` draws scenes and textures of eight kinds, enough to try pre-training and its probes without any data;
`Synthetic` serves noise at next to no cost, to see what a loader costs by itself.

Shapes: N images, S side.
"""

import cv2
import numpy as np

from . import drawings, scenes
from .image_set import ImageSet, fingerprint

KINDS = {
    "clouds": drawings.clouds,
    "waves": drawings.waves,
    "mosaic": drawings.mosaic,
    "shapes": drawings.shapes,
    "strokes": drawings.strokes,
    "text": drawings.text,
    "room": scenes.rooms,
    "table": scenes.tables,
}
_SIDE = 128  # of procedural images [px]
_POOL = (1024, 1280, 3)  # synthetic images are cut from one array of noise
_CUT = 256  # their side [px]


class Procedural(ImageSet):
    """Drawn images (128, 128, 3), labelled by what they show.

    Args:
        count: N, at least 1.
        seed: other images for another seed.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.classes = tuple(KINDS)
        self.labels = (np.arange(count) % len(KINDS)).astype(np.int32)
        self.fingerprint = fingerprint(["procedural-1", count, seed])

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> np.ndarray:
        return draw(self._seed, index)

    def name(self, index: int) -> str:
        return f"procedural:{self._seed}#{index}"


class Synthetic(ImageSet):
    """Noise (256, 256, 3) at a constant and tiny cost: what training takes with it, it takes without reading.

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
    """Draw one image, (S, S, 3) uint8; its kind is ``index % 8``."""
    generator = np.random.default_rng([seed, index])
    image = list(KINDS.values())[index % len(KINDS)](generator, side)
    return _photographed(image, generator)


def _photographed(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Give a drawing uneven light, a little grain and its own exposure, as a camera would."""
    side = len(image)
    corners = generator.uniform(0.65, 1.1, (2, 2)).astype(np.float32)
    light = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    grain = generator.integers(0, int(generator.integers(2, 16)), image.shape, np.uint8)
    return cv2.add(cv2.multiply(image, cv2.merge([light] * 3), dtype=cv2.CV_8U), grain)
