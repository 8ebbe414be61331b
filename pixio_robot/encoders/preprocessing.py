"""From images to pixels: the same code for training, caching, evaluation and deployment.

Shapes: B batch, H height, W width.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadInput

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """How images become the pixels of an encoder; part of a token cache's identity."""

    size: tuple[int, int] = (256, 256)  # height, width [px]
    resize: str = "squash"  # "squash" to the size, or "crop": shorter side to the size, then the centre
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    shorter: int | None = None  # shorter side before the crop [px]; None crops no margin
    interpolation: str = "bicubic"  # or "bilinear"; both antialiased

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> "Preprocessing":
        """Rebuild from `_asdict()` after a trip through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        return cls(**values)


def preprocess(images: Tensor, preprocessing: Preprocessing = Preprocessing()) -> Tensor:
    """Turn images into pixels.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        preprocessing: target size, resize mode and statistics.

    Returns:
        (B, 3, height, width) float32. The resize is antialiased bicubic, rounded to grey levels after each of its two
        passes as Pillow does, so that a saved and reloaded image gives the same pixels. Images that already have
        the size are not resampled.

    Raises:
        BadInput: if images are not uint8 (B, H, W, 3), or the resize mode is unknown.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise BadInput(f"images must be uint8 (B, H, W, 3); got {images.dtype} {tuple(images.shape)}")
    if preprocessing.resize not in ("squash", "crop"):
        raise BadInput(f"no resize mode {preprocessing.resize!r}; there are: squash, crop")
    if preprocessing.interpolation not in ("bicubic", "bilinear"):
        raise BadInput(f"no interpolation {preprocessing.interpolation!r}; there are: bicubic, bilinear")
    values = _resized(images.permute(0, 3, 1, 2), preprocessing)
    shared = not (
        torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    )  # cached tensors would be of their type
    make = _on if shared else _on.__wrapped__
    mean, std = (make(each, images.device) for each in (preprocessing.mean, preprocessing.std))
    return (values.float() / 255 - mean) / std


@lru_cache(maxsize=32)
def _on(statistics: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return channel statistics on a device, (1, 3, 1, 1); copied once, because a copy synchronises with the device."""
    return torch.tensor(statistics, device=device).view(1, 3, 1, 1)


def _resized(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    height, width = preprocessing.size
    old_height, old_width = values.shape[-2:]
    target = (height, width)
    if preprocessing.resize == "crop":
        margin = 1.0 if preprocessing.shorter is None else preprocessing.shorter / min(height, width)
        scale = margin * max(height / old_height, width / old_width)
        target = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
    for size in ((old_height, target[1]), target):  # the width first, as Pillow before 13; from 13 the cheaper pass
        if values.shape[-2:] != size:
            mode = preprocessing.interpolation
            values = F.interpolate(values.float(), size=size, mode=mode, antialias=True, align_corners=False)
            values = values.round().clamp(0, 255)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    return values[..., top : top + height, left : left + width]
