"""From one string to a robot: ``task:SUITE/TASK[@CAMERA]`` (simulated), ``ros:FILE`` (ROS 2 topics).

Other packages add robots with entry points in the group ``pixio_robot.robots``: NAME = "module:Class", a `Robot` that
is made with the text after the colon and a `RobotRequest`.
"""

import importlib
from collections.abc import Callable
from importlib import metadata

from ..errors import PixioError, UnknownName, closest
from .robot import Robot, RobotRequest

GROUP = "pixio_robot.robots"
Maker = Callable[[str, RobotRequest], Robot]
_OURS = {"task": "simulated:TaskRobot", "ros": "ros:RosRobot"}


def drivers() -> list[str]:
    """Return the names of all drivers, ours and those of installed packages."""
    return sorted({*_OURS, *(entry.name for entry in metadata.entry_points(group=GROUP))})


def find_robot(name: str, request: RobotRequest = RobotRequest()) -> Robot:
    """Return the robot that a string names, not connected yet.

    Raises:
        UnknownName: if there is no such driver or task.
        MissingExtra: if a driver's package is not installed.
    """
    driver, _, argument = name.partition(":")
    known = drivers()
    if driver not in known:
        from ..envs.registry import tasks

        hint = f"; for the simulated task write robot=task:{name}" if name in tasks() else closest(driver, known)
        raise UnknownName(
            f"no robot {name!r}: drivers are {', '.join(known)}, e.g. task:toy/reach or ros:arm.json{hint}"
        )
    return _maker(driver)(argument, request)


def _maker(driver: str) -> Maker:
    for entry in metadata.entry_points(group=GROUP):
        if entry.name == driver and driver not in _OURS:
            try:
                return entry.load()
            except Exception as error:  # another package's code
                raise PixioError(f"the robot driver {driver!r} of {entry.value} does not load: {error}") from error
    module, _, name = _OURS[driver].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)
