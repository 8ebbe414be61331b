"""Finds the camera that a string names: a driver, a file or folder recognised by its content, or a simulated task.

``realsense[:SERIAL]``, ``opencv:INDEX-or-file``, ``oak[:ID]``, ``task:SUITE/TASK[@CAMERA]``, ``DRIVER:PATH``, or a
path. A driver is an entry point in the group ``pixio_robot.cameras``: NAME = "module:Class", where the class is a
`Camera` that is made with the text after the colon and a `CameraRequest`. Other packages add drivers in the same way.
"""

import logging
from pathlib import Path

from ..errors import BadInput, DataError, PixioError, UnknownName, closest
from ..plugins import find_plugin, plugin_names
from .camera import Camera, CameraRequest
from .intrinsics_file import read_intrinsics

log = logging.getLogger(__name__)

_EXAMPLES = "e.g. realsense, opencv:0, task:toy/reach"


def drivers() -> list[str]:
    """Return the names of all drivers, sorted: the built-in ones and those of installed packages."""
    return plugin_names("cameras")


def find_driver(name: str) -> type[Camera]:
    """Return the class of a driver.

    Raises:
        UnknownName: if there is no such driver.
        PixioError: if its module cannot be imported, or it is no `Camera`.
    """
    found = find_plugin("cameras", name)
    if not (isinstance(found, type) and issubclass(found, Camera)):
        raise PixioError(f"the camera driver {name!r} is {found!r:.80}; it must be a subclass of Camera")
    return found


def find_camera(name: str, request: CameraRequest = CameraRequest()) -> Camera:
    """Return the camera that a string names, not open yet.

    Raises:
        BadInput: if the name is empty.
        UnknownName: if there is no such driver.
        DataError: if a file, also that of a calibration, is missing or of no known kind.
        MissingExtra: if a driver's package is not installed.
    """
    if not name:
        raise BadInput(f"needs camera=..., {_EXAMPLES}")
    driver, colon, argument = name.partition(":")
    known = drivers()
    found = find_driver(driver) if driver in known else None
    if found is None or (found.needs_argument and not colon):  # without a colon it may be a folder of that name
        if not Path(name).exists():
            raise _unknown(name, driver if colon else "", known)
        driver, argument = recognise(Path(name)), name
        found = find_driver(driver)
    elif (
        found.reads
        and found.needs_argument
        and not (Path(argument).exists() or Path(argument.partition("@")[0]).exists())
    ):
        raise DataError(f"camera={name}: there is no file or folder {argument!r} for driver {driver!r} to read")
    if request.calibration is not None:
        read_intrinsics(Path(request.calibration))
        if found.has_intrinsics:
            log.warning("calibration=%s is not used: %s has its own intrinsics", request.calibration, driver)
    return found(argument, request)  # type: ignore[call-arg]  # every driver's constructor takes these two


def recognise(path: Path) -> str:
    """Return the name of the driver that reads a file or folder, by its content and not by its name.

    Raises:
        DataError: if no driver recognises it, or several do.
    """
    classes = {}
    for name in drivers():
        try:
            classes[name] = find_driver(name)
        except PixioError as error:
            log.warning("%s", error)
    found = [name for name, each in classes.items() if each.recognises(path)]
    if len(found) > 1:
        raise DataError(f"{path} can be read by several drivers: {', '.join(found)}; choose one: {found[0]}:{path}")
    if not found:
        kinds = "; ".join(sorted({each.reads for each in classes.values() if each.reads}))
        raise DataError(f"{path} is no known recording; known are: {kinds}")
    return found[0]


def _paths(argument: str) -> tuple[str, str]:
    """Return the path of an argument, with and without ``@CAMERA``."""
    return argument, argument.partition("@")[0]


def _unknown(name: str, driver: str, known: list[str]) -> PixioError:
    if driver and "/" not in driver and "." not in driver:
        return UnknownName(f"no camera driver {driver!r}{closest(driver, known)}; there are: {', '.join(known)}")
    if "/" in name or "." in name:
        return DataError(f"no such file or folder: camera={name}; it may also be a driver, {_EXAMPLES}")
    return DataError(
        f"no camera {name!r}: it is neither a file or folder nor a driver{closest(name, known)}; drivers are "
        f"{', '.join(known)}, {_EXAMPLES}"
    )
