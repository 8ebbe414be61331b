"""From one string to a robot: ``task:SUITE/TASK[@CAMERA]`` (simulated), ``ros:FILE`` (ROS 2 topics).

Robots are plug-ins: entry points ``NAME = "module:Class"`` in the group ``pixio_robot.robots``. The class is a `Robot`
that is made with the text after the colon and a `RobotRequest`.
"""

from ..errors import UnknownName, closest
from ..plugins import find_plugin, plugin_names
from .robot import Robot, RobotRequest


def find_robot(name: str, request: RobotRequest = RobotRequest()) -> Robot:
    """Return the robot that a string names, not connected yet.

    Raises:
        UnknownName: if there is no such driver or task.
        MissingExtra: if a driver's package is not installed.
    """
    driver, _, argument = name.partition(":")
    known = plugin_names("robots")
    if driver not in known:
        from ..envs.registry import tasks

        hint = f"; for the simulated task write robot=task:{name}" if name in tasks() else closest(driver, known)
        raise UnknownName(
            f"no robot {name!r}: drivers are {', '.join(known)}, e.g. task:toy/reach or ros:arm.json{hint}"
        )
    robot: Robot = find_plugin("robots", driver)(argument, request)
    return robot
