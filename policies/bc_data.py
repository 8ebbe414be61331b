"""Demonstrations as a learner takes them: rows of what they hold, and batches of rows through a policy.

Shapes: F frames, B batch, T frames of history, E embedding, P proprioception, C actions of a chunk, A action.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.robomimic import DemoSet, depth_key
from ..datasets.token_cache import TokenCache, tokens_of
from ..encoders.load import Backbone
from ..encoders.pixio import Block, PixioEncoder
from ..errors import DataError
from ..run_folder import digest
from .chunks import chunk_indices
from .depth_inputs import depth_frames
from .embedding import frame_indices
from .pixel_network import shrunk
from .visuomotor import Visuomotor

_IN_MEMORY = 2 * 1024**3  # largest table of embeddings computed ahead, or of values kept for the way back [bytes]
ACTIVATIONS_PER_INPUT = 25  # numbers that a block keeps for each of its input, about


@dataclass
class BCData:
    """A demonstration file as a learner sees it: tokens stay on disk, the rest is in memory."""

    tokens: np.ndarray | None  # (F, K or N, D) float16, or images (F, S, S, 3) uint8; None for one that does not see
    history: np.ndarray  # (F, T) rows of each frame's history
    proprio: Tensor | None  # (F, P), or the known state
    actions: Tensor  # (F, A)
    train: Tensor  # rows of the training split
    valid: Tensor  # rows of the validation split, may be empty
    chunks: np.ndarray  # (F, C) rows of the actions that follow each frame, its own first
    within: Tensor  # (F, C) bool, those that its episode has
    fingerprint: str  # of the demonstrations and tokens
    depth: np.ndarray | None = None  # (F, ...) as `Visuomotor.depth_input` makes it
    demos: DemoSet | None = None  # whose images are encoded anew with depth in them


def bc_data(demos: DemoSet, cache: TokenCache | None, policy: Visuomotor, depths: np.ndarray | None = None) -> BCData:
    """Gather what `policy` needs from demonstrations and their token cache.

    Args:
        depths: (F, H, W) [m] in place of the recorded depth.

    Raises:
        DataError: if actions leave [-1, 1], are not finite, or there is nothing to train on.
    """
    actions = torch.from_numpy(demos.read("actions").astype(np.float32))
    if not bool(torch.isfinite(actions).all()) or float(actions.abs().max()) > 1 + 1e-6:
        raise DataError(f"{demos.path} has actions outside [-1, 1] or not finite; clip or rescale them first")
    train, valid = (torch.from_numpy(demos.rows(split)) for split in ("train", "valid"))
    if len(train) < 2:
        raise DataError(f"{demos.path} has {len(train)} training frames; at least 2 are needed")
    embedder, tokens = policy.embedder, None
    if cache is not None:
        tokens = cache.patches if embedder.needs_patches else cache.cls
    elif policy.pixels is not None:
        views = [
            np.concatenate([shrunk(policy.as_images(key, part)) for part in demos.batches(key, 0, 256)])
            for key in policy.images
        ]
        tokens = np.concatenate(views, axis=-1)
    depth = None
    if policy.takes_depth:
        parts = depth_frames(demos, depth_key(policy.images[0]), depths)
        depth = np.concatenate([policy.depth_input(part) for part in parts])
    chunks, within = chunk_indices(demos.frame_starts, policy.settings.chunk)
    return BCData(
        depth=depth,
        demos=demos if policy.patches is not None else None,
        tokens=tokens,
        history=frame_indices(demos.frame_starts, policy.history),
        chunks=chunks,
        within=torch.from_numpy(within),
        proprio=torch.from_numpy(demos.read(policy.felt)) if embedder.proprio_dim else None,
        actions=actions,
        train=train,
        valid=valid,
        fingerprint=digest(
            demos.sha256(),
            None if cache is None else cache.folder.name,
            *([] if policy.depth_head is None else [policy.depth_head]),
        ),
    )


class Batches:
    """Turns rows into predictions; embeddings that do not learn are computed once.

    Where depth is added to patches, the encoder is run with gradients once `depth_enabled` is set; before, tokens of
    colour come from the cache, which is what the encoder gives while the added patches are still 0.
    """

    def __init__(
        self, data: BCData, policy: Visuomotor, device: torch.device, backbone: Backbone | None, precision: str
    ) -> None:
        embedder = policy.embedder
        self.data, self.device, self.precision, self.depth_enabled = data, device, precision, False
        self.backbone = None if policy.patches is None or backbone is None else backbone.to(device)
        self.actions = data.actions.to(device)
        self.table: Tensor | None = None  # (F, E)
        looks = policy.pixels is not None or policy.depth is not None or embedder.trainable
        if not looks and len(data.actions) * embedder.dim * 4 <= _IN_MEMORY:
            rows = torch.arange(len(data.actions)).split(1024)
            with torch.inference_mode():
                table = torch.cat([embedder(*self._inputs(part)) for part in rows])
            self.table = table.clone()

    def _inputs(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tokens = None
        if self.data.tokens is not None:
            tokens = torch.from_numpy(self.data.tokens[self.data.history[rows.numpy()]]).to(self.device)
        proprio = None if self.data.proprio is None else self.data.proprio[rows].to(self.device)
        return tokens, proprio

    def loss(self, policy: Visuomotor, rows: Tensor, loss_of: Any) -> tuple[Tensor, int]:
        """Return the mean loss over the actions that there are, and how many these are."""
        prediction, within = self.predict(policy, rows), self.data.within[rows]
        if policy.settings.chunk == 1:
            return loss_of(prediction, self.actions[rows]), len(rows)
        there = within.to(self.device)
        targets = self.actions[torch.from_numpy(self.data.chunks[rows.numpy()])]  # (B, C, A)
        return loss_of(prediction.view_as(targets)[there], targets[there]), int(within.sum())

    def predict(self, policy: Visuomotor, rows: Tensor) -> Tensor:
        if policy.patches is not None and self.depth_enabled:
            tokens, proprio = self._inputs(rows)
            return policy(self._with_depth(policy, rows, tokens), proprio)
        if self.table is not None:
            return policy.head(self.table[rows])
        depth = None
        if self.data.depth is not None:
            depth = torch.from_numpy(self.data.depth[self.data.history[rows.numpy()]]).to(self.device)
        return policy(*self._inputs(rows), depth)

    def _with_depth(self, policy: Visuomotor, rows: Tensor, tokens: Tensor | None) -> Tensor:
        """Return tokens (B, T, K or N, D) whose first camera's are encoded anew, each frame once, with its depth."""
        assert self.backbone is not None and policy.patches is not None and tokens is not None
        assert self.data.demos is not None and self.data.depth is not None
        history, embedder = self.data.history[rows.numpy()], policy.embedder
        unique, places = np.unique(history, return_inverse=True)
        images = torch.from_numpy(self.data.demos.frames(policy.images[0], unique)).to(self.device)
        added = policy.patches(torch.from_numpy(self.data.depth[unique]).to(self.device))
        network = self.backbone.network
        assert isinstance(network, PixioEncoder)
        kept = 4 * ACTIVATIONS_PER_INPUT * added.numel() * len(network.blocks)
        for block in network.blocks:
            assert isinstance(block, Block)
            block.activation_checkpointing = torch.is_grad_enabled() and kept > _IN_MEMORY
        seen = tokens_of(self.backbone, images, embedder.settings.normed, self.precision, added)
        found = seen.patches if embedder.needs_patches else seen.cls
        fresh = found.float()[torch.from_numpy(places.reshape(history.shape)).to(self.device)]
        return torch.cat([fresh, tokens[..., fresh.shape[-1] :].to(fresh.dtype)], dim=-1)
