"""Preprocessing as a program can hold it: resizes as fixed matrices, so that every runtime computes the same.

Runtimes do not agree on antialiased bicubic resizing, and some lack it. One axis at a time it is a fixed matrix.

Shapes: B batch, H, W image, h, w what the network takes, S side of small images.
"""

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...depth.encoding import check_code
from ...encoders.preprocessing import Preprocessing


def resize_matrix(old: int, new: int, interpolation: str) -> Tensor:
    """Return what resizes one axis, (new, old) float32: antialiased "bicubic" or "bilinear", or "area" averages."""
    if interpolation == "area":
        edges = torch.arange(new + 1, dtype=torch.float64) * old / new
        pixels = torch.arange(old, dtype=torch.float64)
        shares = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
        return (shares.clamp(min=0) * new / old).float()
    basis = torch.eye(old)[None, None]
    resized = F.interpolate(basis, size=(new, old), mode=interpolation, antialias=True, align_corners=False)
    return resized[0, 0]


class Pixels(nn.Module):
    """`preprocess` for images of one size: (B, H, W, 3) uint8 to (B, 3, h, w) float32.

    Args:
        preprocessing: what the encoder was trained with.
        size: H and W.
    """

    rows: Tensor  # (h before the crop, H)
    columns: Tensor
    scale: Tensor  # (1, 3, 1, 1)
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = preprocessing.size
        target = (height, width)
        if preprocessing.resize == "crop":
            margin = 1.0 if preprocessing.shorter is None else preprocessing.shorter / min(height, width)
            scale = margin * max(height / size[0], width / size[1])
            target = (max(height, round(size[0] * scale)), max(width, round(size[1] * scale)))
        self.window = ((target[0] - height) // 2, (target[1] - width) // 2, height, width)
        self.resized = (target[0] != size[0], target[1] != size[1])
        for name, old, new in (("rows", size[0], target[0]), ("columns", size[1], target[1])):
            self.register_buffer(name, resize_matrix(old, new, preprocessing.interpolation))
        self.register_buffer("scale", 1 / (255 * torch.tensor(preprocessing.std)).view(1, 3, 1, 1))
        ratio = torch.tensor(preprocessing.mean) / torch.tensor(preprocessing.std)
        self.register_buffer("offset", -ratio.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().permute(0, 3, 1, 2)  # TensorRT casts uint8 inputs and does nothing else with them
        if self.resized[1]:
            x = (x @ self.columns.T).round().clamp(0, 255)
        if self.resized[0]:
            x = (self.rows @ x).round().clamp(0, 255)
        top, left, height, width = self.window
        return x[..., top : top + height, left : left + width] * self.scale + self.offset


class SmallImages(nn.Module):
    """`shrunk` as a program holds it: (B, H, W, 3) uint8 to (B, S, S, 3) float32 of whole grey levels."""

    rows: Tensor  # (S, H)
    columns: Tensor  # (S, W)

    def __init__(self, size: tuple[int, int], side: int) -> None:
        super().__init__()
        self.same = size == (side, side)
        self.register_buffer("rows", resize_matrix(size[0], side, "area"))
        self.register_buffer("columns", resize_matrix(size[1], side, "area"))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        return x if self.same else area_mean(x.permute(0, 3, 1, 2), self.rows, self.columns).permute(0, 2, 3, 1).round()


class DepthCode(nn.Module):
    """`depth_code` as a program holds it: depth [m] of any shape, 0 where invalid, to [0, 1]."""

    def __init__(self, code: str, near: float, far: float) -> None:
        super().__init__()
        check_code(code, near, far)
        self.code, self.near, self.far = code, near, far

    def forward(self, depth: Tensor) -> Tensor:
        near, far, held = self.near, self.far, depth.clamp(self.near, self.far)
        if self.code in ("inverse", "colours"):
            values = (1 / held - 1 / far) / (1 / near - 1 / far)
        elif self.code == "log":
            values = torch.log(far / held) / float(np.log(far / near))
        else:
            values = (far - held) / (far - near)
        return torch.where(depth > 0, values, torch.zeros_like(values))


class DepthImages(nn.Module):
    """`depth_images` as a program holds it: (B, H, W) [m] to (B, H, W, 3) float32 of whole grey levels."""

    table: Tensor  # (256, 3), colours of the codes

    def __init__(self, code: str, near: float, far: float) -> None:
        super().__init__()
        self.code = DepthCode(code, near, far)
        grey = np.arange(256, dtype=np.uint8)[:, None]
        table: np.ndarray = np.repeat(grey, 3, axis=1)
        if code == "colours":
            table = cv2.applyColorMap(grey, cv2.COLORMAP_TURBO)[:, 0, ::-1].copy()
            table[0] = 0
        self.register_buffer("table", torch.from_numpy(table).float())

    def forward(self, depth: Tensor) -> Tensor:
        grey = (1 + (254 * self.code(depth)).round()) * (depth > 0)
        return self.table[grey.long()]


class SmallDepth(nn.Module):
    """`small_depth` as a program holds it: (B, H, W) [m] to (B, S, S, 2) float32 of whole levels, code and validity."""

    rows: Tensor  # (S, H)
    columns: Tensor  # (S, W)

    def __init__(self, size: tuple[int, int], side: int, code: str, near: float, far: float) -> None:
        super().__init__()
        self.code = DepthCode(code, near, far)
        self.register_buffer("rows", resize_matrix(size[0], side, "area"))
        self.register_buffer("columns", resize_matrix(size[1], side, "area"))

    def forward(self, depth: Tensor) -> Tensor:
        share = area_mean((depth > 0).float(), self.rows, self.columns)
        total = area_mean(self.code(depth), self.rows, self.columns)
        mean = torch.where(share >= 0.5, total / share.clamp(min=0.5), torch.zeros_like(total))
        return (255 * torch.stack([mean, share], dim=-1)).round()


def area_mean(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Average (..., H, W) over areas to (..., S, S)."""
    return rows @ (x @ columns.T)
