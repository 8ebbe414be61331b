"""A policy: embedder and head as one module, and the agent that runs it on observations.

Shapes: B batch, T frames of history, K class tokens, N patches, D width, P proprioception, C actions of a chunk, A
action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import WITHOUT_ENCODER, Backbone, load_encoder
from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..depth_encoding import depth_pictures, small_depth
from ..embedding import Embedder, FrameHistory
from ..envs.registry import EnvRequest
from ..errors import CheckpointError
from ..hardware import threads
from ..preprocessing import Preprocessing
from ..run_folder import described
from ..schemas import PolicySettings
from .cache import encode
from .chunks import ChunkQueue
from .demos import depth_key
from .heads import MlpHead
from .pixel_network import SIDE, PixelNetwork, shrunk


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
    """

    def __init__(
        self,
        embedder: Embedder,
        actions: int,
        settings: PolicySettings,
        kind: str = "bc",
        frames: int = 1,
        pictures: Sequence[str] = ("rgb",),
    ) -> None:
        super().__init__()
        self.actions, self.settings, self.kind, self.pictures = actions, settings, kind, tuple(pictures)
        self.embedder = embedder
        self.pixels = PixelNetwork(frames, len(pictures)) if kind == "cnn" else None
        late = embedder.settings.depth == "late"
        self.depth = PixelNetwork(max(frames, embedder.history), channels=2) if late else None
        seen = embedder.dim + (self.depth.tokens.dim if self.depth else 0)
        self.head = MlpHead(seen, settings.chunk * actions, settings)

    @property
    def history(self) -> int:
        """How many frames T it looks at."""
        return self.embedder.history if self.pixels is None else self.pixels.frames

    @property
    def learns_to_see(self) -> bool:
        """Whether anything before the head learns; if not, embeddings can be computed once for a whole dataset."""
        return self.pixels is not None or self.depth is not None or self.embedder.trainable

    @property
    def needs_depth(self) -> bool:
        """Whether it looks at depth."""
        return self.depth is not None or (
            self.kind in ("bc", "cnn") and any(key.startswith("depth") for key in self.pictures)
        )

    def as_pictures(self, key: str, values: np.ndarray) -> np.ndarray:
        """Return an observation as pictures (B, H, W, 3) uint8: colour as it is, depth as its codes."""
        settings = self.embedder.settings
        if not key.startswith("depth"):
            return values
        return depth_pictures(values, settings.depth_code, *settings.depth_range)

    def small_depth(self, values: np.ndarray) -> np.ndarray:
        """Return depth (B, H, W) [m] as its network takes it, (B, S, S, 2) uint8."""
        settings = self.embedder.settings
        return small_depth(values, SIDE, settings.depth_code, *settings.depth_range)

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
            depth: (B, T, S, S, 2) uint8 of a policy with a network for depth. In training it, or what stands beside it,
                is left out of some samples, so that neither is leant on alone.
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
            policy=described(self.settings),
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


class Perception:
    """From pictures to what a policy keeps of them: an encoder's tokens, or small pictures for one that sees itself.

    Args:
        policy: what is kept depends on it.
        backbone: its encoder; None for a policy without one.
        precision: how the encoder computes.
        device: where.
    """

    def __init__(self, policy: Visuomotor, backbone: Backbone | None, precision: str, device: torch.device) -> None:
        self.policy, self.precision, self.device = policy, precision, device
        self.backbone = None if backbone is None else backbone.to(device)

    @property
    def sees(self) -> bool:
        """Whether there is anything to look with."""
        return self.policy.pixels is not None or self.backbone is not None

    def newest(self, observations: Mapping[str, np.ndarray]) -> Tensor:
        """Return what is kept of pictures (B, H, W, 3) uint8, of each camera the encoder called once.

        Returns:
            (B, K or N, D) float16 with cameras along D; or (B, S, S, 3 a camera) uint8 where it sees for itself.
        """
        if self.policy.pixels is not None:
            pictures = [shrunk(self.policy.as_pictures(key, observations[key])) for key in self.policy.pictures]
            small = np.concatenate(pictures, axis=-1)
            return torch.from_numpy(small).to(self.device)
        assert self.backbone is not None, "this policy does not see"
        embedder, views = self.policy.embedder, []
        for key in self.policy.pictures:
            images = torch.from_numpy(self.policy.as_pictures(key, observations[key])).to(self.device)
            cls, patches = encode(self.backbone, images, embedder.settings.normed, self.precision)
            views.append(patches if embedder.needs_patches else cls)
        return torch.cat(views, dim=-1)


