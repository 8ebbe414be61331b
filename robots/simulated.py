"""A simulated task as a robot, in real time or in stepped time, with its cameras: ``task:toy/reach``."""

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from ..cameras.camera import Camera, CameraSpec
from ..cameras.frame import Frame, Intrinsics, rgbd_frame
from ..envs.registry import TaskSpec, check_task, new_task
from ..envs.rendering import check_rendering
from ..envs.task import TaskEnv
from ..errors import BadInput, CameraError, RobotError
from .clock import SteppedClock, WallClock
from .robot import Outcome, Robot, RobotRequest, RobotSpec

_TIMEOUT = 20.0  # longest wait for the simulator's thread [s]
_SLACK = 0.5  # periods that the simulator waits for a command that is due


class TaskRobot(Robot):
    """A task of the registry. In stepped time the world advances with each action; in real time it advances by itself.

    In real time a thread owns the simulator. From the first command of an episode on it makes a step with each command,
    or without one when none has come for one and a half periods, and renders the images after it. Axes rest while
    nothing is commanded.

    Args:
        name: the task, e.g. ``toy/reach``, optionally with ``@CAMERA``, which replaces the task's first camera.
        request: time, images, cameras, horizon.
    """

    def __init__(self, name: str, request: RobotRequest) -> None:
        task, _, camera = name.partition("@")
        check_task(task)
        self._first_camera, self._asked_cameras = camera, request.cameras
        self.request = TaskSpec(
            task=task,
            observe=("rgb", "depth", "proprio") if request.depth else ("rgb", "proprio"),
            cameras=(camera,) if camera else (),  # all of them from `connect` on
            image_size=request.image_size,
            render=request.render,
            horizon=request.horizon,
            depth_sensor=request.depth_sensor if request.depth else "exact",
        )
        self.stepped = request.stepped
        self.clock = SteppedClock() if request.stepped else WallClock()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._work: Callable[[], Any] | None = None  # for the thread
        self._broken: Exception | None = None
        self._pending: np.ndarray | None = None
        self._last = np.zeros(0, np.float32)  # command that the simulator carried out
        self._closing = False
        self._env: TaskEnv | None = None
        self._running = False  # between reset and the end of the connection
        self._awaits_first_command = False  # for the first command of an episode
        self._images: dict[str, np.ndarray] = {}
        self._observation: dict[str, np.ndarray] = {}
        self._state = np.zeros(0)
        self._outcome = Outcome(0.0, False, False, 0.0)
        self._count = 0  # of frames
        self._starts = False
        self._time = 0.0  # of the latest frame

    def connect(self) -> None:
        if self._spec is not None:
            return
        check_rendering()
        self._closing, self._broken = False, None
        if not self.stepped:
            self._thread = threading.Thread(target=self._live, name=f"robot {self.request.task}", daemon=True)
            self._thread.start()
        try:
            self._do(self._make)
        except BaseException:
            self.disconnect()
            raise

    def _make(self) -> None:
        self.request = replace(self.request, cameras=self._camera_names())
        self._env = env = self.request.make()
        task = env.task
        self._spec = RobotSpec(
            name=f"task:{self.request.task}",
            driver="task",
            commands=task.action_spec(),
            proprio=task.proprio_dim,
            control_hz=float(task.control_hz),
            resets=True,
            cameras=env.cameras,
            details={"stepped": self.stepped, "horizon": env.horizon},
        )
        env.reset(seed=0)
        self._last = np.zeros(task.action_dim, np.float32)
        self._read_state(env)

    def _camera_names(self) -> tuple[str, ...]:
        """Return the names of the cameras to render; empty is the task's first one."""
        first = self._first_camera
        if not any(self._asked_cameras):
            return (first,) if first else ()
        if not first and "" in self._asked_cameras:
            with closing(new_task(self.request.task)) as task:
                first = task.cameras[0]
        return tuple(dict.fromkeys(name or first for name in self._asked_cameras))

    def disconnect(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            thread.join(_TIMEOUT)
        elif self._env is not None:
            self._env.close()
            self._env = None
        self._spec, self._running = None, False

    def get_observation(self) -> dict[str, np.ndarray]:
        self._check()
        with self._changed:
            return dict(self._observation)

    def send_action(self, action: np.ndarray) -> np.ndarray:
        self._check()
        asked = np.asarray(action, np.float32)
        if asked.shape != (len(self.spec.commands.names),) or not np.isfinite(asked).all():
            raise BadInput(
                f"{self.spec.name} needs a finite action of {len(self.spec.commands.names)} numbers; got {asked}"
            )
        sent = self.spec.commands.clip(asked)
        if self.stepped:
            self._step(sent)
            return sent
        with self._changed:
            if self._pending is not None:  # the simulator is behind; wait for it rather than lose a command
                self._changed.wait_for(lambda: self._pending is None, _TIMEOUT)
            self._pending = sent
            self._changed.notify_all()
        return sent

    def stop(self) -> None:
        self._check()
        with self._changed:
            self._pending = None

    def reset(self, seed: int) -> str:
        self._check()

        def begin() -> str:
            assert self._env is not None
            self._images, info = self._env.reset(seed=seed)
            self._outcome = Outcome(0.0, False, False, 0.0)
            self._pending, self._running, self._starts, self._awaits_first_command = None, True, True, True
            self._read_state(self._env)
            self._publish()
            return str(info["initial_state_hash"])

        return self._do(begin)

    def outcome(self) -> Outcome | None:
        return self._outcome

    def state(self) -> np.ndarray:
        return self._state

    def camera(self, name: str = "") -> Camera:
        names = self.spec.cameras
        if name and name not in names:
            raise BadInput(
                f"{self.spec.name} has camera {', '.join(names)}, not {name!r}; choose with robot=task:TASK@CAMERA"
            )
        return RobotCamera(self, name or names[0])

    def task_spec(self) -> TaskSpec:
        return self.request

    def frame(self, camera: str, newer_than: int, timeout: float) -> Frame | None:
        """Return a camera's latest frame, or None if none with a higher number comes within `timeout` [s]."""
        with self._changed:
            if not self.stepped:
                self._changed.wait_for(lambda: self._count > newer_than or self._broken is not None, timeout)
            return self._latest_frame(camera) if self._count > newer_than and self._images else None

    def _latest_frame(self, camera: str) -> Frame:
        known = self._calibrations.get(camera)
        side = self.request.image_size
        suffix = "" if camera == self.spec.cameras[0] else f"_{camera}"
        frame = rgbd_frame(
            self._images[f"rgb{suffix}"],
            self._images.get(f"depth{suffix}"),
            None if known is None else Intrinsics.from_matrix(known.intrinsics, side, side),
            None,
            self._time,
            self._count,
            None if known is None else known.camera_to_world,
            is_first=self._starts,
        )
        return replace(frame, proprio=self._images.get("proprio"), arrival_time=self._time)

    def _check(self) -> None:
        if self._broken is not None:
            raise RobotError(f"the simulator of {self.request.task} broke: {self._broken}") from self._broken
        if self._spec is None:
            raise BadInput("the robot is not connected")

    def _step(self, action: np.ndarray) -> None:
        assert self._env is not None
        images, reward, terminated, truncated, info = self._env.step(action)
        with self._changed:
            self._images, self._starts = images, False
            ended = terminated or truncated
            self._outcome = Outcome(reward, info["success"], ended, info["score"])
            self._read_state(self._env)
            self._publish()

    def _read_state(self, env: TaskEnv) -> None:
        """Read proprioception, targets, positions and state from the simulator."""
        task = env.task
        self._observation = {
            "proprio": task.proprio().astype(np.float32) if task.proprio_dim else np.zeros(0, np.float32),
            "set_point": task.set_point(),
            "positions": task.measured(),
        }
        self._state = task.state()

    def _publish(self) -> None:
        assert self._env is not None
        self._calibrations = self._env.calibration()
        self._time = self.clock.now()
        if self.stepped:  # a step takes a period, and its image is there when the next one begins
            self._time += 0.0 if self._starts else 1 / self._env.task.control_hz
        self._count += 1
        self._changed.notify_all()

    def _do(self, work: Callable[[], Any]) -> Any:
        """Call a function in the simulator's thread."""
        if self.stepped:
            with self._changed:
                return work()
        box: list[Any] = []

        def wrapped() -> None:
            try:
                box.append((work(), None))
            except Exception as error:
                box.append((None, error))

        with self._changed:
            self._work = wrapped
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: bool(box) or self._broken is not None, _TIMEOUT):
                raise RobotError(f"the simulator of {self.request.task} gave no answer for {_TIMEOUT:.0f} s")
        if not box:
            self._check()
        value, error = box[0]
        if error is not None:
            raise error
        return value

    def _live(self) -> None:
        """The thread: do requested work, and make a step with each command or when one is overdue."""
        try:
            due = self.clock.now()
            while True:
                with self._changed:
                    period = 1 / self._env.task.control_hz if self._env is not None else 1.0
                    wait = max(0.0, due + _SLACK * period - self.clock.now()) if self._running else None
                    self._changed.wait_for(lambda: self._closing or self._work or self._pending is not None, wait)
                    if self._closing:
                        return
                    if self._work is not None:
                        self._work()
                        self._work = None
                        due = self.clock.now() + period
                        self._changed.notify_all()
                        continue
                    action, self._pending = self._pending, None
                    self._changed.notify_all()
                assert self._env is not None
                began = self.clock.now()
                if (
                    action is None and self._awaits_first_command
                ):  # images of the same state, for a camera that has none yet
                    with self._changed:
                        self._publish()
                    due = began + period
                    continue
                self._awaits_first_command = False
                if action is None:
                    self.uncommanded_steps += not self._outcome.ended
                    action = np.where(self.spec.commands.relative, 0, self._last).astype(np.float32)
                self._last = action
                self._step(action)
                due = began + period
        except Exception as error:
            with self._changed:
                self._broken = error
                self._changed.notify_all()
        finally:
            if self._env is not None:
                self._env.close()
                self._env = None


class RobotCamera(Camera):
    """A camera of a `TaskRobot`: one frame per step, the same images as the task's observations."""

    def __init__(self, robot: TaskRobot, camera: str) -> None:
        self._robot, self._camera = robot, camera
        self._last = 0

    def open(self) -> None:
        side, robot = self._robot.request.image_size, self._robot
        has_depth = "depth" in robot.request.observe
        self._spec = CameraSpec(
            name=f"{robot.spec.name}@{self._camera}",
            driver="robot",
            live=not robot.stepped,
            color_size=(side, side),
            depth_size=(side, side) if has_depth else None,
            fps=robot.spec.control_hz,
            details={"depth_sensor": robot.request.depth_sensor, "render": robot.request.render},
        )

    def read(self) -> Frame:
        while self._spec is not None:
            frame = self._robot.frame(self._camera, self._last, 0.2)
            if frame is not None:
                self._last = frame.sequence
                return frame
            if self._robot.stepped:
                raise CameraError(f"{self.spec.name} has no new image before the next step")
        raise CameraError("the camera is not open")

    def close(self) -> None:
        self._spec = None
