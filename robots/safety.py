"""The safety filter: whatever a policy asks, what is sent stays within limits. It is independent of the policy.

Shapes: A action.
"""

from typing import Any, NamedTuple

import numpy as np

from ..cameras.camera import Camera
from ..envs.action_spec import ActionSpec
from ..errors import OutOfControl, RobotError
from .clock import Clock
from .emergency import EmergencyStop
from .limits import Limits
from .robot import Outcome, Robot, RobotSpec

_HALVINGS = 20  # bisections of a step that would leave the workspace
_MARGIN = 0.1  # share of its range by which an axis may exceed a limit before it is out of control
_GRAIN = 1e-6  # rounding that does not count as exceeding a limit, as a share of an action of 1


class Decision(NamedTuple):
    """What may be sent, and why it differs from the requested action."""

    action: np.ndarray  # (A,) float32, as the `ActionSpec` takes it
    target: np.ndarray  # (A,) in the axes' units
    reasons: tuple[str, ...]  # among nan, range, position, step, velocity, workspace, hold


class SafetyFilter:
    """Enforces limits on targets, command by command. An action within all limits passes unchanged, bit for bit.

    Args:
        commands: what an action does.
        limits: of its targets.
        period: time between two commands [s]. An earlier command may move less far, a later one not further.
        clock: of the robot.
        hand_at: end-effector position at targets; needed for a workspace.
    """

    def __init__(self, commands: ActionSpec, limits: Limits, period: float, clock: Clock, hand_at: Any = None) -> None:
        self._commands, self._limits, self._hand_at = commands, limits, hand_at
        self._clock, self._period = clock, period
        self._last: np.ndarray | None = None  # targets of the last command
        self._at = -np.inf  # when that was [s]
        self._placed = ~commands.relative & (np.array(commands.units) != "1")  # axes that are sent to positions

    def reset(self) -> None:
        """Forget the last command: something else moved the robot."""
        self._last, self._at = None, -np.inf

    def apply(self, asked: np.ndarray, observation: dict[str, np.ndarray]) -> Decision:
        """Return what may be sent for a requested action (A,); a non-finite action becomes a hold.

        Args:
            observation: of the robot, now.

        Raises:
            OutOfControl: if an axis is far beyond its limits.
            RobotError: if the present position is unknown, or the first command would jump.
        """
        self._check(observation)
        asked = np.asarray(asked, np.float32)
        if asked.shape != self._commands.scale.shape or not np.isfinite(asked).all():
            return self._hold(observation, "nan")
        reasons = []
        action = self._commands.clip(asked)
        if not np.array_equal(action, asked):
            reasons.append("range")
        set_point = observation["set_point"]
        target = self._commands.target(action, set_point)
        begin = self._begin(observation)
        grain = _GRAIN * self._commands.scale
        unlimited = target
        low, high = np.minimum(self._limits.low, begin), np.maximum(self._limits.high, begin)
        target = np.clip(target, low, high)  # from outside, no motion by itself, and none further out
        if (np.abs(target - unlimited) > grain).any():
            reasons.append("position")
        change = target - begin
        drive = self._limits.velocity * min(self._period, max(1e-9, self._clock.now() - self._at))
        slower = drive < self._limits.step
        stride = np.minimum(drive, self._limits.step)
        short = np.clip(change, -stride, stride)
        cut = np.abs(change - short) > grain
        if cut.any():
            kinds = (("step", ~slower), ("velocity", slower))
            reasons += [name for name, mine in kinds if (cut & mine).any()]
        target = begin + short
        inside = self._within_workspace(begin, target)
        if inside is not target:
            reasons.append("workspace")
            target = inside
        if set(reasons) - {"range"}:
            action = self._commands.action(target, set_point)
        return self._decided(action, observation, tuple(reasons))

    def hold(self, observation: dict[str, np.ndarray]) -> Decision:
        """Return the command that changes nothing: efforts are 0, everything else keeps its target.

        Raises:
            OutOfControl, RobotError: as `apply` does.
        """
        self._check(observation)
        return self._hold(observation, "hold")

    def _hold(self, observation: dict[str, np.ndarray], reason: str) -> Decision:
        commands, set_point = self._commands, observation["set_point"]
        held = np.where(commands.relative, set_point, self._begin(observation))
        return self._decided(commands.action(held, set_point), observation, (reason,))

    def _decided(self, action: np.ndarray, observation: dict[str, np.ndarray], reasons: tuple[str, ...]) -> Decision:
        target = self._commands.target(action, observation["set_point"])
        if self._last is None:
            self._check_first(target, observation)
        self._last, self._at = target, self._clock.now()
        return Decision(action, target, reasons)

    def _check(self, observation: dict[str, np.ndarray]) -> None:
        """Refuse unknown positions, since every comparison with NaN is false."""
        unknown = ~np.isfinite(observation["set_point"])
        if self._last is None:
            unknown |= self._placed & ~np.isfinite(observation["positions"])
        if unknown.any():
            name = self._commands.names[int(np.flatnonzero(unknown)[0])]
            raise RobotError(f"the position of axis {name} is unknown, so nothing is sent; check its sensors")
        if words := self.out_of_control(observation):
            raise OutOfControl(f"the robot is out of control: {words}")

    def _check_first(self, target: np.ndarray, observation: dict[str, np.ndarray]) -> None:
        """Refuse a first command that would jump, because the axis is outside the range of its actions."""
        jump = np.abs(target - self._begin(observation))
        stride = np.minimum(self._limits.velocity * self._period, self._limits.step)
        if (far := self._placed & (jump > stride + _GRAIN * self._commands.scale)).any():
            at = int(np.flatnonzero(far)[0])
            name, unit = self._commands.names[at], self._commands.units[at]
            raise RobotError(
                f"axis {name} is at {observation['positions'][at]:.3f} {unit}, and the nearest position that it can be "
                f"sent to, {target[at]:.3f}, is further than one command may move it ({stride[at]:.3g} {unit}); bring "
                f"{name} inside its range by hand"
            )

    def out_of_control(self, observation: dict[str, np.ndarray]) -> str:
        """Return which axis is far beyond its limits, as text; "" if none is."""
        room = _MARGIN * (self._limits.high - self._limits.low)
        found = observation["positions"]
        with np.errstate(invalid="ignore"):
            beyond = (found < self._limits.low - room) | (found > self._limits.high + room)
        if not beyond.any():
            return ""
        at = int(np.flatnonzero(beyond)[0])
        name, unit = self._commands.names[at], self._commands.units[at]
        low, high = self._limits.low[at], self._limits.high[at]
        return f"axis {name} is at {found[at]:.3f} {unit}, its limits are {low:g} to {high:g}"

    def _begin(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Return the targets that a step starts from: present, last sent, or measured."""
        set_point, positions = observation["set_point"], observation["positions"]
        last = self._last
        if last is None:
            last = np.where(np.isfinite(positions), positions, self._commands.offset)
        return np.where(self._commands.relative, set_point, last)

    def _within_workspace(self, begin: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the target, or the farthest point towards it at which the end effector is not further outside."""
        if self._limits.workspace is None:
            return target
        allowed = self._outside(begin) + 1e-9
        if self._outside(target) <= allowed:
            return target
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._outside(begin + middle * (target - begin)) <= allowed else (low, middle)
        return begin + low * (target - begin)

    def _outside(self, target: np.ndarray) -> float:
        """Return how far the end effector is outside the box [m]; 0 inside."""
        assert self._limits.workspace is not None
        low, high = self._limits.workspace
        hand = self._hand_at(target)
        return float(np.maximum(np.maximum(low - hand, hand - high), 0).max())


class SafeRobot(Robot):
    """A robot behind the safety filter and the emergency stop. The requested and the sent action may differ.

    Args:
        robot: connected.
        limits: within which it moves; the robot must be connected.
        period: time between two commands [s].
        emergency: the latch.
    """

    def __init__(self, robot: Robot, limits: Limits, period: float, emergency: EmergencyStop) -> None:
        limits.check(robot.spec.commands, robot.spec.name, robot.hand_at(limits.low) is not None)
        self.robot, self.limits, self.emergency, self.clock = robot, limits, emergency, robot.clock
        self.filter = SafetyFilter(robot.spec.commands, limits, period, robot.clock, robot.hand_at)
        self.reasons: tuple[str, ...] = ()  # why the last action that was sent is not the requested one

    @property
    def spec(self) -> RobotSpec:
        return self.robot.spec

    @property
    def uncommanded_steps(self) -> int:  # type: ignore[override]
        return self.robot.uncommanded_steps

    def connect(self) -> None:
        self.emergency.check()
        self.robot.connect()

    def disconnect(self) -> None:
        self.robot.disconnect()

    def get_observation(self) -> dict[str, np.ndarray]:
        return self.robot.get_observation()

    def send_action(self, action: np.ndarray) -> np.ndarray:
        """Send an action (A,) within the limits; return what the robot really sent.

        Raises:
            EmergencyStopped: if the stop is latched. The robot is stopped before any of these is raised.
            OutOfControl: if an axis is far beyond its limits.
            RobotError: if a position is unknown, or the first command would jump.
        """
        return self._send(action)

    def hold(self) -> np.ndarray:
        """Keep the present targets; return what was sent."""
        return self._send(None)

    def _send(self, action: np.ndarray | None) -> np.ndarray:
        try:
            self.emergency.check()
            observation = self.robot.get_observation()
            decision = self.filter.hold(observation) if action is None else self.filter.apply(action, observation)
        except RobotError:
            self.robot.stop()
            raise
        self.reasons = decision.reasons
        sent = self.robot.send_action(decision.action)
        if not np.array_equal(sent, decision.action):
            self.reasons += ("robot",)
        return sent

    def stop(self) -> None:
        self.robot.stop()

    def reset(self, seed: int) -> str:
        self.emergency.check()
        start = self.robot.reset(seed)
        self.filter.reset()
        return start

    def outcome(self) -> Outcome | None:
        return self.robot.outcome()

    def state(self) -> np.ndarray:
        return self.robot.state()

    def hand_at(self, target: np.ndarray) -> np.ndarray | None:
        return self.robot.hand_at(target)

    def camera(self, name: str = "") -> Camera:
        return self.robot.camera(name)
