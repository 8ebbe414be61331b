"""Necks: from tokens and vectors to what a network takes, one vector or a sequence.

Shapes: B batch, T observation steps (oldest first), K class tokens, N patches, D width, E embedding, P vector, L all.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..encoders.encoder import TokenShape
from ..errors import BadInput, UnknownName, closest
from .settings import FRAMES, FUSIONS


def fuse_frames(frames: Tensor, how: str) -> Tensor:
    """Fuse (B, T, ..., E) over T to (B, ..., T * E).

    "stack" joins the frames; "flare" joins their differences and the latest frame, [e1 - e0, ..., eT - eT-1, eT]
    (FLARE: Shang et al., "Reinforcement Learning with Latent Flow", NeurIPS 2021; CortexBench uses T = 3).
    """
    if how == "flare":
        frames = torch.cat([frames[:, 1:] - frames[:, :-1], frames[:, -1:]], dim=1)
    return torch.cat(frames.unbind(1), dim=-1)


class AttentionPool(nn.Module):
    """A trainable query that attends over the class tokens of each frame."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, heads if dim % heads == 0 else 1, batch_first=True)

    def forward(self, cls: Tensor) -> Tensor:  # (B, T, K, D) -> (B, T, D)
        flat = cls.flatten(0, 1)
        pooled, _ = self.attention(self.query.expand(flat.shape[0], -1, -1), flat, flat, need_weights=False)
        return pooled.view(cls.shape[0], cls.shape[1], -1)


class SpatialNeck(nn.Module):
    """Three convolutions over the patch map, as Theia's policy head (Shang et al., CoRL 2024): 256 numbers a sample."""

    dim = 256

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = []
        rows, columns = grid
        for inputs, kernel, stride, padding in ((channels, 4, 2, 1), (self.dim, 3, 2, 0), (self.dim, 3, 1, 0)):
            rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (rows, columns))
            if min(rows, columns) < 1:
                raise BadInput(f"fusion 'spatial' needs a patch grid of at least 14x14; this encoder gives {grid}")
            layers += [nn.Conv2d(inputs, self.dim, kernel, stride, padding), nn.LayerNorm([self.dim, rows, columns])]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, channels) -> (B, 256)
        return self.layers(patches.transpose(1, 2).unflatten(2, self.grid))


class FusedVector(nn.Module):
    """Tokens of T frames, fused, and a vector beside them: one vector of `.dim` numbers.

    Args:
        tokens: of one frame, cameras joined along D; None without images.
        fusion: how the tokens of a frame are fused, one of `FUSIONS`.
        frames: how frames are fused, one of `FRAMES`.
        steps: T.
        vector: P, the width of proprioception or privileged state; 0 without.

    Raises:
        UnknownName: for an unknown fusion.
    """

    def __init__(self, tokens: TokenShape | None, fusion: str, frames: str, steps: int, vector: int) -> None:
        super().__init__()
        for what, name, known in (("fusion", fusion, FUSIONS), ("frames", frames, FRAMES)):
            if name not in known:
                raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
        self.tokens, self.fusion, self.frames, self.steps, self.vector = tokens, fusion, frames, steps, vector
        self.pool: AttentionPool | None = None
        self.neck: SpatialNeck | None = None
        width = 0
        if tokens is not None:
            width = steps * tokens.dim * (tokens.cls if fusion == "concat" else 1)
            if fusion == "attention":
                self.pool = AttentionPool(tokens.dim)
            elif fusion == "spatial":
                self.neck = SpatialNeck(steps * tokens.dim, tokens.grid)
                width = self.neck.dim
        self.visual_dim, self.dim = width, width + vector

    @property
    def needs_patches(self) -> bool:
        """Whether it takes patch tokens instead of class tokens."""
        return self.fusion == "spatial"

    @property
    def trainable(self) -> bool:
        """Whether it has parameters; if not, it can be computed once for a whole data set."""
        return self.pool is not None or self.neck is not None

    def forward(self, tokens: Tensor | None, vector: Tensor | None) -> Tensor:
        """Return the embedding, (B, dim).

        Args:
            tokens: (B, T, K, D) class tokens, or (B, T, N, D) patch tokens where `needs_patches`.
            vector: (B, P), of the latest step.
        """
        parts = []
        if self.tokens is not None:
            if tokens is None:
                raise BadInput("this policy observes images, and got no tokens")
            parts.append(self._fuse(tokens.to(self._dtype())))
        if self.vector:
            if vector is None:
                raise BadInput(f"this policy observes a vector of {self.vector} numbers, and got none")
            parts.append(vector)
        return torch.cat(parts, dim=-1) if parts else torch.zeros(0)

    def _dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def _fuse(self, tokens: Tensor) -> Tensor:
        if self.neck is not None:
            return self.neck(fuse_frames(tokens, self.frames))
        if self.pool is not None:
            return fuse_frames(self.pool(tokens), self.frames)
        if self.fusion == "concat":
            return fuse_frames(tokens.flatten(2), self.frames)
        return fuse_frames(tokens[:, :, 0] if self.fusion == "first" else tokens.mean(2), self.frames)


class SequenceSpec(NamedTuple):
    """What a `TokenSequence` reads: tokens of cameras, and vectors, by name."""

    tokens: Mapping[str, int]  # name in the observation ("rgb.cls") -> width D
    vectors: Mapping[str, int]  # name -> width P


class TokenSequence(nn.Module):
    """Tokens of all cameras and steps, and vectors, as one sequence for a transformer.

    Each token is projected to one width, and gets an embedding of its source (camera or vector) and of its step.

    Args:
        spec: what it reads.
        steps: T.
        dim: width of the sequence.
    """

    def __init__(self, spec: SequenceSpec, steps: int, dim: int) -> None:
        super().__init__()
        self.names = [*spec.tokens, *spec.vectors]
        self.project = nn.ModuleList(
            [nn.Linear(width, dim) for width in (*spec.tokens.values(), *spec.vectors.values())]
        )
        self.source = nn.Parameter(torch.randn(len(self.names), dim) * 0.02)
        self.time = nn.Parameter(torch.randn(steps, dim) * 0.02)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Return (B, L, dim): of each source, the tokens of all steps, oldest first."""
        parts = []
        for project, source, name in zip(self.project, self.source, self.names, strict=True):
            values = observation[name]
            tokens = values if values.ndim == 4 else values[:, :, None]  # (B, T, K, D); a vector is one token
            projected = project(tokens.to(source.dtype)) + source + self.time[-tokens.shape[1] :, None]
            parts.append(projected.flatten(1, 2))
        return torch.cat(parts, dim=1)


def join_cameras(observation: Mapping[str, Any], names: Sequence[str], kind: str) -> Tensor:
    """Return the tokens of several cameras joined along their width, (B, T, K or N, C * D)."""
    found = [observation[f"{name}.{kind}"] for name in names]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)
