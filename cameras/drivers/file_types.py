"""Recognising recordings by their content; each driver's `recognises` uses it."""

import sqlite3
import struct
from pathlib import Path

from ...errors import DataError

ROS1, SQLITE, MCAP, HDF5 = b"#ROSBAG", b"SQLite format 3\0", b"\x89MCAP0\r\n", b"\x89HDF\r\n\x1a\n"
_VIDEOS = (b"\x1a\x45\xdf\xa3", b"RIFF", b"OggS", b"\x00\x00\x01")  # Matroska, AVI, Ogg, MPEG
_REALSENSE_TOPICS = "/device_0/"


def starts_with(path: Path, *marks: bytes) -> bool:
    """Return whether a path is a file that begins with one of some bytes."""
    return _head(path).startswith(marks)


def is_video(path: Path) -> bool:
    """Return whether a path is a file in a container of videos, such as MP4 or Matroska."""
    head = _head(path)
    return head[4:8] == b"ftyp" or head.startswith(_VIDEOS)


def is_realsense_recording(path: Path) -> bool:
    """Return whether a path is a ROS 1 bag or an SQLite recording with the topics of RealSense's library.

    Raises:
        DataError: if it is an SQLite file of something else.
    """
    if starts_with(path, ROS1):
        return _bag_is_realsense(path)
    return starts_with(path, SQLITE) and _db3_is_realsense(path)


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(64)


def _bag_is_realsense(path: Path) -> bool:
    """Search the index of a ROS 1 bag for RealSense's topics; a bag without an index is searched from its beginning."""
    with path.open("rb") as file:
        head = file.read(4096)
        at = head.find(b"index_pos=")
        file.seek(struct.unpack("<Q", head[at + 10 : at + 18])[0] if at >= 0 else 0)
        return f"topic={_REALSENSE_TOPICS}".encode() in file.read(64 * 2**20)


def _db3_is_realsense(path: Path) -> bool:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        names = [row[0] for row in database.execute("SELECT name FROM topics")]
    except sqlite3.Error as error:
        raise DataError(f"{path} is an SQLite file but no ROS 2 recording: {error}") from error
    finally:
        database.close()
    return any(name.startswith(_REALSENSE_TOPICS) for name in names)
