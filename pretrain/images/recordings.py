"""Colour images in recordings of depth cameras: ROS 1 bags (also RealSense's), ROS 2 folders, .db3 and .mcap files.

Shapes: H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError, MissingExtra, PixioError, Unreadable
from ...ros_images import COMPRESSED, RAW, colour_image, is_colour, open_recording
from .file_index import Arrays, index_files, load
from .handles import Handles
from .image_set import Sequences, fingerprint

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

_OPEN_RECORDINGS = 4


class Recordings(Sequences):
    """Every colour image of recordings; each topic is a group. Depth and infrared images are ignored.

    Args:
        root: folder that names in the fingerprint are relative to.
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
        self._open: Handles[Path, AnyReader] = Handles(open_recording, _close, _OPEN_RECORDINGS)

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
                    return colour_image(reader.deserialize(raw, connection.msgtype))
        except (Unreadable, MissingExtra):
            raise
        except Exception as error:  # also for a missing file; see `_index`
            raise Unreadable(f"the recording cannot be read here: {error or type(error).__name__}") from error
        raise Unreadable("the recording changed since it was indexed")

    def name(self, index: int) -> str:
        number, frame = self.locate(index)
        file, topic = self._topics[number]
        return f"{file}:{topic}#{frame}"


def _close(reader: "AnyReader") -> None:
    reader.close()


def _index(path: Path) -> Arrays:
    try:
        reader = open_recording(path)
        try:
            found = _colour_topics(reader)
        finally:
            reader.close()
    except PixioError:
        raise
    except Exception as error:  # rosbags raises many kinds of errors for damaged files
        raise DataError(f"{path} is not a readable recording: {error or type(error).__name__}") from error
    if not found:
        raise DataError(f"{path} holds no colour images; expected messages of {RAW} or {COMPRESSED}")
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
    images = [each for each in reader.connections if each.msgtype in (RAW, COMPRESSED)]
    for connection, time, raw in reader.messages(images) if images else ():
        topic = connection.topic
        if topic not in colour:
            colour[topic] = is_colour(reader.deserialize(raw, connection.msgtype))
        if colour[topic]:
            times.setdefault(topic, []).append(time)
    return times
