"""One gymnasium environment for every simulator: a suite writes a `Task`, users get a `TaskEnv`.

Observation keys: ``rgb`` (H, W, 3) uint8, ``depth`` (H, W) float32 [m], ``proprio`` (P,) float32; further cameras as
``rgb_<camera>`` and ``depth_<camera>``; ``state`` (S,) float32, the privileged state, which no robot has. Actions are
float32 in [-1, 1].
"""

import abc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ..calibration import Calibration
from ..errors import BadInput, ContractError, UnknownName
from .action_spec import ActionSpec
from .rendering import CameraView, quality
from .task_spec import TaskSpec

if TYPE_CHECKING:
    from .depth_noise import NoisyDepth, StereoSensor

MODALITIES = ("rgb", "depth", "proprio", "state")


class StepResult(NamedTuple):
    """The result of one control step."""

    reward: float
    success: bool  # now, not latched
    terminated: bool = False  # the episode has ended, because nothing that follows can count


class Capabilities(NamedTuple):
    """What a task provides beside images of its cameras. `TaskEnv` refuses what is not declared."""

    depth: bool = False  # its views have depth
    calibration: bool = False  # its views have intrinsics and pose
    privileged_state: bool = False  # `Task.privileged_state`, of size `Task.state_dim`


class Task(abc.ABC):
    """A simulated task. Write one for a new simulator; `TaskEnv` adds images, clipping, horizon and bookkeeping.

    `check_contract` tests a task. `MujocoTask` is a task with a MuJoCo model, `GymnasiumTask` wraps an environment.
    """

    horizon: int  # control steps of an episode
    action_dim: int
    proprio_dim: int  # 0 if the suite has no proprioception
    state_dim: int = 0  # of the privileged state
    control_hz: float  # [1/s]
    cameras: tuple[str, ...] = ()  # the first is the default; empty for a task without images
    capabilities = Capabilities()
    max_median_depth = 5.0  # largest median depth of its images [m]; checked by the contract tests
    max_background = 0.75  # largest share of pixels that show nothing; checked by the contract tests
    demo_min_score = 100.0  # lowest score of an expert's episode that counts as a demonstration

    @abc.abstractmethod
    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new initial state. Everything random comes from `rng`."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> StepResult:
        """Advance one control step with an action (action_dim,) in [-1, 1]."""

    @abc.abstractmethod
    def proprio(self) -> np.ndarray:
        """Return proprioception, such as joint positions, (proprio_dim,) float32."""

    @abc.abstractmethod
    def state(self) -> np.ndarray:
        """Return the simulator's state, (S,) float64; different states must have different vectors."""

    def view(self, camera: str, size: int, render: str) -> CameraView:
        """Return the view of one camera; a task that has cameras overrides this.

        Args:
            camera: a name in `cameras`.
            size: side of the square images [px].
            render: render quality.
        """
        raise BadInput(f"{type(self).__name__} has no cameras; observe proprio or state only")

    def privileged_state(self) -> np.ndarray:
        """Return everything that matters, objects and goal included, (state_dim,) float32.

        Experts and the baseline `encoder=state` use it. A task that declares `Capabilities.privileged_state` overrides
        this.
        """
        raise BadInput(f"{type(self).__name__} has no privileged state")

    def action_spec(self) -> ActionSpec:
        """Return the meaning and the limits of actions; tasks that know units override this."""
        return ActionSpec.plain(self.action_dim)

    def set_point(self) -> np.ndarray:
        """Return the targets in force, (action_dim,), in the units of `action_spec`; 0 where there are none."""
        return np.zeros(self.action_dim)

    def measured(self) -> np.ndarray:
        """Return the measured positions of the axes of `action_spec`, (action_dim,); NaN where unknown."""
        return np.full(self.action_dim, np.nan)

    def score(self, rewards: Sequence[float], success: Sequence[bool]) -> float:
        """Return the score of an episode, 0 to 100, by the suite's own rule; here: whether its last step succeeds."""
        return 100.0 * success[-1]

    def expert_action(self) -> np.ndarray:
        """Return the expert's action for the present state, (action_dim,) in [-1, 1].

        Raises:
            UnknownName: if the task has no expert.
        """
        raise UnknownName(f"{type(self).__name__} has no expert; demonstrations must come from a file")

    def use_expert(self, path: str) -> None:
        """Load the expert from a file; a suite whose experts are published as files overrides this.

        Raises:
            BadInput: if the task has no experts in files.
            DataError: if the file holds no expert of this task.
        """
        raise BadInput(f"{type(self).__name__} takes no expert from a file; leave expert={path} out")

    def initial_state_bytes(self) -> bytes:
        """Return bytes that differ between initial states, right after `reset`."""
        return self.state().tobytes()

    def close(self) -> None:
        """Release the simulator; it is not used afterwards."""
        return


