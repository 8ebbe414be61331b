"""A small residual network that is trained end to end from demonstrations alone: a baseline for frozen encoders.

Shapes: B batch, T frames of history, S side of its images [px], D width.
"""

import itertools

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.encoder import TokenShape

SIDE = 64  # S
_SHIFT = 3  # largest random shift of a training image [px]; 4 of 84 in DrQ (Kostrikov et al. 2021, arXiv 2004.13649)
_WIDTHS = (16, 32, 64, 128)


class PixelNetwork(nn.Module):
    """Three residual stages (He et al. 2016) with group norm over T frames stacked on channels, trained end to end.

    In training, images are shifted by a few random pixels; without this it overfits to few demonstrations.

    Args:
        frames: T.
        cameras: images side by side.
        channels: of an image.
    """

    tokens = TokenShape(cls=1, grid=(1, 1), dim=_WIDTHS[-1])

    def __init__(self, frames: int, cameras: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.frames = frames
        self.stem = nn.Conv2d(channels * frames * cameras, _WIDTHS[0], 5, stride=2, padding=2)
        self.stages = nn.Sequential(*[_Stage(*pair) for pair in itertools.pairwise(_WIDTHS)])
        side = SIDE // 2 ** len(_WIDTHS)
        self.project = nn.Linear(_WIDTHS[-1] * side**2, _WIDTHS[-1])
        for parameter in self.parameters():
            if parameter.ndim == 4:  # channels last: a quarter faster on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return one token a sample, (B, 1, 1, D), of images (B, T, S, S, channels * cameras) uint8."""
        x = images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255 - 0.5
        if self.training:
            x = random_shift(x)
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.project(F.relu(x).flatten(1))[:, None, None]


class _Stage(nn.Module):
    """A residual block that halves the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, S, S) -> (B, outputs, S / 2, S / 2)
        return self.layers(x) + self.shortcut(x)


def random_shift(x: Tensor) -> Tensor:
    """Shift each sample by its own random number of pixels; edges repeat."""
    padded = F.pad(x, (_SHIFT,) * 4, mode="replicate")
    corners, side = torch.randint(0, 2 * _SHIFT + 1, (len(x), 2)).tolist(), x.shape[-1]
    return torch.stack(
        [
            image[:, row : row + side, column : column + side]
            for image, (row, column) in zip(padded, corners, strict=True)
        ]
    )


def downsample(images: np.ndarray) -> np.ndarray:
    """Return images (B, H, W, 3) uint8 at the network's size, (B, S, S, 3) uint8, averaged over areas."""
    return np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images])
