"""Random access to frames of video files, through PyAV.

A video's index has the time stamp of each frame in display order, and which frames are key frames. To read frame i the
decoder seeks to the last key frame at or before it and decodes from there.

Shapes: G videos, H height, W width.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...errors import DataError, Unreadable
from .file_index import Arrays, index_files, load
from .handles import Handles
from .image_set import Sequences, files_fingerprint

_OPEN_VIDEOS = 4
_CHECKED = 32  # frames whose stamps are compared with the packets' [frames]
_CACHE_BYTES = 128 * 2**20  # of decoded frames in each process


class VideoFrames(Sequences):
    """Every frame of video files; each video is a group. Reading a frame decodes all frames since the last key frame.

    Args:
        root: folder that names in the fingerprint are relative to.
        files: the videos; those without a usable image are left out and logged.
        cache: folder of all caches.

    Raises:
        DataError: if no file can be used.
    """

    block = 32

    def __init__(self, root: Path, files: Sequence[Path], cache: Path) -> None:
        indices = index_files(files, cache / "images" / "files", "video-1", _index)
        self._files = [file for file, index in zip(files, indices, strict=True) if index is not None]
        arrays = [load(index) for index in indices if index is not None]
        super().__init__([len(each["stamps"]) for each in arrays])
        self._stamps = np.concatenate([each["stamps"] for each in arrays])
        self._keys = np.concatenate([each["keys"] for each in arrays])
        self.fingerprint = files_fingerprint(root, self._files)
        self._open: Handles[Path, _Decoder] = Handles(_Decoder, _Decoder.close, _OPEN_VIDEOS)
        self._kept = _Kept()

    def read(self, index: int) -> np.ndarray:
        video, frame = self.locate(index)
        try:
            image = self._kept.get((video, frame)) or self._decode(video, frame)
            values = image.to_ndarray(format="rgb24")
        except (av.FFmpegError, OSError, ValueError) as error:
            self._open.close()
            raise Unreadable(f"the video cannot be decoded here: {error}") from error
        return np.ascontiguousarray(
            np.rot90(values, round(image.rotation / 90))
        )  # rotation stored in the file, as by phones

    def name(self, index: int) -> str:
        video, frame = self.locate(index)
        return f"{self._files[video]}#{frame}"

    def _decode(self, video: int, frame: int) -> av.VideoFrame:
        path, first, end = self._files[video], *self.groups[video : video + 2]
        stamps = self._stamps[first:end]
        keys = np.flatnonzero(self._keys[first : first + frame + 1])[::-1]  # the nearest first
        decoder = self._open.get(path)
        key = int(keys[0]) if len(keys) else 0
        begins = [*keys[:3], 0]  # some containers seek too far; then try earlier frames, at last the first
        if key <= decoder.next <= frame:
            begins = [decoder.next, *begins]  # continue from the present frame
        for begin in map(int, begins):
            if begin != decoder.next:
                decoder.seek(int(stamps[begin]) if begin else None)
            for image in decoder.images:
                number = _number(stamps, image.pts, decoder.next)
                if number is None or number < begin:  # it may depend on frames before the key frame
                    continue
                decoder.next = number + 1
                self._kept.put((video, number), image)
                if number == frame:
                    return image
                if number > frame:
                    break
            decoder.next = -1
        raise Unreadable(f"the video has no frame with time stamp {stamps[frame]}")


class _Decoder:
    """A video file being decoded; `next` is the number of the next frame, or -1."""

    next: int
    images: Iterator[av.VideoFrame]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reopen()

    def _reopen(self) -> None:
        self._container = av.open(str(self._path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # the loader has enough processes
        self.images, self.next = self._container.decode(self._stream), 0

    def seek(self, stamp: int | None) -> None:
        """Seek to the key frame of a time stamp, or to the first frame."""
        if stamp is None:
            self.close()
            self._reopen()
            return
        self._container.seek(stamp, stream=self._stream)
        self.images, self.next = self._container.decode(self._stream), -1

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class _Kept:
    """Most recently used decoded frames of this process, up to `_CACHE_BYTES`; unpickled copies are empty."""

    def __init__(self) -> None:
        self._frames: OrderedDict[tuple[int, int], av.VideoFrame] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int]) -> av.VideoFrame | None:
        """Return a frame if it is cached."""
        if key in self._frames:
            self._frames.move_to_end(key)
        return self._frames.get(key)

    def put(self, key: tuple[int, int], frame: av.VideoFrame) -> None:
        """Cache a frame and drop the least recently used."""
        if key in self._frames:
            return
        self._frames[key] = frame
        self._bytes += _size(frame)
        while self._bytes > _CACHE_BYTES and len(self._frames) > 1:
            self._bytes -= _size(self._frames.popitem(last=False)[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


def _size(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


def _number(stamps: np.ndarray, stamp: int | None, likely: int) -> int | None:
    """Return the number of the frame of a time stamp."""
    if 0 <= likely < len(stamps) and stamps[likely] == stamp:
        return likely
    found = [] if stamp is None else np.flatnonzero(stamps == stamp).tolist()
    return found[0] if found else None


def _index(path: Path) -> Arrays:
    try:
        stamps, keys = _from_packets(path)
        seen = list(islice(_from_frames(path), _CHECKED))
        if [stamp for stamp, _ in seen] != stamps[: len(seen)]:  # AVI has no display times
            seen = list(_from_frames(path))
            stamps, keys = [stamp for stamp, _ in seen], [key for _, key in seen]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path} is not a decodable video: {error}") from error
    if not stamps:
        raise DataError(f"{path} is a video without frames")
    if len({*stamps}) < len(stamps) or None in stamps:
        raise DataError(f"{path} has frames without a unique time stamp; convert it: ffmpeg -i {path} new.mp4")
    return {"stamps": np.array(stamps, np.int64), "keys": np.array(keys, bool)}


def _from_packets(path: Path) -> tuple[list[int | None], list[bool]]:
    """Return time stamps and key frames from the container, without decoding."""
    with av.open(str(path)) as container:
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(container.streams.video[0])
            if packet.size and not packet.is_discard
        ]
    packets.sort(key=lambda packet: -1 if packet[0] is None else packet[0])
    return [stamp for stamp, _ in packets], [key for _, key in packets]


def _from_frames(path: Path) -> Iterator[tuple[int | None, bool]]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(container.streams.video[0]):
            yield frame.pts, frame.key_frame
