"""Heads that predict a map from the tokens of a frozen encoder: depth, or a score for each class.

Shapes: B batch, K class tokens, N = h x w patches, D width, C channels of the map, H x W its size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.encoder import Backbone, Tokens
from ..encoders.preprocessing import preprocess
from ..errors import BadInput, UnknownName, closest

LEAST_DEPTH = 1e-3  # [m]
HEADS = ("linear", "dpt")
WIDTHS = {"small": (48, 96, 192, 192), "base": (96, 192, 384, 384), "published": (256, 512, 1024, 1024)}
FUSED = {"small": 64, "base": 128, "published": 256}  # channels of the fused levels


def dpt_blocks(depth: int) -> list[int]:
    """Return the blocks that a DPT head reads, one after each quarter of the encoder, 0-based.

    >>> dpt_blocks(12), dpt_blocks(24)
    ([2, 5, 8, 11], [5, 11, 17, 23])

    Raises:
        BadInput: if the encoder has fewer than four blocks.
    """
    if depth < 4:
        raise BadInput(f"a DPT head reads four blocks; this encoder has {depth}: use the linear head")
    return [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]


@torch.no_grad()
def frozen_tokens(backbone: Backbone, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tokens]:
    """Return what a head reads of images: normed tokens of each block, with the mean class token only (K = 1).

    The whole frame is resized to the encoder's size, also for an encoder that normally crops: every pixel needs a
    prediction.

    Args:
        backbone: the encoder.
        images: (B, H, W, 3) uint8 RGB on the encoder's device.
        blocks: 0-based; None for the last block only.

    Raises:
        BadInput: if `blocks` are given and the encoder returns the tokens of its last block only.
    """
    pixels = preprocess(images, backbone.preprocessing._replace(resize="squash", shorter=None))
    tokens = [backbone(pixels)] if blocks is None else backbone.network.block_tokens(pixels, blocks)
    return [Tokens(each.cls.mean(dim=1, keepdim=True), each.patches) for each in tokens]


def make_head(kind: str, dim: int, outputs: int = 1, widths: str = "small") -> "LinearHead | DPTHead":
    """Return a head of the kind "linear" or "dpt".

    Raises:
        UnknownName: for another kind, or other widths.
    """
    if kind not in HEADS:
        raise UnknownName(f"no head {kind!r}; there are: {', '.join(HEADS)}{closest(kind, HEADS)}")
    return LinearHead(dim, outputs) if kind == "linear" else DPTHead(dim, outputs, widths)


def token_map(tokens: Tokens, grid: tuple[int, int]) -> Tensor:
    """Concatenate each patch token with the mean class token, (B, 2D, h, w); both are normed."""
    patches = tokens.patches.transpose(1, 2).unflatten(2, grid)
    cls = tokens.cls.mean(dim=1)[:, :, None, None].expand_as(patches)
    return torch.cat([patches, cls], dim=1)


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly, corners aligned."""
    return F.interpolate(values, size=size, mode="bilinear", align_corners=True)


def metric_depth(logits: Tensor, max_depth: float) -> Tensor:
    """Turn (B, 1, H, W) into depth (B, H, W) [m], from 1 mm to `max_depth` [m]."""
    return (logits.squeeze(1).sigmoid() * max_depth).clamp(min=LEAST_DEPTH)


class LinearHead(nn.Module):
    """Batch normalisation and a 1x1 convolution on the last block's tokens.

    Args:
        dim: D.
        outputs: C.
    """

    def __init__(self, dim: int, outputs: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2 * dim)
        self.project = nn.Conv2d(2 * dim, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return (B, C, H, W) from the last of the maps (B, 2D, h, w)."""
        return resized(self.project(self.norm(maps[-1])), size)


class Residual(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class DPTHead(nn.Module):
    """Tokens of four blocks as a feature pyramid, fused from coarse to fine, without batch norm (arXiv 2103.13413).

    Args:
        dim: D.
        outputs: C.
        widths: a name of `WIDTHS`; the published one is for large encoders.

    Raises:
        UnknownName: for other widths.
    """

    def __init__(self, dim: int, outputs: int = 1, widths: str = "small") -> None:
        super().__init__()
        if widths not in WIDTHS:
            raise UnknownName(f"no head widths {widths!r}; there are: {', '.join(WIDTHS)}{closest(widths, WIDTHS)}")
        levels, fused = WIDTHS[widths], FUSED[widths]
        self.project = nn.ModuleList([nn.Conv2d(2 * dim, width, 1) for width in levels])
        self.resample = nn.ModuleList(
            [
                nn.ConvTranspose2d(levels[0], levels[0], 4, stride=4),
                nn.ConvTranspose2d(levels[1], levels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(levels[3], levels[3], 3, stride=2, padding=1),
            ]
        )
        self.adapt = nn.ModuleList([nn.Conv2d(width, fused, 3, padding=1, bias=False) for width in levels])
        self.lateral = nn.ModuleList([Residual(fused) for _ in levels])
        self.refine = nn.ModuleList([Residual(fused) for _ in levels])
        self.mix = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(fused // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return (B, C, H, W) from four maps (B, 2D, h, w), the shallowest block first.

        Raises:
            BadInput: for another number of maps.
        """
        if len(maps) != 4:
            raise BadInput(f"a DPT head reads the tokens of four blocks; got {len(maps)}")
        layers = zip(maps, self.project, self.resample, self.adapt, strict=True)
        levels = [adapt(resample(project(each))) for each, project, resample, adapt in layers]
        fused = self.refine[3](self.lateral[3](levels[3]))
        for level in (2, 1, 0):
            fused = self.refine[level](resized(fused, levels[level].shape[2:]) + self.lateral[level](levels[level]))
        return self.last(resized(self.mix(fused), size))
