"""The interface of a robot: connect, observe, send an action and get what was really sent, disconnect.

The method names are LeRobot's; values are arrays instead of one float per name. Shapes: P
proprioception, A action, S state.
"""

import abc
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..cameras.camera import Camera
from ..envs.action_spec import ActionSpec
from ..envs.registry import TaskSpec
from ..errors import BadInput
from .clock import Clock, WallClock


@dataclass(frozen=True)
class RobotRequest:
    """What is requested of a robot; each driver uses what concerns it."""

    stepped: bool = False  # simulated time advances only with actions, as fast as possible
    depth: bool = True  # of the robot's cameras
    image_size: int = 256  # side of its cameras' images [px]
    render: str = "fast"  # quality of simulated images
    depth_sensor: str = "d435"  # simulated depth sensor
    horizon: int | None = None  # steps of a simulated episode; None is the task's own
    cameras: tuple[str, ...] = ("",)  # cameras of the robot that are used; "" is its first one


@dataclass(frozen=True)
class RobotSpec:
    """A connected robot's description."""

    name: str  # for people
    driver: str
    commands: ActionSpec  # what an action does
    proprio: int  # P
    control_hz: float | None = None  # required rate of commands [1/s]; None takes any
    resets: bool = False  # whether it resets the scene and reports success, as simulators do
    cameras: tuple[str, ...] = ()  # its own, for camera=robot and camera=robot:NAME
    details: dict[str, Any] = field(default_factory=dict)


class Outcome(NamedTuple):
    """The result of the last step, if known."""

    reward: float
    success: bool
    ended: bool  # the episode has ended
    score: float  # of the episode if it ended here, 0 to 100


class Robot(abc.ABC):
    """A robot. Use it from one thread, as a context manager.

    A robot sends any action within its own limits; `SafeRobot` wraps it and checks everything.
    """

    uncommanded_steps = 0  # steps without a command, of a robot that continues by itself
    clock: Clock = WallClock()  # of its observations and its cameras' frames
    _spec: RobotSpec | None = None  # what `spec` gives, from `connect` on

    @abc.abstractmethod
    def connect(self) -> None:
        """Connect to the robot; it must not move.

        Raises:
            RobotError: if it cannot be reached, with what to do.
        """

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Stop the robot and release it; does nothing if it is not connected."""

    @property
    def spec(self) -> RobotSpec:
        """Its description; it must be connected, which sets `_spec`."""
        if self._spec is None:
            raise BadInput("the robot is not connected")
        return self._spec

    @property
    def observation_features(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of an observation."""
        axes = (len(self.spec.commands.names),)
        return {"proprio": (self.spec.proprio,), "set_point": axes, "positions": axes}

    @property
    def action_features(self) -> dict[str, type]:
        """Return the axes of an action, in their order."""
        return dict.fromkeys(self.spec.commands.names, float)

    @abc.abstractmethod
    def get_observation(self) -> dict[str, np.ndarray]:
        """Return ``proprio`` (P,) float32, proprioception for policies; ``set_point`` (A,), the present targets;
        ``positions`` (A,), the measured positions, NaN where unknown; both in the units of `spec.commands`.

        Raises:
            RobotError: if the robot does not answer, or its last state is too old.
        """

    @abc.abstractmethod
    def send_action(self, action: np.ndarray) -> np.ndarray:
        """Send an action (A,), as `spec.commands` takes it, and return what was really sent, (A,) float32."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop moving now, by any means the robot has; sends no action of a policy."""

    def reset(self, seed: int) -> str:
        """Start an episode and return the hash of its initial state; "" for a robot that does not reset itself."""
        return ""

    def outcome(self) -> Outcome | None:
        """Return the result of the last step; None if unknown."""
        return None

    def task_spec(self) -> TaskSpec | None:
        """Return how to make the simulated task again; None for a real robot."""
        return None

    def state(self) -> np.ndarray:
        """Return the full state, (S,) float64; for recordings."""
        return self.get_observation()["proprio"].astype(np.float64)

    def hand_at(self, target: np.ndarray) -> np.ndarray | None:
        """Return the end-effector position at targets (A,), (3,) [m]; None if unknown."""
        known = self.spec.commands.end_effector
        return None if known is None else np.asarray(known) + target[:3]

    def camera(self, name: str = "") -> Camera:
        """Return one of the robot's cameras; without a name the first one.

        Raises:
            BadInput: if it has no camera of that name.
        """
        raise BadInput(f"{self.spec.name} has no camera; give camera=realsense or another source")

    def __enter__(self) -> "Robot":
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disconnect()
