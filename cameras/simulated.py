"""A simulated task as a camera: ``task:metaworld/drawer-open``, ``task:toy/reach@top``."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..envs.registry import TaskSpec
from ..envs.rendering import check_rendering
from ..envs.task import TaskEnv
from ..errors import BadInput, UnknownName
from .camera import CameraRequest, CameraSpec
from .frame import Frame, Intrinsics, rgbd_frame
from .playback import Playback

_SIDE = 256  # [px]


class TaskCamera(Playback):
    """What a task's camera sees, a frame a control step, episode after episode.

    `act` sets what the robot does at the next step; until it is called the task's expert acts, or small random actions
    where there is none. Images are the task's observations, bit for bit.

    Args:
        name: the task, perhaps with ``@CAMERA``.
        request: side of the square images, render quality, seed of the first episode; they count up.
    """

    follows = ("width", "height")

    def __init__(self, name: str, request: CameraRequest) -> None:
        super().__init__(request)
        if request.width and request.height and request.width != request.height:
            raise BadInput(f"simulated images are square; {request.width}x{request.height} were asked for")
        task, _, camera = name.partition("@")
        self._request = TaskSpec(
            task=task,
            observe=("rgb", "depth", "proprio") if request.depth else ("rgb", "proprio"),
            cameras=(camera,) if camera else (),
            image_size=request.width or request.height or _SIDE,
            render=request.render,
            depth_sensor=request.depth_sensor,
        )
        self.env: TaskEnv | None = None
        self.observation: dict[str, np.ndarray] = {}  # of the newest frame
        self._action: np.ndarray | None = None

    def act(self, action: np.ndarray) -> None:
        """Set the action (A,) in [-1, 1] of the next step."""
        self._action = np.asarray(action, np.float32)

    def start(self) -> CameraSpec:
        check_rendering()
        self.env = self._request.make()
        side = self._request.image_size
        rate = self.env.task.control_hz
        return CameraSpec(
            name=f"task:{self._request.task}@{self.env.cameras[0]}",
            driver="task",
            live=False,
            color_size=(side, side),
            depth_size=(side, side) if self.request.depth else None,
            fps=float(rate),
            details={"task": self._request.task, "render": self._request.render},
        )

    def frames(self) -> Iterator[Frame]:
        """Yield frames for ever; each episode ends as the task says and another begins."""
        env, seed, count = self.env, self.request.seed, 0
        assert env is not None
        while True:
            rng = np.random.default_rng(seed)
            self.observation, _ = env.reset(seed=seed)
            ended, starts = False, True
            while not ended:
                yield self._frame(env, count, starts)
                action = self._next_action(env, rng)
                self.observation, _, terminated, truncated, _ = env.step(action)
                ended, starts, count = terminated or truncated, False, count + 1
            seed += 1

    def _next_action(self, env: TaskEnv, rng: np.random.Generator) -> np.ndarray:
        if self._action is not None:
            return self._action
        try:
            return env.task.expert_action()
        except UnknownName:
            return 0.3 * rng.uniform(-1, 1, env.task.action_dim)

    def _frame(self, env: TaskEnv, count: int, starts: bool) -> Frame:
        known = env.calibration()[env.cameras[0]]
        side = self._request.image_size
        intrinsics = Intrinsics.from_matrix(known.intrinsics, side, side)
        when = count / float(env.task.control_hz)
        depth = self.observation.get("depth")
        frame = rgbd_frame(
            self.observation["rgb"], depth, intrinsics, None, when, count, known.camera_to_world, starts=starts
        )
        return replace(frame, proprio=self.observation.get("proprio"))

    def stop(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            env.close()
