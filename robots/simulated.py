"""Any simulated task as a robot, in real time or in stepped time, with its cameras: ``task:toy/reach``."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..cameras.camera import Camera, CameraSpec
from ..cameras.frame import Frame, Intrinsics, rgbd_frame
from ..envs.registry import TaskSpec, check_task
from ..envs.rendering import check_rendering
from ..envs.task import TaskEnv
from ..errors import BadInput, CameraError, RobotError
from .clock import SteppedClock, WallClock
from .robot import Outcome, Robot, RobotRequest, RobotSpec

_PATIENCE = 20.0  # longest wait for the simulator's thread [s]
_SLACK = 0.5  # periods that the simulator waits for a command that is due


class TaskRobot(Robot):
    """A task of our registry. In stepped time the world goes on with each action; in real time it goes on by itself.

    In real time a thread of its own owns the simulator. From the first command of an episode on it makes a step with
    each command, or without one when none has come for half a period more than a period, and draws an image after it.
    Axes rest while nothing is commanded.

    Args:
        name: the task, e.g. ``toy/reach``, perhaps with ``@CAMERA``.
        request: time, images, horizon.
    """

    def __init__(self, name: str, request: RobotRequest) -> None:
        task, _, camera = name.partition("@")
        check_task(task)
        self.request = TaskSpec(
            task=task,
            observe=("rgb", "depth", "proprio") if request.depth else ("rgb", "proprio"),
            cameras=(camera,) if camera else (),
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
        self._waits = False  # for the first command of an episode
        self._seen: dict[str, np.ndarray] = {}
        self._felt: dict[str, np.ndarray] = {}
        self._state = np.zeros(0)
        self._outcome = Outcome(0.0, False, False, 0.0)
        self._count = 0  # of frames
        self._starts = False
        self._time = 0.0  # of the newest frame

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
        self._feel(env)

    def disconnect(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            thread.join(_PATIENCE)
        elif self._env is not None:
            self._env.close()
            self._env = None
        self._spec, self._running = None, False

    def get_observation(self) -> dict[str, np.ndarray]:
        self._check()
        with self._changed:
            return dict(self._felt)

    def send_action(self, action: np.ndarray) -> np.ndarray:
        self._check()
        asked = np.asarray(action, np.float32)
        if asked.shape != (len(self.spec.commands.names),) or not np.isfinite(asked).all():
            raise BadInput(
                f"{self.spec.name} needs a finite action of {len(self.spec.commands.names)} numbers; got {asked}"
            )
        sent = np.clip(asked, -1, 1)
        if self.stepped:
            self._step(sent)
            return sent
        with self._changed:
            if self._pending is not None:  # the simulator is behind; wait for it rather than lose a command
                self._changed.wait_for(lambda: self._pending is None, _PATIENCE)
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
            self._seen, info = self._env.reset(seed=seed)
            self._outcome = Outcome(0.0, False, False, 0.0)
            self._pending, self._running, self._starts, self._waits = None, True, True, True
            self._feel(self._env)
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
        return RobotCamera(self)

    def frame(self, newer_than: int, timeout: float) -> Frame | None:
        """Return the newest frame, or None if none newer than that number comes within `timeout` [s]."""
        with self._changed:
            if not self.stepped:
                self._changed.wait_for(lambda: self._count > newer_than or self._broken is not None, timeout)
            return self._newest() if self._count > newer_than and self._seen else None

    def _newest(self) -> Frame:
        assert self._env is not None
        known = self._calibration
        side = self.request.image_size
        frame = rgbd_frame(
            self._seen["rgb"],
            self._seen.get("depth"),
            Intrinsics.from_matrix(known.intrinsics, side, side),
            None,
            self._time,
            self._count,
            known.camera_to_world,
            is_first=self._starts,
        )
        return replace(frame, proprio=self._seen.get("proprio"), arrival_time=self._time)

    def _check(self) -> None:
        if self._broken is not None:
            raise RobotError(f"the simulator of {self.request.task} broke: {self._broken}") from self._broken
        if self._spec is None:
            raise BadInput("the robot is not connected")

    def _step(self, action: np.ndarray) -> None:
        assert self._env is not None
        seen, reward, terminated, truncated, info = self._env.step(action)
        with self._changed:
            self._seen, self._starts = seen, False
            over = terminated or truncated
            self._outcome = Outcome(reward, info["success"], over, info["score"])
            self._feel(self._env)
            self._publish()

    def _feel(self, env: TaskEnv) -> None:
        """Take what the robot feels out of the simulator."""
        task = env.task
        self._felt = {
            "proprio": task.proprio().astype(np.float32) if task.proprio_dim else np.zeros(0, np.float32),
            "set_point": task.set_point(),
            "positions": task.measured(),
        }
        self._state = task.state()

    def _publish(self) -> None:
        assert self._env is not None
        self._calibration = self._env.calibration()[self._env.cameras[0]]
        self._time = self.clock.now()
        if self.stepped:  # a step takes a period, and its image is there when the next one begins
            self._time += 0.0 if self._starts else 1 / self._env.task.control_hz
        self._count += 1
        self._changed.notify_all()

    def _do(self, work: Callable[[], Any]) -> Any:
        """Do something where the simulator lives."""
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
            if not self._changed.wait_for(lambda: bool(box) or self._broken is not None, _PATIENCE):
                raise RobotError(f"the simulator of {self.request.task} gave no answer for {_PATIENCE:.0f} s")
        if not box:
            self._check()
        value, error = box[0]
        if error is not None:
            raise error
        return value

    def _live(self) -> None:
        """What the thread does: work that is asked for, and a step with each command or when one is overdue."""
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
                if action is None and self._waits:  # an image of the same moment, for who has none yet
                    with self._changed:
                        self._publish()
                    due = began + period
                    continue
                self._waits = False
                if action is None:
                    self.uncommanded_steps += not self._outcome.over
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
    """The camera of a `TaskRobot`: a frame a step, as its task observes."""

    def __init__(self, robot: TaskRobot) -> None:
        self._robot = robot
        self._last = 0

    def open(self) -> None:
        side, robot = self._robot.request.image_size, self._robot
        deep = "depth" in robot.request.observe
        self._spec = CameraSpec(
            name=f"{robot.spec.name}@{robot.spec.cameras[0]}",
            driver="robot",
            live=not robot.stepped,
            color_size=(side, side),
            depth_size=(side, side) if deep else None,
            fps=robot.spec.control_hz,
            details={"depth_sensor": robot.request.depth_sensor, "render": robot.request.render},
        )

    def read(self) -> Frame:
        while self._spec is not None:
            frame = self._robot.frame(self._last, 0.2)
            if frame is not None:
                self._last = frame.sequence
                return frame
            if self._robot.stepped:
                raise CameraError(f"{self.spec.name} has no new image before the next step")
        raise CameraError("the camera is not open")

    def close(self) -> None:
        self._spec = None
