"""A simulated task as a camera: ``task:metaworld/drawer-open``, ``task:toy/reach@top``."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...envs.registry import TaskSpec
from ...envs.rendering import check_rendering
from ...envs.task import TaskEnv
from ...errors import BadInput, CameraError, UnknownName
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame
from ..playback import Playback

_SIDE = 256  # [px]


class TaskCamera(Playback):
    """The images of a task's camera, one frame per control step, episode after episode.

    `act` sets the action of the next step. Before its first call the task's expert acts, or small random actions are
    used for a task without one. Images are the task's observations, bit for bit.

    Args:
        name: the task, optionally with ``@CAMERA``.
        request: side of the square images, render quality, seed of the first episode; each episode adds 1 to it.
    """

    needs_argument = True
    has_intrinsics = True
    adjustable = ("width", "height")
    accepts_actions = True

    def __init__(self, name: str, request: CameraRequest) -> None:
        super().__init__(request)
        if request.width and request.height and request.width != request.height:
            raise BadInput(f"simulated images are square; {request.width}x{request.height} were requested")
        task, _, camera = name.partition("@")
        self._task_spec = TaskSpec(
            task=task,
            observe=("rgb", "depth", "proprio") if request.depth else ("rgb", "proprio"),
            cameras=(camera,) if camera else (),
            image_size=request.width or request.height or _SIDE,
            render=request.render,
            depth_sensor=request.depth_sensor,
        )
        self.env: TaskEnv | None = None
        self.observation: dict[str, np.ndarray] = {}  # of the latest frame
        self._action: np.ndarray | None = None

    def act(self, action: np.ndarray) -> None:
        self._action = np.asarray(action, np.float32)

    def start(self) -> CameraSpec:
        check_rendering()
        self.env = self._task_spec.make()
        side = self._task_spec.image_size
        return CameraSpec(
            name=f"task:{self._task_spec.task}@{self.env.cameras[0]}",
            driver="task",
            live=False,
            color_size=(side, side),
            depth_size=(side, side) if self.request.depth else None,
            fps=float(self.env.task.control_hz),
            endless=True,
            details={"task": self._task_spec.task, "render": self._task_spec.render},
        )

    def frames(self) -> Iterator[Frame]:
        """Yield frames without end; each episode ends by the task's rules and the next one begins."""
        env, seed, count = self.env, self.request.seed, 0
        if env is None:
            raise CameraError("the camera is not open")
        while True:
            rng = np.random.default_rng(seed)
            self.observation, _ = env.reset(seed=seed)
            ended, is_first = False, True
            while not ended:
                yield self._frame(env, count, is_first)
                action = self._next_action(env, rng)
                self.observation, _, terminated, truncated, _ = env.step(action)
                ended, is_first, count = terminated or truncated, False, count + 1
            seed += 1

    def _next_action(self, env: TaskEnv, rng: np.random.Generator) -> np.ndarray:
        if self._action is not None:
            return self._action
        try:
            return env.task.expert_action()
        except UnknownName:
            return 0.3 * rng.uniform(-1, 1, env.task.action_dim)

    def _frame(self, env: TaskEnv, count: int, is_first: bool) -> Frame:
        side, known = self._task_spec.image_size, env.calibration().get(env.cameras[0])
        frame = rgbd_frame(
            self.observation["rgb"],
            self.observation.get("depth"),
            None if known is None else Intrinsics.from_matrix(known.intrinsics, side, side),
            sensor_time=count / float(env.task.control_hz),
            sequence=count,
            camera_to_world=None if known is None else known.camera_to_world,
            is_first=is_first,
        )
        return replace(frame, proprio=self.observation.get("proprio"))

    def stop(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            env.close()
