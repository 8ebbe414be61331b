"""Robots: limits are enforced, the emergency stop latches, the rate is kept, and what does not fit is refused."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixio_robot import plugins
from pixio_robot.cameras.camera import CameraSpec
from pixio_robot.deploy.manifest import Manifest, TensorSpec
from pixio_robot.envs.action_spec import ActionSpec
from pixio_robot.envs.registry import make
from pixio_robot.errors import BadInput, DataError, EmergencyStopped, OutOfControl, PixioError, RobotError, UnknownName
from pixio_robot.robots.clock import Rate, SteppedClock, WallClock
from pixio_robot.robots.emergency import EmergencyStop
from pixio_robot.robots.faults import Fault
from pixio_robot.robots.fit import check_fit
from pixio_robot.robots.inference import InferenceRequest, InferenceThread
from pixio_robot.robots.interpolation import Interpolation
from pixio_robot.robots.limits import Limits
from pixio_robot.robots.registry import find_robot
from pixio_robot.robots.robot import Robot, RobotRequest, RobotSpec
from pixio_robot.robots.safety import SafeRobot, SafetyFilter
from pixio_robot.stopping import Stopping

PERIOD = 0.05
REACH = ActionSpec.of(("x", "y", "z"), "m", 0.02, -np.full(3, 0.2), np.full(3, 0.2), 0.5, (0.0, 0.0, 0.2))
JOINTS = ActionSpec(  # two joints sent to places, and a gripper driven by an effort
    ("shoulder", "elbow", "gripper"),
    ("rad", "rad", "1"),
    np.array([1.5, 1.0, 1.0]),
    np.array([0.0, 1.0, 0.0]),
    np.array([False, False, True]),
    np.array([-1.5, 0.0, -1.0]),
    np.array([1.5, 2.0, 1.0]),
    np.array([2.0, 3.0, np.inf]),
)
ARM = ActionSpec.positions(  # actions are positions, as in third-party data
    ("base", "shoulder", "wrist"),
    ("rad", "rad", "rad"),
    np.array([-2.5, 0.0, -1.0]),
    np.array([2.5, 2.0, 1.0]),
    np.array([2.0, 3.0, 1.0]),
)
KINDS = pytest.mark.parametrize("commands", [REACH, JOINTS, ARM], ids=["relative", "absolute", "positions"])


class _Still(Robot):
    """A robot that is where it was last sent to."""

    def __init__(self, commands: ActionSpec, episode: bool = False) -> None:
        self.clock = SteppedClock()
        self._spec = RobotSpec("still", "test", commands, len(commands.names), 1 / PERIOD)
        self.at, self.sent, self.stops = np.where(commands.relative, 0.0, commands.offset), [], 0

    def connect(self) -> None:
        pass

    def disconnect(self) -> None:
        pass

    def get_observation(self) -> dict[str, np.ndarray]:
        point = np.where(np.array(self.spec.commands.units) == "1", 0.0, self.at)
        return {"proprio": self.at.astype(np.float32), "set_point": point, "positions": self.at.copy()}

    def send_action(self, action: np.ndarray) -> np.ndarray:
        self.at = self.spec.commands.target(action, self.get_observation()["set_point"])
        self.sent.append(action)
        self.clock.sleep_until(self.clock.now() + PERIOD)
        return action

    def stop(self) -> None:
        self.stops += 1


def _free(commands: ActionSpec, **changes: Any) -> Limits:
    return replace(Limits.of(commands), **changes)


@KINDS
def test_sent_actions_stay_within_limits_for_any_request(commands: ActionSpec) -> None:
    rng = np.random.default_rng(0)
    box = (np.array([-0.1, -0.15, 0.1]), np.array([0.15, 0.1, 0.3])) if commands.end_effector else None
    step = 0.6 * np.minimum(commands.speed * PERIOD, 1.0)
    limits = Limits(0.8 * commands.low, 0.9 * commands.high, 0.7 * commands.speed, step, box)
    robot = _Still(commands)
    guard = SafetyFilter(commands, limits, PERIOD, robot.clock, robot.hand_at)
    seen = set()
    for number in range(400):
        asked = rng.normal(0, 2, 3) if number % 3 else rng.choice([-1.0, 1.0, np.nan, np.inf, 1e30], 3)
        if number % 40 < 20:
            asked = np.full(3, 1.0 if number % 80 < 40 else -1.0)
        before = robot.get_observation()
        decision = guard.apply(asked, before)
        seen |= set(decision.reasons)
        low, high = commands.action_range
        assert np.isfinite(decision.action).all() and (low <= decision.action).all() and (decision.action <= high).all()
        robot.send_action(decision.action)
        moved = np.abs(robot.at - before["positions"])[np.array(commands.units) != "1"]
        most = np.minimum(limits.velocity * PERIOD, limits.step)[np.array(commands.units) != "1"]
        assert (robot.at >= limits.low - 1e-6).all() and (robot.at <= limits.high + 1e-6).all()
        assert (moved <= most + 1e-6).all()
        if box:
            hand = robot.hand_at(robot.at)
            assert hand is not None and (hand >= box[0] - 1e-6).all() and (hand <= box[1] + 1e-6).all()
    assert {"nan", "range", "step"} <= seen and (("workspace" if box else "position") in seen)


@KINDS
def test_a_safe_action_passes_bit_for_bit(commands: ActionSpec) -> None:
    robot = _Still(commands)
    guard = SafetyFilter(commands, _free(commands), PERIOD, robot.clock, robot.hand_at)
    rng = np.random.default_rng(1)
    for _ in range(50):
        near = commands.action(0.3 * robot.at + 0.7 * np.where(commands.relative, 0, commands.offset), robot.at)
        asked = np.float32(0.05) * rng.uniform(-1, 1, 3).astype(np.float32)
        asked = np.where(commands.relative, asked, near).astype(np.float32)
        decision = guard.apply(asked, robot.get_observation())
        assert decision.reasons == () and np.array_equal(decision.action, asked)
        robot.send_action(decision.action)


def test_a_hold_keeps_positions_and_zeroes_efforts() -> None:
    robot = _Still(JOINTS)
    guard = SafetyFilter(JOINTS, _free(JOINTS), PERIOD, robot.clock)
    robot.send_action(guard.apply(np.array([0.05, 0.1, 0.7]), robot.get_observation()).action)
    place = robot.at.copy()
    for _ in range(3):
        robot.send_action(guard.hold(robot.get_observation()).action)
    np.testing.assert_allclose(robot.at[:2], place[:2], atol=1e-6)
    assert robot.at[2] == 0


def test_quick_commands_respect_the_velocity_limit() -> None:
    """The limit is one of velocity, not of change a command."""
    robot = _Still(REACH)
    limits = _free(REACH, velocity=np.full(3, 0.1))
    guard = SafetyFilter(REACH, limits, PERIOD, robot.clock)
    clock, begin = SteppedClock(), robot.at.copy()
    guard._clock = clock
    for _ in range(20):
        robot.at = REACH.target(guard.apply(np.ones(3), robot.get_observation()).action, robot.at)
        clock.sleep_until(clock.now() + 0.01)
    assert (robot.at - begin <= 0.1 * (PERIOD + 20 * 0.01) + 1e-6).all()


def test_an_axis_outside_its_limits_moves_only_inwards() -> None:
    robot = _Still(REACH)
    robot.at = np.array([0.19, 0.0, 0.0])
    limits = _free(REACH, high=np.full(3, 0.18), low=np.full(3, -0.18))
    guard = SafetyFilter(REACH, limits, PERIOD, robot.clock)
    assert np.array_equal(guard.apply(np.zeros(3), robot.get_observation()).target, robot.at)
    assert guard.apply(np.array([1.0, 0, 0]), robot.get_observation()).target[0] <= 0.19 + 1e-9
    robot.clock.sleep_until(1.0)
    assert guard.apply(np.array([-1.0, 0, 0]), robot.get_observation()).target[0] < 0.175
    robot.at[0] = 0.5
    assert "axis x is at 0.500 m" in guard.out_of_control(robot.get_observation())


def _refused(tmp_path: Path, robot: _Still, kind: type[PixioError], words: str) -> None:
    for sends in (lambda safe: safe.hold(), lambda safe: safe.send_action(np.zeros(3))):
        before = robot.stops
        with pytest.raises(kind, match=words):
            sends(SafeRobot(robot, _free(JOINTS), PERIOD, EmergencyStop(tmp_path / "estop.json")))
        assert not robot.sent and robot.stops == before + 1


def test_a_joint_outside_its_range_is_refused_instead_of_jumping(tmp_path: Path) -> None:
    """An absolute action reaches no further than the range, so that even a hold would be a jump."""
    robot = _Still(JOINTS)
    robot.at[0] = -1.5 - 0.05 * 3
    _refused(tmp_path, robot, RobotError, r"shoulder is at -1.650 rad.*-1.500.*bring shoulder inside its range by hand")
    robot.at[0] = -1.5 - 0.95 * 3
    _refused(tmp_path, robot, OutOfControl, r"axis shoulder is at -4.350 rad, its limits are -1.5 to 1.5")
    robot.at[0] = -1.55
    SafeRobot(robot, _free(JOINTS), PERIOD, EmergencyStop(tmp_path / "estop.json")).hold()
    assert robot.at[0] == -1.5, "as far as a command may go"


@pytest.mark.parametrize("axis", ["set_point", "positions"])
def test_an_unknown_joint_position_is_refused(axis: str, tmp_path: Path) -> None:
    class UnknownPosition(_Still):
        def get_observation(self) -> dict[str, np.ndarray]:
            return super().get_observation() | {axis: np.array([0.0, np.nan, 0.0])}

    _refused(tmp_path, UnknownPosition(JOINTS), RobotError, "the position of axis elbow is unknown")


def test_action_specs_of_tasks_predict_their_targets() -> None:
    for name in ("toy/reach", "metaworld/drawer-open"):
        if name.startswith("metaworld"):
            pytest.importorskip("metaworld")
        env = make(name, observe=("proprio",))
        env.reset(seed=1)
        commands, rng = env.task.action_spec(), np.random.default_rng(0)
        for _ in range(5):
            action = rng.uniform(-0.3, 0.3, env.task.action_dim).astype(np.float32)
            target = commands.target(action, env.task.set_point())
            env.step(action)
            known = commands.relative
            np.testing.assert_allclose(env.task.set_point()[known], target[known], atol=1e-6)
        positions = env.task.measured()[known]
        np.testing.assert_allclose(positions, env.task.set_point()[known], atol=0.05)
        env.close()


def test_the_emergency_stop_latches_until_reset(tmp_path: Path) -> None:
    robot, stop = _Still(REACH), EmergencyStop(tmp_path / "estop.json")
    safe = SafeRobot(robot, _free(REACH), PERIOD, stop)
    safe.send_action(np.zeros(3))
    stop.trigger("the red button")
    stop.trigger("later")
    for _ in range(2):
        with pytest.raises(EmergencyStopped, match=r"the red button.*estop_reset=true"):
            safe.send_action(np.zeros(3))
    assert len(robot.sent) == 1 and robot.stops == 2
    with pytest.raises(EmergencyStopped):
        SafeRobot(robot, _free(REACH), PERIOD, EmergencyStop(tmp_path / "estop.json")).connect()
    assert "the red button" in stop.reset()
    safe.send_action(np.zeros(3))
    (tmp_path / "estop.json").touch()  # by hand, from another program
    with pytest.raises(EmergencyStopped, match="by hand"):
        safe.hold()


def test_the_emergency_stop_file_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop = EmergencyStop(Path("runs/estop.json"))
    monkeypatch.chdir("/")
    (tmp_path / "runs/estop.json").touch()
    assert stop.latched and str(tmp_path / "runs/estop.json") in str(stop.path)


def test_a_lost_terminal_requests_a_stop_unless_sighup_is_ignored() -> None:
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGHUP)
        assert stopping.asked
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert not stopping.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_rate_is_kept_and_missed_ticks_are_not_caught_up() -> None:
    clock = SteppedClock()
    beat = Rate(clock, 0.1)
    times = []
    for number in range(8):
        beat.tick()
        times.append(round(clock.now(), 6))
        clock.sleep_until(clock.now() + (0.37 if number == 2 else 0.13 if number == 5 else 0.02))
    assert times == [0.0, 0.1, 0.2, 0.57, 0.67, 0.77, 0.9, 0.97]  # a new beat after 0.57; one late tick at 0.9
    assert (beat.ticks, beat.misses, beat.resyncs) == (8, 2, 1)


def test_the_wall_clock_waits() -> None:
    clock = WallClock()
    beat = Rate(clock, 0.01)
    begin = clock.now()
    for _ in range(6):
        beat.tick()
    assert 0.05 <= clock.now() - begin < 2


def test_interpolation_is_linear_and_parts_add_up() -> None:
    ways = Interpolation(JOINTS, 4)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 3)).astype(np.float32)
    last = None
    for action in actions:
        ways.aim(action)
        sent = [each for _ in range(4) if (each := ways.next()) is not None]
        assert ways.next() is None
        np.testing.assert_allclose(ways.whole(sent), action, atol=1e-6)
        begin = action if last is None else last
        np.testing.assert_allclose(
            np.array(sent)[:, :2], [begin[:2] + (part + 1) / 4 * (action - begin)[:2] for part in range(4)], atol=1e-6
        )
        last = action


def test_interpolation_continues_after_a_nan_action() -> None:
    ways, sent = Interpolation(JOINTS, 2), []
    for action in ([np.nan] * 3, [0.0] * 3, [np.nan] * 3, [0.2] * 3):
        ways.aim(np.array(action, np.float32))
        sent.append([float(each[0]) for _ in range(2) if (each := ways.next()) is not None])
    np.testing.assert_allclose(sent, [[np.nan] * 2, [0, 0], [np.nan] * 2, [0.1, 0.2]], atol=1e-6)


def test_an_inference_thread_takes_one_request_and_returns_errors() -> None:
    class Odd:
        def reset(self) -> None:
            self.count = 0

        def act(self, observation: Any) -> np.ndarray:
            self.count += 1
            if "break" in observation:
                raise ValueError("broken")
            return np.full((1, 2), self.count, np.float32)

    thread = InferenceThread(Odd(), delay=lambda: 0.05)
    first = InferenceRequest({}, 0, 0.0, True)
    assert thread.submit(first) and not thread.submit(first), "busy"
    assert thread.poll() is None and thread.wait_idle(5.0)
    result = thread.poll()
    assert result is not None and result.actions[0, 0] == 1 and result.seconds > 0.05
    assert thread.submit(InferenceRequest({"break": np.zeros(1)}, 1, 0.0, False)) and thread.wait_idle(5.0)
    broken = thread.poll()
    assert broken is not None and isinstance(broken.error, ValueError) and thread.poll() is None
    thread.close()


# what does not fit


def _manifest(**changes: Any) -> Manifest:
    observation = [TensorSpec("rgb", (64, 64, 3), "uint8"), TensorSpec("proprio", (3,), "float32")]
    known: dict[str, Any] = dict(kind="policy", target="onnx", precision="fp32", program="program.onnx")
    known |= dict(observation=observation, outputs=[TensorSpec("action", (1, 3), "float32")])
    known |= dict(image_size=64, control_period=PERIOD, action_low=[-1.0] * 3, action_high=[1.0] * 3)
    return Manifest(**{**known, **changes})


def test_check_fit_refuses_with_a_clear_message() -> None:
    robot = RobotSpec("arm", "test", REACH, 3, 20.0)
    camera = CameraSpec("cam", "test", True, (48, 64), None, 30.0)
    assert check_fit(_manifest(), robot, {"rgb": camera}, 20.0) == 1
    assert check_fit(_manifest(), replace(robot, control_hz=None), {"rgb": camera}, 100.0) == 5
    rgb = _manifest().observation[:1]
    for manifest, spec, rate, words in (
        (
            _manifest(action_low=[-1.0] * 4, action_high=[1.0] * 4),
            robot,
            20.0,
            r"actions have size 4, arm takes 3 \(x, y",
        ),
        (
            _manifest(outputs=[TensorSpec("action", (1, 4), "float32")]),
            robot,
            20.0,
            r"actions have size 4, arm takes 3 \(x, y",
        ),
        (_manifest(action_names=["z", "y", "x"]), robot, 20.0, "actions are z, y, x, arm takes x, y, z"),
        (_manifest(action_high=[1.0, 1.5, 1.0]), robot, 20.0, "on axis y are -1 to 1.5, arm takes -1 to 1"),
        (_manifest(kind="encoder"), robot, 20.0, "encoder alone"),
        (_manifest(), replace(robot, proprio=7), 20.0, "expects proprioception of size 3, arm provides 7"),
        (
            _manifest(observation=[*rgb, TensorSpec("rgb_wrist", (64, 64, 3), "uint8")]),
            robot,
            20.0,
            "observes 'rgb_wrist'",
        ),
        (
            _manifest(observation=[TensorSpec("depth", (64, 64), "float32")]),
            robot,
            20.0,
            r"observes depth \(depth\), which cam does not",
        ),
        (_manifest(), robot, 50.0, "arm takes 20 commands a second, not rate=50"),
        (_manifest(control_period=0.0125), robot, 20.0, "a step every 12.5 ms, commands are sent every 50 ms"),
        (_manifest(), replace(robot, control_hz=None), 33.0, "multiple of it"),
    ):
        with pytest.raises(BadInput, match=words):
            check_fit(manifest, spec, {"rgb": camera}, rate)


def test_actions_with_another_meaning_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    robot = RobotSpec("arm", "test", REACH, 3, 20.0)
    camera = CameraSpec("cam", "test", True, (48, 64), None, 30.0)
    check_fit(_manifest(action_meanings=REACH.meanings), robot, {"rgb": camera}, 20.0)
    assert not caplog.records
    check_fit(_manifest(action_meanings=["0.5 + 1 a rad", *REACH.meanings[1:]]), robot, {"rgb": camera}, 20.0)
    assert f"x: {REACH.meanings[0]}, was 0.5 + 1 a rad" in caplog.text and "; " not in caplog.text


def test_limits_from_a_file_only_narrow(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    asked: dict[str, Any] = {"position": {"x": [-0.1, 9]}, "velocity": {"y": 0.2}, "step": {"z": 0.01}}
    path.write_text(json.dumps(asked | {"workspace": [[-1, -1, 0], [1, 1, 1]]}))
    narrow = Limits.of(REACH).narrowed(path, REACH)
    assert narrow.low.tolist() == [-0.1, -0.2, -0.2] and narrow.high.tolist() == [0.2] * 3
    assert narrow.velocity[1] == 0.2 and narrow.step[2] == 0.01 and narrow.workspace is not None
    narrow.check(REACH, "arm", True)
    with pytest.raises(BadInput, match="does not know its end-effector position"):
        narrow.check(REACH, "arm", False)
    free = REACH._replace(high=np.array([0.2, np.inf, 0.2]))
    with pytest.raises(BadInput, match=r"arm has no position limit for axis 'y' \[m\].*limits=FILE"):
        Limits.of(free).check(free, "arm", True)
    for text, kind, words in (
        ("{", DataError, "not JSON"),
        ('{"position": {"w": [0, 1]}}', UnknownName, "no axis 'w'"),
        ('{"speed": {"x": 1}}', UnknownName, "no limit 'speed'"),
        ('{"position": {"x": 3}}', DataError, "not a number or pair"),
        ('{"workspace": [1, 2]}', DataError, "workspace"),
        ('{"workspace": [[0, 0, NaN], [1, 1, 1]]}', DataError, "workspace"),
        ('{"velocity": {"x": NaN}}', DataError, "nan limits nothing"),
        ('{"position": {"x": [-Infinity, 0.1]}}', DataError, "-inf limits nothing"),
        ("[]", DataError, "holds no limits"),
    ):
        path.write_text(text)
        with pytest.raises(kind, match=words):
            Limits.of(REACH).narrowed(path, REACH)
    with pytest.raises(DataError, match="no limits at"):
        Limits.of(REACH).narrowed(tmp_path / "absent.json", REACH)
    path.write_text('{"position": {"x": [0.3, 0.4]}}')
    with pytest.raises(BadInput, match="leave no room"):
        Limits.of(REACH).narrowed(path, REACH).check(REACH, "arm", True)


def test_an_unknown_robot_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match=r"drivers are ros, task.*; did you mean 'task'"):
        find_robot("tusk:toy/reach")
    with pytest.raises(UnknownName, match="robot=task:toy/reach"):
        find_robot("toy/reach")
    with pytest.raises(UnknownName, match="did you mean 'toy/reach'"):
        find_robot("task:toy/raech")
    entries = {
        "still": metadata.EntryPoint("still", f"{__name__}:_Third", "pixio_robot.robots"),
        "broken": metadata.EntryPoint("broken", "no_such_module:Robot", "pixio_robot.robots"),
    }
    monkeypatch.setattr(plugins, "_entries", lambda group: entries)
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda entry: _load(entry))
    assert isinstance(find_robot("still:left"), _Third)
    with pytest.raises(PixioError, match=r"'broken' \(no_such_module:Robot\) cannot be imported"):
        find_robot("broken:x")
    with pytest.raises(UnknownName, match="drivers are broken, still"):
        find_robot("task:toy/reach")


class _Third(_Still):
    def __init__(self, name: str, request: RobotRequest) -> None:
        super().__init__(REACH)
        assert name == "left"


def _load(entry: metadata.EntryPoint) -> Any:
    if entry.name == "broken":
        raise ModuleNotFoundError("No module named 'no_such_module'")
    return _Third


def test_faults_are_parsed() -> None:
    assert Fault.parse("late@0:0.5") == Fault("late", 0, 0.5, 0.5)
    assert Fault.parse("stall.rgb_wrist@0:1:2") == Fault("stall", 0, 1.0, 2.0, "rgb_wrist")
    with pytest.raises(UnknownName, match="no fault 'stal'; did you mean 'stall'"):
        Fault.parse("stal@0:1")
    with pytest.raises(BadInput, match="is not KIND@EPISODE:TIME"):
        Fault.parse("stall:1")
    with pytest.raises(BadInput, match="only a stall has a camera"):
        Fault.parse("nan.rgb@0:1")


def test_robots_need_no_torch() -> None:
    code = (
        "import sys, pixio_robot.robots.drive, pixio_robot.robots.ros, pixio_robot.deploy.runtime\n"
        "heavy = {'torch', 'matplotlib', 'hydra', 'rclpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def test_actions_in_the_units_of_the_data_are_targets() -> None:
    robot = RobotSpec("arm", "test", ARM, 3, 20.0)
    camera = {"rgb": CameraSpec("cam", "test", True, (48, 64), None, 30.0)}
    fits = _manifest(action_low=[-2.5, 0.0, -1.0], action_high=[2.5, 2.0, 1.0])
    assert check_fit(fits, robot, camera, 20.0) == 1
    assert check_fit(_manifest(action_low=[], action_high=[]), robot, camera, 20.0) == 1, "the data does not say"
    with pytest.raises(BadInput, match=r"on axis shoulder are -1 to 1, arm takes 0 to 2"):
        check_fit(_manifest(), robot, camera, 20.0)
    target = np.array([2.25, 1.5, -0.75])
    assert np.array_equal(ARM.target(target, np.zeros(3)), target) and np.array_equal(
        ARM.action(target, target), target
    )
    assert ARM.clip(np.array([9.0, -9.0, 0.5])).tolist() == [2.5, 0.0, 0.5]
    assert ARM.meanings[0] == "0 + 1 a rad"
