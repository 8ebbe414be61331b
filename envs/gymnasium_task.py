"""A gymnasium environment as a task, for suites whose simulator is not MuJoCo or whose model is not accessible."""

from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np

from ..errors import BadInput
from .rendering import CameraView, DrawnView
from .task import StepResult, Task


class GymnasiumTask(Task):
    """A `gymnasium.Env` with bounded continuous actions. It has one camera, its own rendering, without depth.

    Actions in [-1, 1] are scaled to the bounds of the action space. A step succeeds if its info has a true "success"
    or "is_success". The state, whose hash names initial states, is the observation.

    Args:
        env: made with ``render_mode="rgb_array"``, or with another mode for a task without images.
        horizon: control steps of an episode.
        control_hz: control steps per second [1/s].
        proprio: maps an observation to proprioception, (P,); None for a task without it.

    Raises:
        BadInput: if the action space is not a bounded vector.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        horizon: int,
        control_hz: float,
        proprio: Callable[[Any], np.ndarray] | None = None,
    ) -> None:
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise BadInput(f"actions must be a bounded vector; the environment has {space}")
        self.env, self.horizon, self.control_hz, self._proprio = env, horizon, control_hz, proprio
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.action_dim = int(space.shape[0])
        self.cameras = ("render",) if env.render_mode == "rgb_array" else ()
        self._observation, _ = env.reset(seed=0)
        self.proprio_dim = len(self.proprio())

    def reset(self, rng: np.random.Generator) -> None:
        self._observation, _ = self.env.reset(seed=int(rng.integers(2**31)))

    def step(self, action: np.ndarray) -> StepResult:
        scaled = self._low + (np.asarray(action, np.float64) + 1) / 2 * (self._high - self._low)
        self._observation, reward, terminated, _, info = self.env.step(scaled.astype(self.env.action_space.dtype))
        return StepResult(float(reward), bool(info.get("success", info.get("is_success", False))), bool(terminated))

    def proprio(self) -> np.ndarray:
        return np.zeros(0, np.float32) if self._proprio is None else np.asarray(self._proprio(self._observation))

    def state(self) -> np.ndarray:
        flat: Any = gymnasium.spaces.flatten(self.env.observation_space, self._observation)
        return np.asarray(flat, np.float64).ravel()

    def view(self, camera: str, size: int, render: str) -> CameraView:
        return DrawnView(lambda: _central_square(np.asarray(self.env.render(), np.uint8), size))

    def close(self) -> None:
        self.env.close()


def _central_square(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central square of an image (H, W, 3), resized to (size, size, 3)."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if size <= side else cv2.INTER_LINEAR)
