"""One gymnasium environment for every simulator: `Task` is what a suite writes, `TaskEnv` is what users get.

Observation keys: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) float32 [m], ``proprio`` (P,) float32; further cameras as
``rgb_<camera>`` and ``depth_<camera>``; ``state`` (S,) float32, which no robot has. Actions are float32 in [-1, 1].
"""

import abc
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np

from ..errors import BadInput, UnknownName
from .commands import Commands
from .rendering import Calibration, CameraView, View

if TYPE_CHECKING:
    from .depth_noise import NoisyDepth, StereoSensor

MODALITIES = ("rgb", "depth", "proprio", "state")


class StepResult(NamedTuple):
    """What one control step gives."""

    reward: float
    success: bool  # now, not latched
    over: bool = False  # nothing that follows can count


class Task(abc.ABC):
    """A simulated task. Write one for a new simulator; `TaskEnv` adds pictures, clipping, horizon and bookkeeping."""

    horizon: int  # control steps of an episode
    action_dim: int
    proprio_dim: int  # 0 where a suite has none
    state_dim: int
    control_hz: float  # [1/s]
    far = 5.0  # its pictures' median depth is nearer [m]
    empty = 0.75  # and nothing is hit in a smaller share of them
    good_score = 100.0  # from here on an expert's episode is a demonstration
    cameras: tuple[str, ...]  # the first is the default
    model: Any  # mujoco.MjModel; None where another simulator is behind
    data: Any  # mujoco.MjData, or None

    @abc.abstractmethod
    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new start. Everything random comes from `rng`."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> StepResult:
        """Advance one control step with an action (action_dim,) in [-1, 1]."""

    @abc.abstractmethod
    def proprio(self) -> np.ndarray:
        """Return what the robot feels, (proprio_dim,) float32."""

    @abc.abstractmethod
    def known_state(self) -> np.ndarray:
        """Return all that matters, objects and goal among it, (state_dim,) float32; what seeing would have to find out.

        For policies that show how well a task can be learned, and for experts.
        """

    def commands(self) -> Commands:
        """Return what actions do, with the limits that the robot itself has; tasks that know units override this."""
        return Commands.plain(self.action_dim)

    def set_point(self) -> np.ndarray:
        """Return the targets (action_dim,) that are in force, in the units of `commands`; 0 where there are none."""
        return np.zeros(self.action_dim)

    def measured(self) -> np.ndarray:
        """Return where the axes of `commands` really are, (action_dim,); NaN where that is not known."""
        return np.full(self.action_dim, np.nan)

    def score(self, rewards: Sequence[float], success: Sequence[bool]) -> float:
        """Return what an episode counts for in its suite's table, 0 to 100; here: whether its last step succeeds."""
        return 100.0 * success[-1]

    def expert_action(self) -> np.ndarray:
        """Return the expert's action for the present state, (action_dim,) in [-1, 1].

        Raises:
            UnknownName: if the task has no expert.
        """
        raise UnknownName(f"{type(self).__name__} has no expert; demonstrations must come from a file")

    def view(self, camera: str, size: int, render: str) -> CameraView:
        """Return what draws a camera's pictures; a task without a MuJoCo model overrides this, and `state`."""
        return View(self.model, self.camera_in_model(camera), size, render)

    def use_expert(self, path: str) -> None:
        """Take the expert from a file; a suite whose experts are published as files overrides this.

        Raises:
            BadInput: if the task takes none.
            DataError: if the file holds no expert of this task.
        """
        raise BadInput(f"{type(self).__name__} takes no expert from a file; leave expert={path} out")

    def camera_in_model(self, camera: str) -> str:
        """Return the model's own name of a camera; tasks that add or rename one override this."""
        return camera

    def state(self) -> np.ndarray:
        """Return the simulator's state, (S,) float64: enough to tell states apart, and with MuJoCo to go on from."""
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def start_bytes(self) -> bytes:
        """Return what tells one start from another, right after `reset`."""
        return self.state().tobytes()

    def close(self) -> None:
        """Release what the simulator holds; it is not used afterwards."""
        return


def start_digest(task: Task) -> str:
    """Return what names a start, right after `reset`; the same in demonstrations, evaluations and rendered frames."""
    return hashlib.sha256(task.start_bytes()).hexdigest()[:12]


def _sensor(name: str) -> "StereoSensor | None":
    if name == "exact":
        return None
    from .depth_noise import depth_sensor

    return depth_sensor(name)


class TaskEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A task behind the gymnasium contract that `contract.py` states. `registry.make` builds it and holds the defaults.

    An ended episode stays ended: further steps return the last observation, reward 0 and the same terminated and
    truncated, at no cost, so that environments which finish early can wait in a batch.

    Args:
        task: the simulator.
        name: its name in the registry.
        observe: modalities among rgb, depth, proprio, state; pictures are only rendered where asked for.
        cameras: names of cameras; the first becomes ``rgb``, the rest ``rgb_<name>``. Empty means the task's default.
        image_size: side of the pictures [px].
        render: render quality: benchmark, balanced or fast.
        horizon: steps until truncation; None for the task's own.
        depth_sensor: what depth is measured with: exact, or a sensor with noise and holes such as d435.
        render_mode: None or "rgb_array".
    """

    def __init__(
        self,
        task: Task,
        name: str,
        *,
        observe: Sequence[str],
        cameras: Sequence[str],
        image_size: int,
        render: str,
        horizon: int | None,
        depth_sensor: str,
        render_mode: str | None,
    ) -> None:
        if unknown := [key for key in observe if key not in MODALITIES]:
            raise UnknownName(f"cannot observe {unknown}; there are: {', '.join(MODALITIES)}")
        if unknown := [camera for camera in cameras if camera not in task.cameras]:
            raise UnknownName(f"{name} has no camera {unknown}; it has: {', '.join(task.cameras)}")
        if not 16 <= image_size <= 4096:
            raise BadInput(f"image_size {image_size} is out of range; 16 to 4096 pixels can be drawn")
        if horizon is not None and not 1 <= horizon <= task.horizon:
            raise BadInput(f"horizon {horizon} is out of range; {name} allows 1 to {task.horizon} steps")
        self.task, self.name, self.observe = task, name, tuple(observe)
        self.horizon = horizon or task.horizon
        self.cameras = tuple(cameras) or task.cameras[:1]
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(task.control_hz)}
        self.render_mode = render_mode
        self.seconds = {"physics": 0.0, "rendering": 0.0}  # spent so far [s]
        self._sensor = _sensor(depth_sensor)
        self._measured: dict[str, NoisyDepth] = {}  # of this episode
        self._views = {camera: task.view(camera, image_size, render) for camera in self.cameras}
        self._ended = (False, True)  # terminated, truncated
        self._rewards: list[float] = []
        self._success: list[bool] = []
        self._last: dict[str, np.ndarray] = {}
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(self._spaces(image_size))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), np.float32)

    def _spaces(self, size: int) -> dict[str, gymnasium.Space]:
        spaces: dict[str, gymnasium.Space] = {}
        for camera in self.cameras:
            if "rgb" in self.observe:
                spaces[self._key("rgb", camera)] = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
            if "depth" in self.observe:
                spaces[self._key("depth", camera)] = gymnasium.spaces.Box(0, np.inf, (size, size), np.float32)
        if "proprio" in self.observe and self.task.proprio_dim:
            spaces["proprio"] = gymnasium.spaces.Box(-np.inf, np.inf, (self.task.proprio_dim,), np.float32)
        if "state" in self.observe:
            spaces["state"] = gymnasium.spaces.Box(-np.inf, np.inf, (self.task.state_dim,), np.float32)
        return spaces

    def _key(self, kind: str, camera: str) -> str:
        return kind if camera == self.cameras[0] else f"{kind}_{camera}"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; the same `seed` gives the same start, whatever ran before."""
        super().reset(seed=seed)
        self.task.reset(self.np_random)
        self._ended, self._rewards, self._success = (False, False), [], []
        start = start_digest(self.task)
        self._measured = self._sensors(start)
        self._last = self._observe()
        return self._last, {"success": False, "is_success": False, "start": start}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance one control step.

        Raises:
            BadInput: if the action has the wrong shape or is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise BadInput(f"{self.name} needs a finite action of shape {self.action_space.shape}; got {action!r}")
        if any(self._ended):
            return self._last, 0.0, *self._ended, self._info(False)
        started = time.perf_counter()
        result = self.task.step(np.clip(action, -1.0, 1.0))
        self.seconds["physics"] += time.perf_counter() - started
        self._rewards.append(float(result.reward))
        self._success.append(result.success)
        self._ended = (result.over, len(self._rewards) >= self.horizon)
        self._last = self._observe()
        return self._last, float(result.reward), *self._ended, self._info(result.success)

    def _info(self, success: bool) -> dict[str, Any]:
        """Return what is known of a step; `score` is what the episode would count for if it ended here."""
        score = float(self.task.score(self._rewards, self._success))
        return {"success": success, "is_success": success, "score": score}

    def _observe(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        observation = {}
        for camera, view in self._views.items():
            if "rgb" in self.observe:
                observation[self._key("rgb", camera)] = view.rgb(self.task.data)
            if "depth" in self.observe:
                depth = view.depth(self.task.data)
                measured = self._measured[camera].measure(depth) if self._measured else depth
                observation[self._key("depth", camera)] = measured
        self.seconds["rendering"] += time.perf_counter() - started
        if "proprio" in self.observe and self.task.proprio_dim:
            observation["proprio"] = self.task.proprio().astype(np.float32)
        if "state" in self.observe:
            observation["state"] = self.task.known_state().astype(np.float32)
        return observation

    def _sensors(self, start: str) -> dict[str, "NoisyDepth"]:
        """Return each camera's depth sensor for an episode; its errors are a function of the start."""
        if self._sensor is None or "depth" not in self.observe:
            return {}
        from .depth_noise import NoisyDepth

        focals = {camera: known.intrinsics[0, 0] for camera, known in self.calibration().items()}
        return {
            camera: NoisyDepth(self._sensor, float(focal), (int(start, 16), number))
            for number, (camera, focal) in enumerate(focals.items())
        }

    def render(self) -> np.ndarray | None:
        """Return the default camera's picture in render mode "rgb_array"."""
        return None if self.render_mode is None else self._views[self.cameras[0]].rgb(self.task.data)

    def calibration(self) -> dict[str, Calibration]:
        """Return each camera's intrinsics and present pose."""
        return {camera: view.calibration(self.task.data) for camera, view in self._views.items()}

    def close(self) -> None:
        """Release GL contexts and the simulator."""
        for view in self._views.values():
            view.close()
        self.task.close()
