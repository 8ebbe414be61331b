"""A policy at work on observations: what it keeps of images, and the agent that acts step by step.

Shapes: B batch, T frames of history, K class tokens, N patches, D width, A action.
"""

from collections.abc import Mapping
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ..datasets.robomimic import depth_key
from ..datasets.token_cache import encode
from ..encoders.load import Backbone
from ..hardware import threads
from .chunks import ChunkQueue
from .depth_inputs import depth_estimator, predicted
from .embedding import FrameHistory
from .pixel_network import shrunk
from .visuomotor import LoadedPolicy, Visuomotor


class Perception:
    """From images to what a policy keeps of them: an encoder's tokens, or small images for one that sees itself.

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

    def newest(self, observations: Mapping[str, np.ndarray], depth: Tensor | None = None) -> Tensor:
        """Return what is kept of images (B, H, W, 3) uint8, of each camera the encoder called once.

        Args:
            depth: (B, *size, 2) uint8, the first camera's, of a policy with patches for depth.

        Returns:
            (B, K or N, D) float16 with cameras along D; or (B, S, S, 3 a camera) uint8 where it sees for itself.
        """
        if self.policy.pixels is not None:
            small_images = [shrunk(self.policy.as_images(key, observations[key])) for key in self.policy.images]
            small = np.concatenate(small_images, axis=-1)
            return torch.from_numpy(small).to(self.device)
        assert self.backbone is not None, "this policy does not see"
        embedder, views = self.policy.embedder, list[Tensor]()
        for key in self.policy.images:
            images = torch.from_numpy(self.policy.as_images(key, observations[key])).to(self.device)
            added = None
            if self.policy.patches is not None and depth is not None and not views:
                added = self.policy.patches(depth)
            cls, patches = encode(self.backbone, images, embedder.settings.normed, self.precision, added)
            views.append(patches if embedder.needs_patches else cls)
        return torch.cat(views, dim=-1)


class Agent:
    """A policy at work on a batch of environments: one encoder call a step, history kept per environment.

    Args:
        loaded: the policy.
        backbone: its encoder; None for a policy without one.
        device: where to compute.
        n_action_steps: actions of each chunk that are executed before the next one; None is all of them.

    Raises:
        BadInput: if the policy's chunks have fewer.
    """

    def __init__(
        self, loaded: LoadedPolicy, backbone: Backbone | None, device: torch.device, n_action_steps: int | None = None
    ) -> None:
        self.loaded, self.device = loaded, device
        self.policy = loaded.policy.to(device).eval()
        precision = "fp32" if loaded.encoder is None else loaded.encoder.precision
        self._perception = Perception(self.policy, backbone if loaded.encoder else None, precision, device)
        self._history = FrameHistory(self.policy.history)
        self._depths = FrameHistory(1 if self.policy.depth is None else self.policy.depth.frames)
        self._queue = ChunkQueue(self.policy.settings.chunk, n_action_steps)
        head = self.policy.embedder.settings.depth_head
        self._estimator = None if head is None else depth_estimator(head, self.policy.depth_head).to(device)
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
        small = self._depth(observations, running)
        tokens = self._tokens(observations, starting, running, small)
        encoded = perf_counter()
        proprio = None
        if self.policy.embedder.proprio_dim:
            proprio = torch.from_numpy(np.array(observations[self.policy.felt])).to(self.device)
        depth = None
        if self.policy.depth is not None and small is not None:
            depth = self._depths.push(small, starting)
        with threads(1):
            actions = self.policy(tokens, proprio, depth).clamp(-1, 1).cpu().numpy()
        self.seconds["encoding"] += encoded - began
        self.seconds["policy"] += perf_counter() - encoded
        return actions.reshape(len(actions), self.policy.settings.chunk, self.policy.actions)

    def _tokens(
        self,
        observations: Mapping[str, np.ndarray],
        starting: np.ndarray,
        running: np.ndarray,
        depth: Tensor | None,
    ) -> Tensor | None:
        if not self._perception.sees:
            return None
        images = {key: observations[key][running] for key in self.policy.images}
        which = torch.from_numpy(running)
        seen = self._perception.newest(images, None if depth is None else depth[which.to(depth.device)])
        return self._history.push(_placed(seen, which), starting)

    def _depth(self, observations: Mapping[str, np.ndarray], running: np.ndarray) -> Tensor | None:
        """Return what the policy's part for depth takes of each environment; zeros where it does not run."""
        if not self.policy.takes_depth:
            return None
        image = self.policy.images[0]
        if self._estimator is None:
            depth = observations[depth_key(image)][running]
        else:
            depth = predicted(self._estimator, observations[image][running]).astype(np.float32)
        points = observations.get("points")
        taken = self.policy.depth_input(depth, None if points is None else points[running])
        return _placed(torch.from_numpy(taken).to(self.device), torch.from_numpy(running))


def _placed(values: Tensor, which: Tensor) -> Tensor:
    """Return values of the environments `which`, (B,) bool, in their places; zeros in the others'."""
    placed = values.new_zeros(len(which), *values.shape[1:])
    placed[which] = values
    return placed
