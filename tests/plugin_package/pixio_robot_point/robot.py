import numpy as np

from pixio_robot.envs.action_spec import ActionSpec
from pixio_robot.robots.robot import Robot, RobotRequest, RobotSpec

LIMIT = np.array([0.5, 0.5])  # [m]


class Stage(Robot):
    """A stage with two axes, as two numbers; a driver calls the library of its robot instead."""

    def __init__(self, name: str, request: RobotRequest) -> None:
        self._position = np.zeros(2)  # [m]

    def connect(self) -> None:
        # an action of 1 moves the target by 1 cm
        commands = ActionSpec.of(("x", "y"), "m", scale=0.01, low=-LIMIT, high=LIMIT, speed=0.5)
        self._spec = RobotSpec("stage", "stage", commands, proprio=2, control_hz=10.0)

    def disconnect(self) -> None:
        self._spec = None

    def get_observation(self) -> dict[str, np.ndarray]:
        at = self._position.copy()
        return {"proprio": at.astype(np.float32), "set_point": at, "positions": at}

    def send_action(self, action: np.ndarray) -> np.ndarray:
        sent = self.spec.commands.clip(action)
        self._position = np.clip(self.spec.commands.target(sent, self._position), -LIMIT, LIMIT)
        return sent

    def stop(self) -> None:
        """Nothing to do: it does not move between actions."""
