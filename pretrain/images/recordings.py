"""Colour images in recordings of depth cameras: ROS 1 bags (also RealSense's), ROS 2 folders, .db3 and .mcap files.

Shapes: H height, W width, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ...errors import DataError, MissingExtra, PixioError, Unreadable
from .file_index import Arrays, index_files, load
from .handles import Handles
from .image_set import Sequences, fingerprint

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

_OPEN_RECORDINGS = 4
_RAW, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_ENCODINGS: dict[str, tuple[int, int | None]] = {  # bytes a pixel, and what turns it into RGB
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}


class Recordings(Sequences):
    """Every colour image of recordings, a topic a group. Depth and infrared images are passed over.

    Args:
        root: what names are relative to in the fingerprint.
        files: the recordings; those without colour images are left out and logged.
        cache: folder of all caches.

    Raises:
        DataError: if no recording holds colour images.
        MissingExtra: if the package rosbags is not installed.
    """

    def __init__(self, root: Path, files: Sequence[Path], cache: Path) -> None:
        indices = index_files(files, cache / "images" / "files", "recording-1", _index)
        self._topics: list[tuple[Path, str]] = []
        times, used = [], []
        for file, index in zip(files, indices, strict=True):
            if index is not None:
                arrays = load(index)
                self._topics += [(file, str(topic)) for topic in arrays["topics"]]
                times += np.split(arrays["times"], np.cumsum(arrays["lengths"])[:-1])
                used.append((file.relative_to(root).as_posix(), arrays["lengths"].tolist()))
        super().__init__([len(each) for each in times])
        self._times = np.concatenate(times)
        self.fingerprint = fingerprint(used)
        self._open: Handles[Path, AnyReader] = Handles(_open_recording, _close, _OPEN_RECORDINGS)

    def read(self, index: int) -> bytes | np.ndarray:
        number, frame = self.locate(index)
        file, topic = self._topics[number]
        time = int(self._times[index])
        before = self._times[self.groups[number] : index]
        same = frame - int(np.searchsorted(before, time))  # messages may share a time
        try:
            reader = self._open.get(file)
            connections = [each for each in reader.connections if each.topic == topic]
            for count, (connection, _, raw) in enumerate(reader.messages(connections, time, time + 1)):
                if count == same:
                    return _picture(reader.deserialize(raw, connection.msgtype))
        except PixioError:
            raise
        except Exception as error:  # see `_index`
            raise Unreadable(f"the recording cannot be read here: {error or type(error).__name__}") from error
        raise Unreadable("the recording changed since it was indexed")

    def name(self, index: int) -> str:
        number, frame = self.locate(index)
        file, topic = self._topics[number]
        return f"{file}:{topic}#{frame}"


def _open_recording(path: Path) -> "AnyReader":
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise MissingExtra("reading ROS bags", "recordings") from error
    reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))  # for bags that describe no types
    reader.open()
    return reader


def _close(reader: "AnyReader") -> None:
    reader.close()


def _index(path: Path) -> Arrays:
    try:
        reader = _open_recording(path)
        try:
            found = _colour_topics(reader)
        finally:
            reader.close()
    except MissingExtra:
        raise
    except Exception as error:  # damage shows in rosbags as whatever its parsers stumble over
        raise DataError(f"{path} is no recording that can be read: {error or type(error).__name__}") from error
    if not found:
        raise DataError(f"{path} holds no colour images; wanted are messages of {_RAW} or {_COMPRESSED}")
    topics = sorted(found)
    return {
        "topics": np.array(topics),
        "lengths": np.array([len(found[topic]) for topic in topics]),
        "times": np.concatenate([np.sort(found[topic]) for topic in topics]).astype(np.int64),
    }


def _colour_topics(reader: "AnyReader") -> dict[str, list[int]]:
    """Return the times of the messages of each topic whose first message is a colour image [ns]."""
    times: dict[str, list[int]] = {}
    colour: dict[str, bool] = {}
    images = [each for each in reader.connections if each.msgtype in (_RAW, _COMPRESSED)]
    for connection, time, raw in reader.messages(images) if images else ():
        topic = connection.topic
        if topic not in colour:
            colour[topic] = _is_colour(reader.deserialize(raw, connection.msgtype))
        if colour[topic]:
            times.setdefault(topic, []).append(time)
    return times


def _is_colour(message: Any) -> bool:
    if hasattr(message, "encoding"):
        return message.encoding in _ENCODINGS
    said = message.format.lower()  # "jpeg", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth png"
    return not any(word in said for word in ("depth", "mono", "16uc1", "32fc1"))


def _picture(message: Any) -> bytes | np.ndarray:
    if not hasattr(message, "encoding"):
        return message.data.tobytes()
    if message.encoding not in _ENCODINGS:
        raise Unreadable(f"encoding {message.encoding!r}; known are {', '.join(_ENCODINGS)}")
    channels, code = _ENCODINGS[message.encoding]
    if message.data.size < message.height * message.step or message.step < message.width * channels:
        raise Unreadable(f"{message.data.size} bytes for {message.width}x{message.height} {message.encoding}")
    rows = message.data[: message.height * message.step].reshape(message.height, message.step)
    values = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    return np.ascontiguousarray(values) if code is None else cv2.cvtColor(np.ascontiguousarray(values), code)
