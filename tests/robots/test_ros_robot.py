"""An arm on ROS 2 topics: targets arrive within limits, silence is detected. Needs rclpy (extra `ros`)."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pixio_robot import cli
from pixio_robot.cameras.camera import Camera, CameraSpec
from pixio_robot.cameras.frame import Frame, rgbd_frame
from pixio_robot.datasets.robomimic import RobomimicDataset
from pixio_robot.deploy.load import LoadedSource
from pixio_robot.deploy.manifest import Manifest, TensorSpec
from pixio_robot.errors import BadInput, DataError, RobotError
from pixio_robot.robots.clock import Rate, WallClock
from pixio_robot.robots.commands import Run, drive_robot
from pixio_robot.robots.emergency import EmergencyStop
from pixio_robot.robots.limits import Limits
from pixio_robot.robots.registry import find_robot
from pixio_robot.robots.ros import RosRobot
from pixio_robot.robots.safety import SafeRobot

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")  # lark, which rclpy's messages use
ARM: dict[str, Any] = {
    "joints": ["shoulder", "elbow"],
    "rate": 20,
    "state_topic": "/pixio_test/joint_states",
    "command_topic": "/pixio_test/trajectory",
    "position": {"shoulder": [-1.0, 1.0], "elbow": [0.0, 2.0]},
    "velocity": {"shoulder": 1.0, "elbow": 1.0},
}


def _file(folder: Path, **changes: Any) -> str:
    path = folder / "arm.json"
    path.write_text(json.dumps({key: value for key, value in {**ARM, **changes}.items() if value is not None}))
    return str(path)


class _Arm:
    """A simulated arm: it publishes its joints at 100 Hz and is at once where a trajectory sends it."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import JointState
        from trajectory_msgs.msg import JointTrajectory

        self._state, self.positions, self.heard, self.silent = JointState, [0.1, 0.9], [], False
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("pixio_test_arm", context=self._context)
        self._publisher = self._node.create_publisher(JointState, ARM["state_topic"], 10)
        self._node.create_subscription(JointTrajectory, ARM["command_topic"], self._follow, 10)
        self._node.create_timer(0.01, self._tell)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _follow(self, message: Any) -> None:
        places = {name: at for at, name in enumerate(message.joint_names)}
        target = list(message.points[-1].positions)
        self.heard.append(target)
        self.positions = [target[places[name]] for name in ("shoulder", "elbow")]

    def _tell(self) -> None:
        if not self.silent:  # joints in another order than the robot's, and one that is not its
            elbow, shoulder = self.positions[1], self.positions[0]
            self._publisher.publish(self._state(name=["elbow", "wheel", "shoulder"], position=[elbow, 7.0, shoulder]))

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(2.0)
        self._node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Arm]:
    pytest.importorskip("rclpy", reason="needs the extra ros")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(50 + os.getpid() % 50))
    made = _Arm()
    yield made
    made.close()


def _until(happened: Any, seconds: float = 5.0) -> None:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if happened():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not happen")


def test_an_arm_reaches_its_targets_within_limits(arm: _Arm, tmp_path: Path) -> None:
    with find_robot(f"ros:{_file(tmp_path)}") as robot:
        assert robot.action_features == {"shoulder": float, "elbow": float}
        np.testing.assert_allclose(robot.get_observation()["proprio"], [0.1, 0.9], rtol=1e-6)
        limits = Limits.of(robot.spec.commands)
        safe = SafeRobot(robot, limits, 0.05, EmergencyStop(tmp_path / "estop.json"))
        sent = safe.send_action(np.array([1.0, -1.0]))  # from where it is to the ends of the ranges
        assert safe.reasons == ("velocity",)
        _until(lambda: arm.heard)
        np.testing.assert_allclose(arm.heard[-1], [0.15, 0.85], atol=1e-6)  # 1 rad/s for 0.05 s
        np.testing.assert_allclose(robot.spec.commands.target(sent, np.zeros(2)), arm.heard[-1], atol=1e-6)
        beat = Rate(WallClock(), 0.05)
        for _ in range(40):
            beat.tick()
            safe.send_action(np.array([1.0, -1.0]))
        _until(lambda: np.allclose(arm.positions, [1.0, 0.0], atol=1e-6))
        assert len(arm.heard) > 18 and np.abs(np.diff(arm.heard, axis=0)).max() < 0.0501
        safe.stop()
        _until(lambda: np.allclose(arm.heard[-1], [1.0, 0.0], atol=1e-6))


