"""Frozen features of labelled images: every kind that a probe reads, in one pass.

Shapes: n images, F of them readable, B batch, K class tokens, D width, L blocks, P patches.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...encoders.load import Backbone
from ...encoders.pixio import Tokens
from ...encoders.preprocessing import preprocess
from ...errors import DataError, Unreadable
from ...hardware import autocast
from ...progress import stage
from ..images.crops import center_crop
from .labelled import Part
from .thumbnails import thumbnails

log = logging.getLogger(__name__)
_PIXELS = (64, 64)  # crop that thumbnails are made from [px]


class Compute(NamedTuple):
    """Where encoders run, and in which precision."""

    device: torch.device = torch.device("cpu")
    precision: str = "fp32"  # "fp32" or "bf16"


class Features(NamedTuple):
    """An encoder's features of a part's images."""

    kept: Tensor  # (n,) bool, which images are readable; the others have no row below
    labels: Tensor  # (F,) int64
    raw: Tensor  # (F, D) mean of the last block's class tokens, before the final norm
    cls: Tensor  # (F, K, D) class tokens after it
    patches: Tensor  # (F, D) mean of the patches after it; width 0 without patches
    layers: Tensor  # (F, L, D) mean of the class tokens of every block after it; L = 0 where only the last is read


class _Readings(NamedTuple):
    """The last four of `Features`, of a batch."""

    raw: Tensor
    cls: Tensor
    patches: Tensor
    layers: Tensor


@torch.no_grad()
def encode(backbone: Backbone, part: Part, *, layers: bool, compute: Compute) -> Features:
    """Return the features of a part, on the CPU in fp32.

    Images are resized by their shorter side and centre-cropped to the size of the encoder's preprocessing, also where
    that preprocessing squashes or crops differently, so every encoder sees the same part of an image.

    Args:
        layers: read the class tokens of every block, which only Pixio encoders give.

    Raises:
        DataError: if no image can be read.
    """
    device, precision = compute
    backbone = backbone.to(device)
    preprocessing = backbone.preprocessing

    def read(images: Tensor) -> _Readings:
        with autocast(device, precision):
            return _read(backbone, preprocess(images.to(device), preprocessing), layers)

    batch = 16 if device.type == "cpu" else 128
    return _collect(part, preprocessing.size, read, batch, f"encode with {backbone.name}")


def pixel_features(part: Part) -> Features:
    """Return thumbnails in place of a single class token."""

    def read(images: Tensor) -> _Readings:
        small = thumbnails(images)
        return _Readings(small, small.unsqueeze(1), small[:, :0], small[:, None][:, :0])

    return _collect(part, _PIXELS, read, 128, "read pixels")


def _read(backbone: Backbone, pixels: Tensor, layers: bool) -> _Readings:
    network = backbone.network
    if depth := network.block_count:
        outputs = network.block_tokens(pixels, range(depth) if layers else [depth - 1], normed=False)
        raw = outputs[-1]
        normed = Tokens(network.final_norm(raw.cls), network.final_norm(raw.patches))
        means = [network.final_norm(each.cls).float().mean(1) for each in outputs] if layers else []
    else:
        raw, normed, means = backbone(pixels, normed=False), backbone(pixels), []
    cls = normed.cls.float()
    stacked = torch.stack(means, 1) if means else cls[:, :0]
    return _Readings(raw.cls.float().mean(1), cls, normed.patches.float().mean(1), stacked)


def _collect(
    part: Part,
    size: tuple[int, int],
    read: Callable[[Tensor], _Readings],
    batch: int,
    name: str,
) -> Features:
    kept, parts = np.zeros(len(part.indices), bool), []
    with stage(name, len(part.indices)) as bar:
        for begin, crops, readable in _batches(part, size, batch):
            kept[begin : begin + len(readable)] = readable
            if crops:
                readings = read(torch.from_numpy(np.stack(crops)))
                parts.append(_Readings(*(each.cpu() for each in readings)))
            bar.advance(len(readable))
    if not parts:
        raise DataError(
            f"none of {len(kept)} images can be read; the first is {part.images.name(int(part.indices[0]))}"
        )
    if lost := int((~kept).sum()):
        log.warning("%d of %d images cannot be read and are left out", lost, len(kept))
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(torch.from_numpy(kept), torch.from_numpy(part.labels[kept]), *columns)


def _batches(part: Part, size: tuple[int, int], batch: int) -> Iterator[tuple[int, list[np.ndarray], list[bool]]]:
    """Yield the first index of each batch, its readable crops, and a flag for each image."""
    for begin in range(0, len(part.indices), batch):
        crops: list[np.ndarray] = []
        readable = []
        for index in part.indices[begin : begin + batch].tolist():
            try:
                crops.append(center_crop(part.images.read(index), size))
            except (Unreadable, OSError):
                readable.append(False)
            else:
                readable.append(True)
        yield begin, crops, readable
