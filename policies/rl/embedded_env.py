"""Environments whose images are encoded once, before the learner sees them.

Shapes: B environments, R of them at an end, T frames of history, K class tokens, N patches, D width, F felt.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from ..agent import Perception
from ..embedding import FrameHistory
from ..pixel_network import SIDE
from ..visuomotor import Visuomotor
from .task_vec_env import TaskVecEnv

TOKENS, FELT = "tokens", "felt"  # keys of its observations


def embedded_space(policy: Visuomotor, image_size: int | None = None) -> spaces.Dict:
    """Return the space of `EmbeddedVecEnv`'s observations for a policy.

    Args:
        image_size: side of whole images, where these are kept [px].
    """
    parts: dict[str, spaces.Space] = {}
    tokens = policy.embedder.tokens
    if image_size is not None or policy.pixels is not None:
        side = SIDE if image_size is None else image_size
        images = (policy.history, side, side, 3 * len(policy.images))
        parts[TOKENS] = spaces.Box(0, 255, images, np.uint8)
    elif tokens is not None:
        count = tokens.grid[0] * tokens.grid[1] if policy.embedder.needs_patches else tokens.cls
        shape = (policy.history, 1 if _fused(policy) else count, tokens.dim)
        parts[TOKENS] = spaces.Box(-np.inf, np.inf, shape, np.float16)
    if policy.embedder.proprio_dim:
        parts[FELT] = spaces.Box(-np.inf, np.inf, (policy.embedder.proprio_dim,), np.float32)
    return spaces.Dict(parts)


def _fused(policy: Visuomotor) -> bool:
    """Whether class tokens are fused before they are stored."""
    return policy.embedder.settings.fusion in ("mean", "first")


class EmbeddedVecEnv(VecEnvWrapper):
    """One encoder call a camera and step for all environments, last observations of ended episodes among them.

    Observations are ``tokens`` (T, K or N, D) float16, where ``mean`` and ``first`` are taken already, so that K is 1;
    and ``felt`` (F,) float32, proprioception or the known state. For a policy that learns to see, ``tokens`` are small
    images (T, S, S, 3 a camera) uint8; with `images`, whole ones (T, H, W, 3 a camera) for an encoder that learns.

    Args:
        venv: the environments.
        perception: what is kept of their images, and the policy that wants it.
        images: keep images as they come, not tokens.
    """

    def __init__(self, venv: TaskVecEnv, perception: Perception, images: bool = False) -> None:
        self.perception, self.policy, self.images = perception, perception.policy, images
        self.sees = images or perception.sees
        self._history = FrameHistory(self.policy.history)
        size = venv.request.image_size if images else None
        super().__init__(venv, observation_space=embedded_space(self.policy, size))

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in every environment."""
        observations: Any = self.venv.reset()
        frames = None
        if self.sees:
            frames = self._history.push(self._newest(observations), np.ones(self.num_envs, bool)).cpu().numpy()
        return self._observation(frames, observations)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return embedded observations (B, ...); ``terminal_observation`` in `infos` is embedded too."""
        raw, rewards, dones, infos = self.venv.step_wait()
        observations: Any = raw
        ended = np.flatnonzero(dones)
        last: list[dict[str, np.ndarray]] = [infos[row]["terminal_observation"] for row in ended]
        frames = None
        if self.sees:
            seen = {key: observations[key] for key in self.policy.images}
            if last:
                seen = {key: np.concatenate([seen[key], np.stack([each[key] for each in last])]) for key in seen}
            newest = self._newest(seen)
            if last:
                finals = self._history.after(newest[self.num_envs :], ended).cpu().numpy()
            frames = self._history.push(newest[: self.num_envs], dones).cpu().numpy()
        for place, row in enumerate(ended):
            final = finals[place] if self.sees else None
            infos[row]["terminal_observation"] = self._observation(final, last[place])
        return self._observation(frames, observations), rewards, dones, infos

    def _newest(self, observations: dict[str, np.ndarray]) -> Tensor:
        """Return what is kept of the newest frames, (B, K, D) float16 or (B, H, W, 3 a camera) uint8."""
        if self.images:
            return torch.from_numpy(np.concatenate([observations[key] for key in self.policy.images], axis=-1))
        newest = self.perception.newest(observations)
        if self.policy.pixels is not None or not _fused(self.policy):
            return newest
        first = self.policy.embedder.settings.fusion == "first"
        return newest[:, :1] if first else newest.float().mean(1, keepdim=True).half()

    def _observation(self, frames: np.ndarray | None, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        observation = {} if frames is None else {TOKENS: frames.copy()}
        if self.policy.embedder.proprio_dim:
            observation[FELT] = np.array(raw[self.policy.felt], np.float32)
        return observation

    @property
    def frames(self) -> np.ndarray | None:
        """The frames of the episodes under way, (B, T, ...)."""
        return None if self._history.frames is None else self._history.frames.cpu().numpy()

    @frames.setter
    def frames(self, frames: np.ndarray | None) -> None:
        self._history.frames = None if frames is None else torch.from_numpy(frames).to(self.perception.device)
