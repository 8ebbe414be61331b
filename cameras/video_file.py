"""Video files as cameras: their colour, through PyAV."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..errors import DataError
from .camera import CameraRequest, CameraSpec
from .frame import Frame, rgbd_frame
from .intrinsics_file import intrinsics_for
from .playback import Playback


class VideoFile(Playback):
    """The first video track of a file, upright as a phone was held.

    Args:
        path: the file.
    """

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._container: Any = None  # av.container.InputContainer while it is open
        self._pictures: Iterator[av.VideoFrame] = iter(())
        self._turns = 0  # of a quarter, anticlockwise

    def start(self) -> CameraSpec:
        try:
            self._container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} is no video that can be read: {error}") from error
        tracks = self._container.streams.video
        if not tracks:
            raise DataError(f"{self.path} is no video that can be read: it has no pictures")
        stream = tracks[0]
        stream.thread_type = "NONE"
        self._pictures = self._container.decode(stream)
        try:
            first = next(self._pictures)
        except (av.FFmpegError, StopIteration) as error:
            raise DataError(f"{self.path} is damaged: it has no pictures") from error
        self._pictures, self._turns = chain([first], self._pictures), _turns(first)
        size = (stream.width, stream.height) if self._turns % 2 else (stream.height, stream.width)
        rate = stream.average_rate or stream.guessed_rate
        return CameraSpec(
            name=str(self.path),
            driver="video",
            live=False,
            color_size=size,
            depth_size=None,
            fps=float(rate) if rate else None,
            intrinsics=intrinsics_for(self.request.calibration, size),
            frames=stream.frames or None,
        )

    def frames(self) -> Iterator[Frame]:
        try:
            for number, picture in enumerate(self._pictures):
                turns = _turns(picture)
                rgb = np.ascontiguousarray(np.rot90(picture.to_ndarray(format="rgb24"), turns))
                when = picture.time if picture.time is not None else number / (self.spec.fps or 30.0)
                known = self.spec.intrinsics if turns == self._turns else None
                yield rgbd_frame(rgb, None, known, sensor_time=float(when))
        except av.FFmpegError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error

    def stop(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()


def _turns(picture: av.VideoFrame) -> int:
    return round(picture.rotation / 90) % 4
