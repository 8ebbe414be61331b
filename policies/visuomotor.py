"""A policy: embedder and head as one module, and the agent that runs it on observations.

Shapes: B batch, T frames of history, K class tokens, N patches, D width, P proprioception, C actions of a chunk, A
action.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import WITHOUT_ENCODER, Backbone, load_encoder
from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..depth_encoding import depth_pictures, small_depth
from ..embedding import Embedder
from ..envs.registry import EnvRequest
from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from ..schemas import PolicySettings
from .depth_inputs import PointView
from .depth_networks import DepthPatches, PointNetwork
from .heads import MlpHead
from .pixel_network import SIDE, PixelNetwork


@dataclass
class EncoderIdentity:
    """Which encoder a policy was trained on; its weights stay out of the policy's file."""

    name: str
    fingerprint: str
    weights: str  # "random" or "trained"
    preprocessing: dict[str, Any]
    precision: str

    @classmethod
    def of(cls, backbone: Backbone, precision: str) -> "EncoderIdentity":
        """Describe a loaded encoder."""
        return cls(backbone.name, backbone.fingerprint(), backbone.weights, backbone.preprocessing._asdict(), precision)


def policy_kind(encoder: str) -> str:
    """Return "bc" for a policy on an encoder's tokens, else "blind", "cnn" (sees for itself), "state" (need not)."""
    if encoder in WITHOUT_ENCODER:
        return "blind" if encoder == "none" else encoder
    return "bc"


