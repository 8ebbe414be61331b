"""An arm on ROS 2: joint states come from one topic, one-point trajectories go to another. ``ros:arm.json``

The file describes the joints, the topics and what an action means:

    {"joints": ["shoulder", "elbow"], "mode": "absolute", "rate": 20,
     "state_topic": "/joint_states", "command_topic": "/joint_trajectory_controller/joint_trajectory",
     "position": {"shoulder": [-1.5, 1.5], "elbow": [0, 2]}, "velocity": {"shoulder": 1, "elbow": 1}}

In mode "absolute" an action of -1 to 1 is a position in the joint's range. In mode "relative" it moves the joint by up
to ``stride``, an object like ``velocity``, in each step. In mode "positions" actions are the joints' positions
themselves, in ``unit`` ("rad" by default), for policies that were trained on such data. Proprioception is the joints'
positions.
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..envs.action_spec import ActionSpec
from ..errors import BadInput, DataError, MissingExtra, RobotError
from .robot import Robot, RobotRequest, RobotSpec

_STARTUP_TIMEOUT = 5.0  # wait for the first joint state [s]
_MAX_AGE = 0.5  # age from which a joint state is too old [s]
_KEYS = ("joints", "mode", "rate", "state_topic", "command_topic", "position", "velocity", "stride", "unit")


class RosRobot(Robot):
    """A robot on ROS 2 topics, sensor_msgs/JointState in and trajectory_msgs/JointTrajectory out.

    Args:
        path: the file that describes it.
        request: not used by this robot.

    Raises:
        DataError: if the file is missing or lacks something.
        MissingExtra: if rclpy is not installed.
    """

    def __init__(self, path: str, request: RobotRequest = RobotRequest()) -> None:
        self.path = Path(path)
        known = _read(self.path)
        self.joints = tuple(known["joints"])
        self._rate = _rate(self.path, known)
        self._state_topic = known.get("state_topic", "/joint_states")
        self._command_topic = known.get("command_topic", "/joint_trajectory_controller/joint_trajectory")
        self._commands = _commands(self.path, self.joints, known)
        self._changed = threading.Condition()
        self._positions: np.ndarray | None = None
        self._at = 0.0  # when they came [s]
        self._target: np.ndarray | None = None  # of the last command
        self._running: tuple[Any, ...] | None = None  # context, node, executor, thread, publisher

    def connect(self) -> None:
        if self._running is not None:
            return
        try:
            import rclpy
            from rclpy.context import Context
            from rclpy.executors import SingleThreadedExecutor
            from sensor_msgs.msg import JointState
            from trajectory_msgs.msg import JointTrajectory
        except ImportError as error:
            raise MissingExtra("the ROS 2 bridge", "ros") from error
        context = Context()
        rclpy.init(context=context)
        node = rclpy.create_node("pixio_robot", context=context)
        node.create_subscription(JointState, self._state_topic, self._on_state, 10)
        publisher = node.create_publisher(JointTrajectory, self._command_topic, 10)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, name="ros", daemon=True)
        thread.start()
        self._running = (context, node, executor, thread, publisher)
        with self._changed:
            there = self._changed.wait_for(lambda: self._positions is not None, _STARTUP_TIMEOUT)
        if not there:
            self.disconnect()
            raise RobotError(
                f"no state of the joints {', '.join(self.joints)} came on {self._state_topic} for "
                f"{_STARTUP_TIMEOUT:.0f} s; is the robot's driver running, with the same ROS_DOMAIN_ID? See: "
                f"ros2 topic echo {self._state_topic}"
            )
        end = time.monotonic() + _STARTUP_TIMEOUT
        while not publisher.get_subscription_count():
            if time.monotonic() > end:
                self.disconnect()
                raise RobotError(
                    f"nobody subscribes to {self._command_topic}, so commands would be lost; is the controller "
                    f'active, and is "command_topic" in {self.path} its topic? See: ros2 control list_controllers'
                )
            time.sleep(0.01)
        self._spec = RobotSpec(
            name=f"ros:{self.path.stem}",
            driver="ros",
            commands=self._commands,
            proprio=len(self.joints),
            control_hz=self._rate,
            details={"state_topic": self._state_topic, "command_topic": self._command_topic},
        )

    def disconnect(self) -> None:
        connection, self._running = self._running, None
        if connection is not None:
            context, node, executor, thread, _ = connection
            executor.shutdown()
            thread.join(2.0)
            node.destroy_node()
            context.try_shutdown()
        self._spec, self._positions, self._target = None, None, None

    def get_observation(self) -> dict[str, np.ndarray]:
        with self._changed:
            positions, at = self._positions, self._at
        if positions is None or self._running is None:
            raise BadInput("the robot is not connected")
        if (age := time.monotonic() - at) > _MAX_AGE:
            raise RobotError(
                f"the last joint state on {self._state_topic} is {age:.1f} s old; the robot's driver is gone"
            )
        set_point = positions if self._target is None else self._target
        return {"proprio": positions.astype(np.float32), "set_point": set_point.copy(), "positions": positions.copy()}

    def send_action(self, action: np.ndarray) -> np.ndarray:
        asked = np.asarray(action, np.float32)
        if asked.shape != (len(self.joints),) or not np.isfinite(asked).all():
            raise BadInput(f"{self.spec.name} needs {len(self.joints)} finite numbers; got {asked}")
        sent = self._commands.clip(asked)
        self._target = self._commands.target(sent, self.get_observation()["set_point"])
        self._publish(self._target)
        return sent

    def stop(self) -> None:
        """Send the joints their present positions, or their last targets if the positions are unknown."""
        with self._changed:
            here = self._positions if time.monotonic() - self._at <= _MAX_AGE else self._target
        if here is not None and self._running is not None:
            self._target = here.copy()
            self._publish(here)

    def reset(self, seed: int) -> str:
        self._target = None
        return ""

    def _publish(self, target: np.ndarray) -> None:
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        assert self._running is not None
        point = JointTrajectoryPoint(positions=target.tolist())
        point.time_from_start.nanosec = int(1e9 / self._rate) % 10**9
        point.time_from_start.sec = int(1 / self._rate)
        self._running[-1].publish(JointTrajectory(joint_names=list(self.joints), points=[point]))

    def _on_state(self, message: Any) -> None:
        places = {name: at for at, name in enumerate(message.name)}
        if any(places.get(name, len(message.position)) >= len(message.position) for name in self.joints):
            return  # of another part of the robot, or without positions
        positions = np.array([message.position[places[name]] for name in self.joints])
        if np.isfinite(positions).all():
            with self._changed:
                self._positions, self._at = positions, time.monotonic()
                self._changed.notify_all()


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"no description of a robot at {path} ({error.strerror}); see docs/robots.md") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(known, dict) or not isinstance(known.get("joints"), list) or not known["joints"]:
        raise DataError(f'{path} must name the joints, e.g. {{"joints": ["shoulder", "elbow"]}}; see docs/robots.md')
    if unknown := [key for key in known if key not in _KEYS]:
        raise DataError(f"{path}: no key {unknown[0]!r}; there are: {', '.join(_KEYS)}")
    return known


def _rate(path: Path, known: dict[str, Any]) -> float:
    try:
        rate = float(known.get("rate", 20.0))
    except (TypeError, ValueError):
        rate = np.nan
    if not 0 < rate < np.inf:
        raise DataError(f'{path}: "rate" is in commands a second, e.g. 20; not {known["rate"]!r}')
    return rate


def _commands(path: Path, joints: tuple[str, ...], known: dict[str, Any]) -> ActionSpec:
    """Return what actions do; limits that are missing in the file are infinite, and then nothing may move."""
    count, mode = len(joints), known.get("mode", "absolute")
    try:
        ranges = [known.get("position", {}).get(name, (-np.inf, np.inf)) for name in joints]
        low, high = (np.array([float(each[at]) for each in ranges]) for at in (0, 1))
        speed = np.array([float(known.get("velocity", {}).get(name, np.inf)) for name in joints])
        stride = np.array([float(known.get("stride", {}).get(name, np.nan)) for name in joints])
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path} holds a limit that is not a number or pair of numbers: {error}") from error
    units = (str(known.get("unit", "rad")),) * count
    if mode == "relative":
        if not ((stride > 0) & np.isfinite(stride)).all():
            raise DataError(f'{path}: mode "relative" needs "stride", how far an action of 1 moves each joint')
        return ActionSpec(joints, units, stride, np.zeros(count), np.ones(count, bool), low, high, speed)
    if mode not in ("absolute", "positions"):
        raise DataError(f"{path}: no mode {mode!r}; there are: absolute, relative, positions")
    if not np.isfinite([low, high]).all():
        raise DataError(f'{path}: mode "{mode}" needs "position", the range of each joint')
    if mode == "positions":
        return ActionSpec.positions(joints, units, low, high, speed)
    return ActionSpec(joints, units, (high - low) / 2, (high + low) / 2, np.zeros(count, bool), low, high, speed)