class Agent:
    """A policy at work on a batch of environments: one encoder call a step, history kept per environment.

    Args:
        loaded: the policy.
        backbone: its encoder; None for a policy without one.
        device: where to compute.
        execute: actions of each chunk that are executed before the next one; None is all of them.

    Raises:
        BadInput: if the policy's chunks have fewer.
    """

    def __init__(
        self, loaded: LoadedPolicy, backbone: Backbone | None, device: torch.device, execute: int | None = None
    ) -> None:
        self.loaded, self.device = loaded, device
        self.policy = loaded.policy.to(device).eval()
        precision = "fp32" if loaded.encoder is None else loaded.encoder.precision
        self._perception = Perception(self.policy, backbone if loaded.encoder else None, precision, device)
        self._history = FrameHistory(self.policy.history)
        self._depths = FrameHistory(1 if self.policy.depth is None else self.policy.depth.frames)
        self._queue = ChunkQueue(self.policy.settings.chunk, execute)
        self.seconds = {"encoding": 0.0, "policy": 0.0}

    def act(self, observations: dict[str, np.ndarray], starting: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Return the actions of this step, of chunks that were predicted now or earlier.

        Args:
            observations: each (B, ...).
            starting: (B,) bool, environments at the first step of an episode.
            running: (B,) bool, environments whose action matters; only their images are encoded, and only those that
                the next prediction looks at.

        Returns:
            (B, A) float32 in [-1, 1].
        """
        waits = self._queue.waits(starting)
        chunks = self.predict(observations, starting, running & (waits < self.frames))
        self._queue.refill(chunks)
        return self._queue.pop()

    @property
    def frames(self) -> int:
        """How many frames a prediction looks at."""
        return max(self._history.history, self._depths.history)

    @torch.inference_mode()
    def predict(self, observations: Mapping[str, np.ndarray], starting: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Return chunks of actions from this step on, (B, C, A) float32 in [-1, 1]; arguments are those of `act`."""
        began = perf_counter()
        tokens = self._tokens(observations, starting, running)
        encoded = perf_counter()
        proprio = None
        if self.policy.embedder.proprio_dim:
            proprio = torch.from_numpy(np.array(observations[self.policy.felt])).to(self.device)
        depth = None
        if self.policy.depth is not None:
            small = self.policy.small_depth(observations[depth_key(self.policy.pictures[0])])
            depth = self._depths.push(torch.from_numpy(small).to(self.device), starting)
        with threads(1):
            actions = self.policy(tokens, proprio, depth).clamp(-1, 1).cpu().numpy()
        self.seconds["encoding"] += encoded - began
        self.seconds["policy"] += perf_counter() - encoded
        return actions.reshape(len(actions), self.policy.settings.chunk, self.policy.actions)

    def _tokens(
        self, observations: Mapping[str, np.ndarray], starting: np.ndarray, running: np.ndarray
    ) -> Tensor | None:
        if not self._perception.sees:
            return None
        seen = self._perception.newest({key: observations[key][running] for key in self.policy.pictures})
        newest = seen.new_zeros(len(running), *seen.shape[1:])
        newest[torch.from_numpy(running)] = seen
        return self._history.push(newest, starting)
