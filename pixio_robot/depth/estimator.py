"""Depth from single images: a frozen encoder and a small head trained by `pixio-robot probe`.

Shapes: B batch, H height, W width of the frames, h x w grid of patches.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..encoders.encoder import Backbone, Tokens
from ..encoders.load import load_encoder
from ..errors import BadInput, CheckpointError, PixioError
from .heads import frozen_tokens, make_head, metric_depth, token_map

_BATCH = 32  # images encoded at a time


class DepthHead(NamedTuple):
    """The arguments that rebuild a head."""

    kind: str  # "linear" or "dpt"
    dim: int  # width D of the encoder's tokens
    widths: str  # of a DPT head, a name of `heads.WIDTHS`
    blocks: list[int] | None  # blocks that it reads, 0-based; None for the last only
    size: list[int]  # height, width of its output [px]: those of the encoder's images
    max_depth: float  # [m]


class DepthEstimator:
    """Predicts metric depth for RGB images, for the scenes and the camera that its head was trained on.

    Args:
        backbone: the frozen encoder.
        head: a `LinearHead` or `DPTHead` for its tokens, on the same device.
        design: the arguments of the head.
        settings: what trained it.
        metrics: its errors on test images, such as {"rmse [m]": 0.02}.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        design: DepthHead,
        settings: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.backbone, self.head, self.design = backbone, head.eval().requires_grad_(False), design
        self.settings, self.metrics = settings or {}, metrics or {}

    def to(self, device: torch.device | str) -> "DepthEstimator":
        """Move encoder and head to a device, and return this."""
        self.backbone.to(device)
        self.head.to(device)
        return self

    def estimate(self, images: np.ndarray) -> np.ndarray:
        """Return the depth of images, (B, H, W) float32 along the optical axis [m].

        The whole frame is resized to the encoder's size, and the depth map back to the frame, bilinearly.

        Args:
            images: (B, H, W, 3) uint8 RGB of any size.

        Raises:
            BadInput: for other images.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise BadInput(f"images must be uint8 (B, H, W, 3); got {images.dtype} {images.shape}")
        device = next(self.backbone.parameters()).device
        grid = self.backbone.token_shape.grid
        depths = np.empty(images.shape[:3], np.float32)
        for begin in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[begin : begin + _BATCH])).to(device)
            tokens = frozen_tokens(self.backbone, batch, self.design.blocks)
            depth = head_depth(self.head, tokens, grid, self.design)
            depths[begin : begin + _BATCH] = at_size(depth[:, None], images.shape[1:3])[:, 0].cpu().numpy()
        return depths

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the depth (H, W) float32 [m] of each frame (H, W, 3) uint8 as it comes; frames may differ in size."""
        for frame in frames:
            yield self.estimate(frame[None])[0]


@torch.no_grad()
def head_depth(head: nn.Module, tokens: list[Tokens], grid: tuple[int, int], design: DepthHead) -> Tensor:
    """Return depth at the head's size, (B, *design.size) [m]."""
    maps = [token_map(each, grid) for each in tokens]
    height, width = design.size
    return metric_depth(head(maps, (height, width)), design.max_depth)


def at_size(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (B, C, h, w) bilinearly between pixel centres, as images are resized."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return F.interpolate(values, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def save_depth(estimator: DepthEstimator, path: str | Path) -> None:
    """Write the head (``.safetensors``) with the name and fingerprint of its encoder, but not the encoder."""
    name = estimator.backbone.name
    arguments = {
        "encoder": str(Path(name).resolve()) if Path(name).exists() else name,
        "fingerprint": estimator.backbone.fingerprint(),
        "head": estimator.design._asdict(),
        "metrics": estimator.metrics,
    }
    save_checkpoint(path, Checkpoint("depth-head", estimator.head.state_dict(), arguments, estimator.settings))


def load_depth(path: str | Path, encoder: str | Path | Backbone | None = None) -> DepthEstimator:
    """Load a depth head and its encoder, on the CPU in fp32.

    Args:
        path: what `save_depth` wrote, such as ``runs/probe/heads/depth_dpt-encoder.safetensors``.
        encoder: the encoder, if it is no longer found under the name that the head was trained with.

    Raises:
        CheckpointError: if the file is not a depth head, or its encoder is missing or has other weights.
    """
    checkpoint = load_checkpoint(path, kind="depth-head")
    try:
        design = DepthHead(**checkpoint.arguments["head"])
        name, fingerprint = checkpoint.arguments["encoder"], checkpoint.arguments["fingerprint"]
        metrics = checkpoint.arguments["metrics"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how its head is built ({error!r}); train it again") from error
    if not isinstance(encoder, Backbone):
        try:
            encoder = load_encoder(name if encoder is None else encoder)
        except PixioError as error:
            raise CheckpointError(
                f"{path} was trained on the encoder {name!r}, which cannot be loaded: {error}; "
                "pass it: load_depth(path, encoder=...)"
            ) from error
    if encoder.fingerprint() != fingerprint:
        raise CheckpointError(
            f"{path} was trained on the encoder {name!r} with the weights {fingerprint[:12]}; "
            f"{encoder.name!r} has the weights {encoder.fingerprint()[:12]}: use that encoder, or train another head"
        )
    head = make_head(design.kind, design.dim, 1, design.widths)
    load_strictly(head, checkpoint.tensors, path)
    head.to(next(encoder.parameters()).device)
    return DepthEstimator(encoder, head, design, checkpoint.settings, metrics)
