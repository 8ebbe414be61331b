"""Environments whose images are encoded once, before the learner stores them.

Shapes: B environments, R of them at an end, T observation steps, K class tokens, N patches, D width, P vector.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from ..agent import FrameHistory
from ..build import VisionPolicy
from ..pixel_network import SIDE
from ..vision import PIXELS
from .task_vec_env import TaskVecEnv


def embedded_space(model: VisionPolicy) -> spaces.Dict:
    """Return the space of `EmbeddedVecEnv`'s observations for a policy."""
    vision, steps = model.vision, model.spec.observation_steps
    parts: dict[str, spaces.Space] = {}
    if vision.backbone is not None:
        for key in vision.spec.cameras:
            parts[key] = spaces.Box(0, 255, (steps, *model.spec.observation[key].shape), np.uint8)
    elif vision.pixels is not None:
        parts[PIXELS] = spaces.Box(0, 255, (steps, SIDE, SIDE, 3 * len(vision.spec.cameras)), np.uint8)
    else:
        for key, shape in vision.token_shapes.items():
            for kind in vision.spec.kinds:
                count = shape.grid[0] * shape.grid[1] if kind == "patches" else shape.cls
                if kind == "cls" and _pooled(model):
                    count = 1
                parts[f"{key}.{kind}"] = spaces.Box(-np.inf, np.inf, (steps, count, shape.dim), np.float16)
    for key, width in model.spec.vectors.items():
        parts[key] = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    return spaces.Dict(parts)


def _pooled(model: VisionPolicy) -> bool:
    """Return whether class tokens are fused to one before they are stored."""
    return getattr(model.policy.config, "fusion", None) in ("mean", "first")


def stored_frames(model: VisionPolicy, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a replay buffer stores of frames that `Vision.encode` gives, (..., K, D) each.

    The fusions "mean" and "first" have no parameters; they are applied here, so that one token is stored in place of K.
    """
    if not _pooled(model):
        return dict(frames)
    first = getattr(model.policy.config, "fusion", None) == "first"
    stored = {}
    for name, values in frames.items():
        if name.endswith(".cls"):
            values = values[..., :1, :] if first else values.float().mean(-2, keepdim=True).half()
        stored[name] = values
    return stored


class EmbeddedVecEnv(VecEnvWrapper):
    """One encoder call a camera and step for all environments, last observations of ended episodes included.

    Observations are the frames of T observation steps, as `Vision.encode` gives them, and vectors of the latest step:
    "<camera>.cls" (T, K, D) and "<camera>.patches" (T, N, D) float16, where K is 1 for the fusions "mean" and "first";
    "pixels" (T, S, S, 3 * cameras) uint8 of a network that is trained end to end; "<camera>" (T, H, W, 3) uint8 for an
    encoder that learns; "proprio" or "state" (P,) float32.

    Args:
        venv: the environments.
        model: the policy; its vision must be on its device already.
    """

    def __init__(self, venv: TaskVecEnv, model: VisionPolicy) -> None:
        self.tasks, self.model = venv, model
        self._histories: dict[str, FrameHistory] = {}
        super().__init__(venv, observation_space=embedded_space(model))

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every environment."""
        observations: Any = self.venv.reset()
        frames = self._push(self._encode(observations), np.ones(self.num_envs, bool))
        return self._observation(frames, observations)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return embedded observations (B, ...); ``terminal_observation`` in `infos` is embedded too."""
        raw, rewards, dones, infos = self.venv.step_wait()
        observations: Any = raw
        ended = np.flatnonzero(dones)
        last: list[dict[str, np.ndarray]] = [infos[row]["terminal_observation"] for row in ended]
        images = {key: observations[key] for key in self.model.vision.keys}
        if last:
            images = {key: np.concatenate([images[key], np.stack([each[key] for each in last])]) for key in images}
        latest = self._encode(images)
        finals = {}
        if last:
            finals = {
                name: self._histories[name].peek(values[self.num_envs :], ended).cpu().numpy()
                for name, values in latest.items()
            }
        frames = self._push({name: values[: self.num_envs] for name, values in latest.items()}, dones)
        for place, row in enumerate(ended):
            final = {name: values[place] for name, values in finals.items()}
            infos[row]["terminal_observation"] = self._observation(final, last[place])
        return self._observation(frames, observations), rewards, dones, infos

    def _encode(self, observations: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return what is stored of the latest frames, (B, ...) each."""
        vision = self.model.vision
        if vision.backbone is not None:  # an encoder that learns takes images, in `Vision.forward`
            return {key: torch.from_numpy(np.asarray(observations[key])) for key in vision.keys}
        return stored_frames(self.model, vision.encode(observations))

    def _push(self, latest: Mapping[str, Tensor], reset_mask: np.ndarray) -> dict[str, np.ndarray]:
        steps = self.model.spec.observation_steps
        return {
            name: self._histories.setdefault(name, FrameHistory(steps)).push(values, reset_mask).cpu().numpy()
            for name, values in latest.items()
        }

    def _observation(
        self, frames: Mapping[str, np.ndarray], observations: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        vectors = {key: np.array(observations[key], np.float32) for key in self.model.spec.vectors}
        return {name: values.copy() for name, values in frames.items()} | vectors

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the frames of the running episodes, (B, T, ...) each."""
        return {
            name: history.frames.cpu().numpy()
            for name, history in self._histories.items()
            if history.frames is not None
        }

    def load_state_dict(self, frames: Mapping[str, np.ndarray]) -> None:
        """Restore the frames of the running episodes."""
        device = torch.device("cpu") if self.model.vision.backbone is not None else self.model.vision.device
        self._histories = {}
        for name, values in frames.items():
            self._histories[name] = FrameHistory(self.model.spec.observation_steps)
            self._histories[name].frames = torch.from_numpy(values).to(device)