def test_a_silent_robot_raises_an_error(arm: _Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixio_robot.robots.ros._MAX_AGE", 0.1)
    monkeypatch.setattr("pixio_robot.robots.ros._STARTUP_TIMEOUT", 2.0)
    with RosRobot(_file(tmp_path)) as robot:
        arm.silent = True
        _until(lambda: _raises(robot))
    with pytest.raises(RobotError, match="no state of the joints shoulder, elbow"):
        RosRobot(_file(tmp_path)).connect()


def test_a_missing_controller_is_detected(arm: _Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixio_robot.robots.ros._STARTUP_TIMEOUT", 1.0)
    robot = RosRobot(_file(tmp_path, command_topic="/pixio_test/nobody"))
    with pytest.raises(RobotError, match="nobody subscribes to /pixio_test/nobody"):
        robot.connect()
    assert robot._running is None


def test_a_stop_after_silence_sends_the_last_target(arm: _Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixio_robot.robots.ros._MAX_AGE", 0.1)
    with RosRobot(_file(tmp_path)) as robot:
        arm.silent = True
        _until(lambda: _raises(robot))
        robot.stop()
        robot._target = np.array([0.4, 1.2])  # where it was sent to meanwhile
        robot.stop()
        _until(lambda: arm.heard)
    assert arm.heard == [[0.4, 1.2]], "nothing is known to send before the first command"


def test_a_joint_state_without_positions_is_ignored(tmp_path: Path) -> None:
    robot = RosRobot(_file(tmp_path))
    robot._on_state(SimpleNamespace(name=["shoulder", "elbow"], position=[]))
    assert robot._positions is None
    robot._on_state(SimpleNamespace(name=["elbow", "shoulder"], position=[1.0, 0.5]))
    np.testing.assert_array_equal(robot._positions, [0.5, 1.0])


class _Webcam(Camera):
    """100 small images a second, by the wall's clock."""

    def __init__(self) -> None:
        self._count = 0

    def open(self) -> None:
        self._spec = CameraSpec("webcam", "test", True, (32, 32), None, 100.0)

    def read(self) -> Frame:
        time.sleep(0.01)
        self._count += 1
        image = np.full((32, 32, 3), self._count % 256, np.uint8)
        return rgbd_frame(image, None, None, None, time.monotonic(), self._count)

    def close(self) -> None:
        self._spec = None


class _Reaching:
    """Sends both joints to the middle of their ranges, four steps at a time."""

    def reset(self) -> None:
        pass

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        assert observation["rgb"].shape == (32, 32, 3) and observation["proprio"].shape == (2,)
        return np.zeros((4, 2), np.float32)


def test_a_recorded_run_of_an_arm_trains_and_exports_a_policy(
    arm: _Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: run, demonstrations, train_bc, export."""
    monkeypatch.setattr("pixio_robot.cameras.settings.requested_camera", lambda settings: _Webcam())
    manifest = Manifest(
        "policy",
        "onnx",
        "fp32",
        "program.onnx",
        [TensorSpec("rgb", (32, 32, 3), "uint8"), TensorSpec("proprio", (2,), "float32")],
        [TensorSpec("action", (4, 2), "float32")],
        image_size=32,
        control_period=0.1,
        horizon=4,
        action_low=[-1.0] * 2,
        action_high=[1.0] * 2,
    )
    command = Run(
        robot=f"ros:{_file(tmp_path, rate=10)}", camera="webcam", bundle="b", steps=10, out="out", depth=False
    )
    report = drive_robot(command, LoadedSource(manifest, _Reaching(), "policy"))
    assert report.endings == {"end": 1} and report.demos is not None
    _until(lambda: np.allclose(arm.positions, [0.0, 1.0], atol=1e-6))
    demos = RobomimicDataset(report.demos)
    assert demos.provenance["task"] == "ros:arm" and demos.provenance["robot"]["control_hz"] == pytest.approx(10)
    assert (
        demos.provenance["robot"]["action_low"] == [-1.0] * 2 and demos.provenance["robot"]["action_high"] == [1.0] * 2
    )
    assert demos.split("train").tolist() == [0]
    assert demos.features["proprio"].shape == demos.features["action"].shape == (2,)
    assert (
        cli.run(["train_bc", f"demos={demos.path}", "encoder=none", "training.epochs=1", "device=cpu", "out=bc"]) == 0
    )
    pytest.importorskip("onnxscript", reason="needs the extra export")
    words = ["checkpoint=bc/checkpoints/none/last.safetensors", "verify=false", "out=bundle"]
    assert cli.run(["export", *words]) == 0
    exported = Manifest.read("bundle")
    assert exported.action_names == ["shoulder", "elbow"] and exported.control_period == pytest.approx(0.1)


def _raises(robot: RosRobot) -> bool:
    try:
        robot.get_observation()
    except RobotError as error:
        assert "driver is gone" in str(error)
        return True
    return False


def test_an_incomplete_description_is_refused(tmp_path: Path) -> None:
    for changes, words in (
        ({"joints": []}, "must name the joints"),
        ({"position": None}, 'mode "absolute" needs "position"'),
        ({"mode": "relative"}, 'mode "relative" needs "stride"'),
        ({"mode": "torque"}, "no mode 'torque'"),
        ({"mode": "relative", "stride": {"shoulder": 0.1, "elbow": float("inf")}}, 'needs "stride"'),
        ({"rate": 0}, "not 0"),
        ({"rate": float("nan")}, "not nan"),
        ({"rate": "fast"}, "not 'fast'"),
        ({"colour": 1}, "no key 'colour'"),
        ({"velocity": {"elbow": "fast"}}, "not a number"),
    ):
        with pytest.raises(DataError, match=words):
            RosRobot(_file(tmp_path, **changes))
    with pytest.raises(DataError, match="no description of a robot at"):
        find_robot("ros:absent.json")
    commands = RosRobot(_file(tmp_path, velocity=None))._commands
    with pytest.raises(BadInput, match="no velocity limit for axis 'shoulder'"):
        Limits.of(commands).check(commands, "arm", False)


def test_in_mode_positions_actions_are_joint_positions(tmp_path: Path) -> None:
    commands = RosRobot(_file(tmp_path, mode="positions"))._commands
    assert commands.action_range[0].tolist() == [-1.0, 0.0] and commands.action_range[1].tolist() == [1.0, 2.0]
    assert commands.target(np.array([0.5, 1.5]), np.zeros(2)).tolist() == [0.5, 1.5]