class Visuomotor(nn.Module):
    """Embedder and head: tokens and proprioception in, actions out.

    Args:
        embedder: what the head gets to see.
        actions: A.
        settings: of the head.
        kind: as `policy_kind` says.
        frames: T of a policy that sees for itself.
        pictures: observation keys of the pictures it sees, side by side.
        view: the camera and the box of a policy of points.
        depth_head: SHA-256 of the file that predicts its depth; None where depth is measured.
    """

    def __init__(
        self,
        embedder: Embedder,
        actions: int,
        settings: PolicySettings,
        kind: str = "bc",
        frames: int = 1,
        pictures: Sequence[str] = ("rgb",),
        view: PointView | None = None,
        depth_head: str | None = None,
    ) -> None:
        super().__init__()
        self.actions, self.settings, self.kind, self.pictures = actions, settings, kind, tuple(pictures)
        self.embedder = embedder
        self.pixels = PixelNetwork(frames, len(pictures)) if kind == "cnn" else None
        self.view, self.depth_head = view, depth_head
        self.depth: PixelNetwork | PointNetwork | None = None
        self.patches: DepthPatches | None = None
        how = embedder.settings.depth
        if how == "late":
            self.depth = PixelNetwork(max(frames, embedder.history), channels=2)
        elif how == "points":
            assert view is not None, "points need a camera"
            self.depth = PointNetwork(max(frames, embedder.history), embedder.settings.frames)
        self.head = MlpHead(
            embedder.dim + (self.depth.tokens.dim if self.depth else 0), settings.chunk * actions, settings
        )
        if how == "patches":  # after the head, which so begins as that of colour alone
            assert embedder.tokens is not None, "patches need an encoder"
            self.patches = DepthPatches(embedder.tokens.grid, embedder.tokens.dim // len(pictures))

    @property
    def history(self) -> int:
        """How many frames T it looks at."""
        return self.embedder.history if self.pixels is None else self.pixels.frames

    @property
    def learns_to_see(self) -> bool:
        """Whether anything before the head learns; if not, embeddings can be computed once for a whole dataset."""
        parts = (self.pixels, self.depth, self.patches)
        return any(part is not None for part in parts) or self.embedder.trainable

    @property
    def needs_colour(self) -> bool:
        """Whether it looks at pictures, be it to predict depth."""
        return self.kind in ("bc", "cnn") or self.depth_head is not None

    @property
    def takes_depth(self) -> bool:
        """Whether it has a part for the depth of its first camera, measured or predicted."""
        return self.depth is not None or self.patches is not None

    @property
    def needs_depth(self) -> bool:
        """Whether it looks at measured depth."""
        return (self.takes_depth and self.depth_head is None) or (
            self.kind in ("bc", "cnn") and any(key.startswith("depth") for key in self.pictures)
        )

    def as_pictures(self, key: str, values: np.ndarray) -> np.ndarray:
        """Return an observation as pictures (B, H, W, 3) uint8: colour as it is, depth as its codes."""
        settings = self.embedder.settings
        if not key.startswith("depth"):
            return values
        return depth_pictures(values, settings.depth_code, *settings.depth_range)

    def depth_input(self, values: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """Return depth (B, H, W) [m] as its part for depth takes it: (B, *size, 2) uint8, or clouds (B, n, 4).

        Args:
            values: 0 where invalid.
            seen: (B, H, W, 3) the pixels' points in the world [m], of another camera than the training's.
        """
        settings = self.embedder.settings
        if self.view is not None:
            return self.view.clouds(values, settings.depth_points, seen)
        size = (SIDE, SIDE) if self.patches is None else self.patches.size
        return small_depth(values, size, settings.depth_code, *settings.depth_range)

    @property
    def felt(self) -> str:
        """The observation that stands beside the tokens: proprioception, or the known state."""
        return "state" if self.kind == "state" else "proprio"

    def forward(self, tokens: Tensor | None, proprio: Tensor | None, depth: Tensor | None = None) -> Tensor:
        """Return actions (B, C * A): that of this step, then those of the C - 1 steps that follow.

        Args:
            tokens: (B, T, K or N, D), of several cameras along D; or pictures (B, T, S, S, 3 a camera) uint8 of a
                policy that sees for itself.
            proprio: (B, P), or the known state.
            depth: (B, T, S, S, 2) uint8 or clouds (B, T, n, 4) of a policy with a network for depth. In training it, or
                what stands beside it, is left out of some samples, so that neither is leant on alone.
        """
        if self.pixels is not None and tokens is not None:
            tokens = self.pixels(tokens)
        seen = self.embedder(tokens, proprio)
        if self.depth is None:
            return self.head(seen)
        assert depth is not None, "this policy looks at depth"
        felt = self.depth(depth)[:, 0, 0]
        if self.training:
            draw = torch.rand(len(seen), 1, device=seen.device)
            share, visual = self.embedder.settings.depth_dropout, self.embedder.dim - self.embedder.proprio_dim
            felt = felt * (draw >= share)
            seen = torch.cat([seen[:, :visual] * (draw < 1 - share), seen[:, visual:]], dim=1)
        return self.head(torch.cat([seen, felt], dim=1))

    def save(
        self,
        path: Path,
        encoder: EncoderIdentity | None,
        request: EnvRequest,
        training: dict[str, Any],
        step: int,
    ) -> None:
        """Write the policy with all it needs to be rebuilt and evaluated."""
        arguments = dict(
            embedder=self.embedder.arguments(),
            actions=self.actions,
            kind=self.kind,
            frames=self.history,
            pictures=self.pictures,
            view=None if self.view is None else self.view.arguments(),
            depth_head=self.depth_head,
            policy=asdict(self.settings),
            encoder=None if encoder is None else asdict(encoder),
            environment=asdict(request),
        )
        save_checkpoint(path, Checkpoint("policy", dict(self.state_dict()), arguments, training, step))


@dataclass
class LoadedPolicy:
    """A policy read from a file."""

    policy: Visuomotor
    encoder: EncoderIdentity | None
    request: EnvRequest  # the environment it was trained for
    training: dict[str, Any]
    step: int


def load_policy(path: Path | str) -> LoadedPolicy:
    """Read a policy checkpoint, without its encoder.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    checkpoint = load_checkpoint(path, "policy")
    arguments = checkpoint.arguments
    policy = Visuomotor(
        Embedder.from_arguments(arguments["embedder"]),
        arguments["actions"],
        PolicySettings(**arguments["policy"]),
        arguments["kind"],
        arguments["frames"],
        arguments["pictures"],
        PointView.from_arguments(arguments["view"]) if arguments.get("view") else None,
        arguments.get("depth_head"),
    )
    load_strictly(policy, checkpoint.tensors, path)
    environment = dict(arguments["environment"])
    environment.update(observe=tuple(environment["observe"]), cameras=tuple(environment["cameras"]))
    encoder = None if arguments["encoder"] is None else EncoderIdentity(**arguments["encoder"])
    return LoadedPolicy(policy.eval(), encoder, EnvRequest(**environment), checkpoint.settings, checkpoint.step)


def load_policy_encoder(identity: EncoderIdentity) -> Backbone:
    """Load the encoder a policy was trained on, with the preprocessing it was trained with.

    Raises:
        CheckpointError: if the name now gives other weights.
    """
    backbone = load_encoder(identity.name)
    if backbone.fingerprint() != identity.fingerprint:
        raise CheckpointError(
            f"encoder {identity.name!r} has weights {backbone.fingerprint()[:12]}, the policy was trained on "
            f"{identity.fingerprint[:12]}; give it the encoder it was trained on"
        )
    backbone.preprocessing = Preprocessing.from_arguments(identity.preprocessing)
    return backbone
