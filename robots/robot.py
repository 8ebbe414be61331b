"""What a robot is to the rest: connect, observe, send an action, learn what was really sent, disconnect.

The names are those that users of LeRobot know; values are arrays rather than one float a name. Shapes: P
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
    """What is asked of a robot; each driver takes what concerns it."""

    stepped: bool = False  # simulated time goes on only with actions, as fast as the machine can
    depth: bool = True  # of its cameras, where it has some
    image_size: int = 256  # side of its cameras' images [px]
    render: str = "fast"  # quality of simulated images
    depth_sensor: str = "d435"  # what simulated depth is measured with
    horizon: int | None = None  # steps of a simulated episode; None is the task's own
    cameras: tuple[str, ...] = ("",)  # of its own that are used; "" is its first one


@dataclass(frozen=True)
class RobotSpec:
    """What a robot says of itself once it is connected."""

    name: str  # what a person would call it
    driver: str
    commands: ActionSpec  # what an action does
    proprio: int  # P
    control_hz: float | None = None  # rate of commands that it is made for [1/s]; None takes any
    resets: bool = False  # whether it puts the scene back by itself and knows success: simulators do
    cameras: tuple[str, ...] = ()  # its own, for camera=robot and camera=robot:NAME
    details: dict[str, Any] = field(default_factory=dict)


class Outcome(NamedTuple):
    """What the last step came to, where somebody knows."""

    reward: float
    success: bool
    over: bool  # the episode
    score: float  # what it would count for if it ended here, 0 to 100


class Robot(abc.ABC):
    """A robot. One thread talks to it. Use it as a context manager.

    A robot sends what it is told within its own limits; `SafeRobot` stands before it and checks everything.
    """

    uncommanded_steps = 0  # steps that a robot which goes on by itself made without a command
    clock: Clock = WallClock()  # the time that its observations and its cameras' frames have
    _spec: RobotSpec | None = None  # what `spec` gives, from `connect` on

    @abc.abstractmethod
    def connect(self) -> None:
        """Reach the robot; it must not move by this.

        Raises:
            RobotError: if it is not there, with what to do.
        """

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Let the robot stand still and release it; harmless when it is not connected."""

    @property
    def spec(self) -> RobotSpec:
        """What it says of itself; it must be connected, which sets `_spec`."""
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
        """Return ``proprio`` (P,) float32, what policies feel; ``set_point`` (A,), the targets in force; ``positions``
        (A,), where the axes really are, NaN where that is not known; both in the units of `spec.commands`.

        Raises:
            RobotError: if the robot gives no answer, or only an old one.
        """

    @abc.abstractmethod
    def send_action(self, action: np.ndarray) -> np.ndarray:
        """Send an action (A,) in [-1, 1] and return what was really sent, (A,) float32."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stand still now, with whatever means the robot has; sends no action of a policy."""

    def reset(self, seed: int) -> str:
        """Begin an episode and return what names its start; a robot that does not reset itself begins where it is."""
        return ""

    def outcome(self) -> Outcome | None:
        """Return what the last step came to; None where nobody knows."""
        return None

    def task_spec(self) -> TaskSpec | None:
        """Return how to make the simulated task again; None for a real robot."""
        return None

    def state(self) -> np.ndarray:
        """Return what tells states apart, (S,) float64."""
        return self.get_observation()["proprio"].astype(np.float64)

    def hand_at(self, target: np.ndarray) -> np.ndarray | None:
        """Return where the hand is at targets (A,), (3,) [m]; None for a robot that does not know."""
        known = self.spec.commands.end_effector
        return None if known is None else np.asarray(known) + target[:3]

    def camera(self, name: str = "") -> Camera:
        """Return one of its own cameras, its first where no name is given.

        Raises:
            BadInput: if it has none of that name.
        """
        raise BadInput(f"{self.spec.name} has no camera of its own; name one with camera=realsense or another source")

    def __enter__(self) -> "Robot":
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.disconnect()
