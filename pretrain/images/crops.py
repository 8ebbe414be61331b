"""Crops of one size from images of any size: random crops for training, centre crops for evaluation.

Shapes: H height, W width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from ...errors import BadInput
from .decoding import decode
from .headers import read_header

_TRIES = 10


class Cropping(NamedTuple):
    """How random crops are drawn; the defaults are those of MAE and Pixio, which do not flip."""

    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, log-uniform
    flip: bool = False  # mirror left and right with probability 1/2


class Box(NamedTuple):
    """A part of an image [px]."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, generator: np.random.Generator, cropping: Cropping = Cropping()) -> Box:
    """Draw the box of a random resized crop (Szegedy et al., arXiv:1409.4842).

    If ten draws do not fit, the result is the largest central box of an allowed ratio.

    Args:
        height, width: size of the image, at least 1 [px].
    """
    area, (low, high) = height * width, cropping.ratio
    for _ in range(_TRIES):
        share = generator.uniform(*cropping.scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        box_width, box_height = round(math.sqrt(area * share * ratio)), round(math.sqrt(area * share / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, max(1, round(height * high)))
    box_height = min(height, max(1, round(width / low)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def random_crop(
    image: bytes | np.ndarray,
    size: tuple[int, int],
    generator: np.random.Generator,
    cropping: Cropping = Cropping(),
) -> np.ndarray:
    """Crop an image at random and resize the crop.

    Args:
        image: an encoded image, or (H, W, 3) uint8 RGB.
        size: height and width of the result [px].
        generator: of box and flip; the same state gives the same crop.
        cropping: the range of crops.

    Returns:
        (height, width, 3) uint8.

    Raises:
        Unreadable: if the image cannot be decoded.
    """
    crop = _cropped(image, size, lambda height, width: random_box(height, width, generator, cropping))
    if cropping.flip and generator.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    return crop


def center_crop(image: bytes | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the largest central part with the aspect ratio of `size`, resized to it; (height, width, 3) uint8.

    This equals a resize of the shorter side and a centre crop, in one resampling.

    Raises:
        Unreadable: if the image cannot be decoded.
    """
    return _cropped(image, size, lambda height, width: _center_box(height, width, size))


def _center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    scale = min(height / size[0], width / size[1])
    box_height = min(height, max(1, round(size[0] * scale)))
    box_width = min(width, max(1, round(size[1] * scale)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def _cropped(image: bytes | np.ndarray, size: tuple[int, int], choose: Callable[[int, int], Box]) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise BadInput(f"a decoded image must be uint8 (H, W, 3); got {image.dtype} {image.shape}")
        return resized(image, choose(*image.shape[:2]), size)
    header = read_header(image)
    height, width = header.shape
    box = choose(height, width)
    pixels = decode(image, header=header, shrink=min(box.height / size[0], box.width / size[1]))
    return resized(pixels, _scaled(box, (height, width), pixels.shape[:2]), size)


def _scaled(box: Box, shape: tuple[int, int], decoded: tuple[int, ...]) -> Box:
    """Return the box in an image that was decoded at a reduced size, rounded outwards."""
    if shape == decoded:
        return box
    (top, bottom), (left, right) = (
        (start * now // before, -(-(start + length) * now // before))
        for start, length, before, now in zip(box[:2], box[2:], shape, decoded, strict=True)
    )
    return Box(top, left, bottom - top, right - left)


def resized(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resize a part of an image (H, W, 3) uint8, antialiased bicubic, to (height, width, 3)."""
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    values = torch.from_numpy(np.ascontiguousarray(part)[None]).permute(0, 3, 1, 2)  # channels last: torch's fast path
    values = F.interpolate(values, size=size, mode="bicubic", antialias=True, align_corners=False)
    return cv2.merge(list(values[0].numpy()))  # torch returns planes; OpenCV interleaves them ten times faster