def initial_state_hash(task: Task) -> str:
    """Return the name of an initial state, right after `reset`.

    Demonstrations, evaluations and rendered frames record the same hash.
    """
    return hashlib.sha256(task.initial_state_bytes()).hexdigest()[:12]


def _sensor(name: str) -> "StereoSensor | None":
    if name == "exact":
        return None
    from .depth_noise import depth_sensor

    return depth_sensor(name)


class TaskEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A task as a gymnasium environment; `check_contract` states and tests its rules. `registry.make` builds it.

    An episode that has ended stays ended: further steps return the last observation, reward 0 and the same terminated
    and truncated, at no cost. So environments that finish early can wait in a batch.

    Args:
        task: the simulator.
        spec: what to observe, and how.
        render_mode: None or "rgb_array".

    Raises:
        UnknownName: for a camera, modality, depth sensor or render quality that does not exist.
        BadInput: for a value out of range, or a modality that the task does not declare.
    """

    def __init__(self, task: Task, spec: TaskSpec, render_mode: str | None = None) -> None:
        _check(task, spec)
        self.task, self.task_spec, self.render_mode = task, spec, render_mode
        self.name, self.observe = spec.task, tuple(spec.observe)
        self.horizon = spec.horizon or task.horizon
        self.cameras = tuple(spec.cameras) or task.cameras[:1]
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(task.control_hz)}
        self.seconds = {"physics": 0.0, "rendering": 0.0}  # spent so far [s]
        self._sensor = _sensor(spec.depth_sensor)
        self._measured: dict[str, NoisyDepth] = {}  # of this episode
        self._views = {camera: task.view(camera, spec.image_size, spec.render) for camera in self.cameras}
        self._ended = (False, True)  # terminated, truncated
        self._rewards: list[float] = []
        self._success: list[bool] = []
        self._last: dict[str, np.ndarray] = {}
        self._is_checked = False  # whether an observation was compared with its space
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(self._spaces(spec.image_size))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.action_dim,), np.float32)
        self.spec = EnvSpec(
            id=spec.task,
            entry_point="pixio_robot.envs.registry:make",
            max_episode_steps=None,  # the environment truncates by itself
            kwargs={**asdict(spec), "render_mode": render_mode},
            order_enforce=False,
            disable_env_checker=True,
        )

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
        """Start an episode; the same `seed` gives the same initial state, whatever ran before.

        Raises:
            ContractError: if the task's first observation has another shape than the task declares.
        """
        super().reset(seed=seed)
        self.task.reset(self.np_random)
        self._ended, self._rewards, self._success = (False, False), [], []
        digest = initial_state_hash(self.task)
        self._measured = self._sensors(digest)
        self._last = self._observe()
        if not self._is_checked:
            self._check_declared(self._last)
        return self._last, {"success": False, "is_success": False, "initial_state_hash": digest}

    def _check_declared(self, observation: dict[str, np.ndarray]) -> None:
        for key, space in self.observation_space.spaces.items():  # type: ignore[attr-defined]
            value = observation[key]
            if value.shape != space.shape or value.dtype != space.dtype:
                raise ContractError(
                    f"{self.name}: its task gives {key} as {value.dtype} {value.shape}, but declares {space.dtype} "
                    f"{space.shape}"
                )
        self._is_checked = True

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
        self._ended = (result.terminated, len(self._rewards) >= self.horizon)
        self._last = self._observe()
        return self._last, float(result.reward), *self._ended, self._info(result.success)

    def _info(self, success: bool) -> dict[str, Any]:
        """Return the step's info; `score` is the score of the episode if it ended here."""
        score = float(self.task.score(self._rewards, self._success))
        return {"success": success, "is_success": success, "score": score}

    def _observe(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        observation = {}
        for camera, view in self._views.items():
            if "rgb" in self.observe:
                observation[self._key("rgb", camera)] = view.rgb()
            if "depth" in self.observe:
                depth = view.depth()
                measured = self._measured[camera].measure(depth) if self._measured else depth
                observation[self._key("depth", camera)] = measured
        self.seconds["rendering"] += time.perf_counter() - started
        if "proprio" in self.observe and self.task.proprio_dim:
            observation["proprio"] = self.task.proprio().astype(np.float32)
        if "state" in self.observe:
            observation["state"] = self.task.privileged_state().astype(np.float32)
        return observation

    def _sensors(self, digest: str) -> dict[str, "NoisyDepth"]:
        """Return each camera's depth sensor for an episode; its errors are a function of the initial state."""
        if self._sensor is None or "depth" not in self.observe:
            return {}
        from .depth_noise import NoisyDepth

        focals = {camera: known.intrinsics[0, 0] for camera, known in self.calibration().items()}
        return {
            camera: NoisyDepth(self._sensor, float(focal), (int(digest, 16), number))
            for number, (camera, focal) in enumerate(focals.items())
        }

    def render(self) -> np.ndarray | None:
        """Return the default camera's image in render mode "rgb_array"."""
        return self._views[self.cameras[0]].rgb() if self.render_mode is not None and self.cameras else None

    def calibration(self) -> dict[str, Calibration]:
        """Return each camera's intrinsics and present pose; empty if the task declares no calibration."""
        if not self.task.capabilities.calibration:
            return {}
        return {camera: view.calibration() for camera, view in self._views.items()}

    def close(self) -> None:
        """Release GL contexts and the simulator."""
        for view in self._views.values():
            view.close()
        self.task.close()


def _check(task: Task, spec: TaskSpec) -> None:
    """Refuse what the task cannot give; raises as `TaskEnv`."""
    name, has = spec.task, task.capabilities
    if unknown := [key for key in spec.observe if key not in MODALITIES]:
        raise UnknownName(f"cannot observe {unknown}; there are: {', '.join(MODALITIES)}")
    declared = {"rgb": bool(task.cameras), "depth": bool(task.cameras) and has.depth, "state": has.privileged_state}
    if missing := [key for key in spec.observe if not declared.get(key, True)]:
        there = ", ".join(key for key in MODALITIES if declared.get(key, True))
        raise BadInput(f"{name} provides no {' and no '.join(missing)}; it can be observed by: {there}")
    if unknown := [camera for camera in spec.cameras if camera not in task.cameras]:
        raise UnknownName(f"{name} has no camera {unknown}; it has: {', '.join(task.cameras)}")
    if not 16 <= spec.image_size <= 4096:
        raise BadInput(f"image_size {spec.image_size} is out of range; 16 to 4096 pixels can be drawn")
    if spec.horizon is not None and not 1 <= spec.horizon <= task.horizon:
        raise BadInput(f"horizon {spec.horizon} is out of range; {name} allows 1 to {task.horizon} steps")
    if _sensor(spec.depth_sensor) is not None and "depth" in spec.observe and not has.calibration:
        raise BadInput(f"depth_sensor={spec.depth_sensor} needs the focal length, but {name} provides no calibration")
    quality(spec.render)
