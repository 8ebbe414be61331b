"""From one string to a camera: a driver, a file or folder recognised by its content, or a simulated task.

``realsense[:SERIAL]``, ``opencv:INDEX-or-file``, ``oak[:ID]``, ``task:SUITE/TASK[@CAMERA]``, ``DRIVER:PATH``, or a
path. Other packages add drivers with entry points in the group ``pixio_robot.cameras``: NAME = "module:Class", a
`Camera` that is made with the text after the colon and a `CameraRequest`.
"""

import importlib
import logging
import sqlite3
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from ..errors import BadInput, DataError, PixioError, UnknownName, closest
from .camera import Camera, CameraRequest
from .intrinsics_file import read_intrinsics

log = logging.getLogger(__name__)

GROUP = "pixio_robot.cameras"
Maker = Callable[[str, CameraRequest], Camera]
_OURS = {
    "realsense": "realsense:RealSense",
    "realsense-file": "realsense:RealSenseFile",
    "opencv": "opencv:OpenCV",
    "oak": "oak:Oak",
    "task": "simulated:TaskCamera",
    "recording": "recording:Recording",
    "ros": "ros:RosRecording",
    "video": "video_file:VideoFile",
    "tum": "folders:TumFolder",
    "images": "folders:ImageFolder",
    "demos": "demos:Demonstrations",
}
_NEED_A_NAME = set(_OURS) - {"realsense", "opencv", "oak"}  # without one it is a folder of that name
_READ_FILES = _NEED_A_NAME - {"task"}
_TELL_INTRINSICS = set(_OURS) - {"opencv", "video", "tum", "images"}
KINDS = """a recording of `pixio-robot record`; RealSense .bag and .db3; ROS bags (ROS 1, .db3, .mcap, rosbag2 folders);
videos; TUM folders (rgb.txt, depth.txt); folders of pictures; HDF5 demonstrations"""
_EXAMPLES = "e.g. realsense, opencv:0, task:toy/reach"
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def drivers() -> list[str]:
    """Return the names of all drivers, ours and those of installed packages."""
    return sorted({*_OURS, *(entry.name for entry in metadata.entry_points(group=GROUP))})


def find_camera(name: str, request: CameraRequest = CameraRequest()) -> Camera:
    """Return the camera that a string names, not open yet.

    Raises:
        BadInput: if the name is empty.
        UnknownName: if there is no such driver.
        DataError: if a file, also that of a calibration, is missing or nothing that is known.
        MissingExtra: if a driver's package is not installed.
    """
    if not name:
        raise BadInput(f"needs camera=..., {_EXAMPLES}")
    driver, colon, argument = name.partition(":")
    known = drivers()
    if driver not in known or not (colon or driver not in _NEED_A_NAME):
        if not Path(name).exists():
            raise _unknown(name, driver if colon else "", known)
        driver, argument = kind_of(Path(name)), name
    elif driver in _READ_FILES and not (Path(argument).exists() or Path(argument.partition("@")[0]).exists()):
        raise DataError(f"camera={name}: there is no file or folder {argument!r} for driver {driver!r} to read")
    if request.calibration is not None:
        read_intrinsics(Path(request.calibration))
        if driver in _TELL_INTRINSICS:
            log.warning("calibration=%s is not used: %s tells intrinsics itself", request.calibration, driver)
    return _maker(driver)(argument, request)


def _unknown(name: str, driver: str, known: list[str]) -> PixioError:
    if driver and "/" not in driver and "." not in driver:
        return UnknownName(f"no camera driver {driver!r}{closest(driver, known)}; there are: {', '.join(known)}")
    if "/" in name or "." in name:
        return DataError(f"no such file or folder: camera={name}; it may also be a driver, {_EXAMPLES}")
    return DataError(
        f"no camera {name!r}: it is neither a file or folder nor a driver{closest(name, known)}; drivers are "
        f"{', '.join(known)}, {_EXAMPLES}"
    )


def kind_of(path: Path) -> str:
    """Return the driver for a file or folder, by what is in it, whatever it is called.

    Raises:
        DataError: if it is nothing that is known.
    """
    kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    if kind is None:
        raise DataError(f"{path} is no recording that is known; wanted is {KINDS}")
    return kind


def _maker(driver: str) -> Maker:
    for entry in metadata.entry_points(group=GROUP):
        if entry.name == driver and driver not in _OURS:
            try:
                return entry.load()
            except Exception as error:  # another package's code
                raise PixioError(f"the camera driver {driver!r} of {entry.value} does not load: {error}") from error
    module, _, name = _OURS[driver].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _kind_of_folder(path: Path) -> str | None:
    if (path / "recording.json").is_file():
        return "recording"
    if (path / "metadata.yaml").is_file():
        return "ros"
    if (path / "rgb.txt").is_file() and (path / "depth.txt").is_file():
        return "tum"
    folders = [path, *(path / name for name in ("color", "rgb", "images", "depth"))]
    if any(file.suffix.lower() in _IMAGES for folder in folders if folder.is_dir() for file in folder.iterdir()):
        return "images"
    return None


def _kind_of_file(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"#ROSBAG"):
        return "realsense-file" if _bag_is_realsense(path) else "ros"
    if head.startswith(b"SQLite format 3\0"):
        return "realsense-file" if _db3_is_realsense(path) else "ros"
    if head.startswith(b"\x89MCAP0\r\n"):
        return "ros"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "demos"
    if head[4:8] == b"ftyp" or head.startswith((b"\x1a\x45\xdf\xa3", b"RIFF", b"OggS", b"\x00\x00\x01")):
        return "video"
    return None


def _bag_is_realsense(path: Path) -> bool:
    """Look for RealSense's topics in the index of a ROS 1 bag, or in all of one that was cut before its index."""
    with path.open("rb") as file:
        head = file.read(4096)
        at = head.find(b"index_pos=")
        place = struct.unpack("<Q", head[at + 10 : at + 18])[0] if at >= 0 else 0
        file.seek(place)
        return b"topic=/device_0/" in file.read(64 * 2**20)


def _db3_is_realsense(path: Path) -> bool:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            names = [row[0] for row in database.execute("SELECT name FROM topics")]
    except sqlite3.Error as error:
        raise DataError(f"{path} is an SQLite file but no ROS 2 recording: {error}") from error
    finally:
        if "database" in locals():
            database.close()
    return any(name.startswith("/device_0/") for name in names)
