"""The token cache: every frame encoded once by a frozen encoder.

Shapes: F frames, B batch, K class tokens, N patches, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..depth.encoding import depth_images
from ..encoders import token_statistics
from ..encoders.encoder import Backbone, Tokens
from ..hardware import autocast
from .dataset import EpisodeDataset
from .frame_cache import ArraySpec, FrameCache, frame_cache


@dataclass(frozen=True)
class TokenFormat:
    """Which tokens are stored."""

    normed: bool = True  # after the encoder's final norm
    patches: bool = False  # patch tokens too: 32 times the size of the class tokens
    precision: str = "fp32"  # how the encoder computes: fp32 or bf16
    depth_code: tuple[str, float, float] = ("inverse", 0.25, 4.0)  # depth as images: code, nearest, farthest [m]


def encode(
    backbone: Backbone, images: Tensor, normed: bool, precision: str, patch_residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encode images (B, H, W, 3) uint8 as the cache stores them: class and patch tokens in float16.

    Evaluation calls this too, so that a policy observes live what it was trained on.
    """
    with torch.inference_mode():
        tokens = tokens_of(backbone, images, normed, precision, patch_residual)
    return tokens.cls.half(), tokens.patches.half()


def tokens_of(
    backbone: Backbone, images: Tensor, normed: bool, precision: str, patch_residual: Tensor | None = None
) -> Tokens:
    """Encode images (B, H, W, 3) uint8; gradients lead to a `patch_residual` (B, N, D), for encoders that take one."""
    with autocast(images.device, precision):
        return backbone(backbone.preprocess(images), normed=normed, patch_residual=patch_residual)


def token_cache(
    root: Path,
    backbone: Backbone,
    dataset: EpisodeDataset,
    image_key: str = "rgb",
    tokens: TokenFormat = TokenFormat(),
    device: torch.device = torch.device("cpu"),
    batch: int | None = None,
) -> FrameCache:
    """Return the tokens of one camera, arrays ``cls`` (F, K, D) float16 and, if requested, ``patches`` (F, N, D).

    Args:
        root: folder of all caches.
        image_key: an image feature, e.g. "rgb" or "rgb_side"; or a depth feature, encoded as images.
        batch: images an encoder call, no part of the cache's identity; None is 8 on a CPU, where activations then
            stay in its caches, and 128 elsewhere.

    Raises:
        DataError: if a finished cache is damaged.
    """
    identity = dict(
        encoder=backbone.fingerprint(),
        preprocessing=backbone.preprocessing._asdict(),
        precision=tokens.precision,
        normed=tokens.normed,
        patches=tokens.patches,
        data=dataset.fingerprint,
        image_key=image_key,
    )
    deep = dataset.feature(image_key).kind == "depth"
    if deep:
        identity["depth_code"] = list(tokens.depth_code)
    shape, size = backbone.token_shape, batch or (8 if device.type == "cpu" else 128)
    specs = {"cls": ArraySpec((shape.cls, shape.dim), "float16")}
    if tokens.patches:
        specs["patches"] = ArraySpec((shape.grid[0] * shape.grid[1], shape.dim), "float16")
    backbone.to(device)

    def compute(frames: np.ndarray) -> Mapping[str, np.ndarray]:
        images = depth_images(frames, *tokens.depth_code) if deep else frames
        found = encode(backbone, torch.from_numpy(images).to(device), tokens.normed, tokens.precision)
        return {
            name: values.cpu().numpy() for name, values in zip(("cls", "patches"), found, strict=True) if name in specs
        }

    return frame_cache(
        root, identity, specs, lambda row: dataset.batches(image_key, row, size), compute, dataset.frames
    )


def class_token_cosine(cache: FrameCache, frames: int = 512) -> list[list[float]]:
    """Return the mean cosine between the class tokens of a frame, (K, K), over evenly spaced frames of the cache."""
    cls = cache.arrays["cls"]
    rows = np.linspace(0, len(cls) - 1, min(frames, len(cls))).astype(int)
    return token_statistics.class_token_cosine(cls[rows]).round(4).tolist()
