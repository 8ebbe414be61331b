"""From tokens to what a policy sees: tokens fused, frames fused, proprioception appended.

Shapes: B batch, T frames of history (oldest first), K class tokens, N patches, D width, E fused, P proprioception.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders.pixio import TokenShape
from ..errors import BadInput, UnknownName, closest
from .settings import FRAMES, FUSIONS, EmbeddingSettings


def history_of(settings: EmbeddingSettings) -> int:
    """Return how many frames T an embedding looks at."""
    return 1 if settings.frames == "single" else settings.history


def frame_indices(starts: np.ndarray, history: int) -> np.ndarray:
    """Return, for every frame of concatenated episodes, the rows of its history, oldest first.

    Args:
        starts: (F,) int64, for each frame the row at which its episode starts.
        history: T.

    Returns:
        (F, T) int64. Before its start an episode repeats its first frame, so FLARE's differences are 0 there.
    """
    rows = np.arange(len(starts))[:, None] - np.arange(history - 1, -1, -1)[None, :]
    return np.maximum(rows, starts[:, None])


def fuse_frames(frames: Tensor, how: str) -> Tensor:
    """Fuse (B, T, ..., E) over T: single and stack concatenate to T*E; flare gives [e1-e0, ..., eT-eT-1, eT], T*E too.

    FLARE: Shang et al., "Reinforcement Learning with Latent Flow", NeurIPS 2021; CortexBench uses T = 3.
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


class Embedder(nn.Module):
    """Tokens of T frames and proprioception in, one vector of `.dim` numbers out.

    Args:
        tokens: what the encoder gives, or None for a blind policy that sees proprioception alone.
        settings: fusion of tokens and frames.
        proprio_dim: P.

    Raises:
        UnknownName: for an unknown fusion.
        BadInput: if nothing would be left to see.
    """

    def __init__(self, tokens: TokenShape | None, settings: EmbeddingSettings, proprio_dim: int) -> None:
        super().__init__()
        for what, name, known in (("fusion", settings.fusion, FUSIONS), ("frames", settings.frames, FRAMES)):
            if name not in known:
                raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")
        if settings.history < 1:
            raise BadInput(f"history is {settings.history} frames; it must be at least 1")
        self.tokens, self.settings = tokens, settings
        self.proprio_dim = proprio_dim if settings.proprio else 0
        self.history = history_of(settings)
        self.pool: AttentionPool | None = None
        self.neck: SpatialNeck | None = None
        width = 0
        if tokens is not None:
            width = self.history * tokens.dim * (tokens.cls if settings.fusion == "concat" else 1)
            if settings.fusion == "attention":
                self.pool = AttentionPool(tokens.dim)
            elif settings.fusion == "spatial":
                self.neck = SpatialNeck(self.history * tokens.dim, tokens.grid)
                width = self.neck.dim
        self.dim = width + self.proprio_dim
        if self.dim == 0:
            raise BadInput("a policy without an encoder and without proprioception sees nothing; enable one of them")

    @property
    def needs_patches(self) -> bool:
        """Whether patch tokens are read, not class tokens."""
        return self.neck is not None

    @property
    def trainable(self) -> bool:
        """Whether the embedding itself learns; if not, it can be computed once for a whole dataset."""
        return self.pool is not None or self.neck is not None

    def arguments(self) -> dict[str, Any]:
        """Return what rebuilds this embedder, ready for JSON."""
        return dict(
            tokens=None if self.tokens is None else self.tokens._asdict(),
            settings=asdict(self.settings),
            proprio_dim=self.proprio_dim,
        )

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> "Embedder":
        """Rebuild an embedder from `arguments()`."""
        tokens = arguments["tokens"]
        shape = None if tokens is None else TokenShape(tokens["cls"], tuple(tokens["grid"]), tokens["dim"])
        return cls(shape, EmbeddingSettings(**arguments["settings"]), arguments["proprio_dim"])

    def forward(self, tokens: Tensor | None, proprio: Tensor | None) -> Tensor:
        """Embed.

        Args:
            tokens: (B, T, K, D) class tokens, or (B, T, N, D) patch tokens where `needs_patches`; None if blind.
            proprio: (B, P), of the newest step; None where `proprio_dim` is 0.

        Returns:
            (B, dim).
        """
        parts = []
        if self.tokens is not None:
            assert tokens is not None, "this embedding needs tokens"
            parts.append(self._fuse(tokens.to(self._dtype())))
        if self.proprio_dim:
            assert proprio is not None, "this embedding needs proprioception"
            parts.append(proprio)
        return torch.cat(parts, dim=-1)

    def _dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def _fuse(self, tokens: Tensor) -> Tensor:
        fusion, frames = self.settings.fusion, self.settings.frames
        if self.neck is not None:
            return self.neck(fuse_frames(tokens, frames))
        if self.pool is not None:
            return fuse_frames(self.pool(tokens), frames)
        if fusion == "concat":
            return fuse_frames(tokens.flatten(2), frames)
        return fuse_frames(tokens[:, :, 0] if fusion == "first" else tokens.mean(2), frames)


class FrameHistory:
    """The last T tokens of several running episodes; an episode that starts repeats its first frame."""

    def __init__(self, history: int) -> None:
        self.history = history
        self._frames: Tensor | None = None  # (B, T, ...)

    def after(self, newest: Tensor, rows: np.ndarray) -> Tensor:
        """Return what `push` would give for running episodes, (R, T, ...), and keep nothing.

        Args:
            newest: (R, ...), the newest frames of the episodes `rows`.
            rows: (R,) int64.
        """
        assert self._frames is not None, "no episode has started"
        return torch.cat([self._frames[torch.from_numpy(rows)][:, 1:], newest.unsqueeze(1)], dim=1)

    @property
    def frames(self) -> Tensor | None:
        """The frames kept, (B, T, ...); None before the first."""
        return self._frames

    @frames.setter
    def frames(self, frames: Tensor | None) -> None:
        self._frames = frames

    def push(self, newest: Tensor, starting: Sequence[bool] | np.ndarray) -> Tensor:
        """Add the newest frame (B, ...) and return (B, T, ...); where `starting`, the past is forgotten."""
        fresh = newest.unsqueeze(1).expand(-1, self.history, *newest.shape[1:])
        if self._frames is None:
            self._frames = fresh.clone()
            return self._frames
        mask = torch.as_tensor(np.asarray(starting), device=newest.device).view(-1, 1, *[1] * (newest.ndim - 1))
        self._frames = torch.where(mask, fresh, torch.cat([self._frames[:, 1:], newest.unsqueeze(1)], dim=1))
        return self._frames
