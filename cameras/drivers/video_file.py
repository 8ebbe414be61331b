"""Video files as cameras: their colour, through PyAV."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...errors import DataError
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, rgbd_frame
from ..intrinsics_file import intrinsics_for
from ..playback import Playback
from .file_types import is_video


class VideoFile(Playback):
    """The first video track of a file, rotated upright.

    Args:
        path: the file.
    """

    needs_argument = True
    reads = "videos"

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._container: Any = None  # av.container.InputContainer while it is open
        self._images: Iterator[av.VideoFrame] = iter(())
        self._turns = 0  # quarter turns, anticlockwise

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return is_video(path)

    def start(self) -> CameraSpec:
        try:
            self._container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} is no video that can be read: {error}") from error
        tracks = self._container.streams.video
        if not tracks:
            raise DataError(f"{self.path} is no video that can be read: it has no images")
        stream = tracks[0]
        stream.thread_type = "NONE"
        self._images = self._container.decode(stream)
        try:
            first = next(self._images)
        except (av.FFmpegError, StopIteration) as error:
            raise DataError(f"{self.path} is damaged: it has no images") from error
        self._images, self._turns = chain([first], self._images), _turns(first)
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
            for number, image in enumerate(self._images):
                turns = _turns(image)
                rgb = np.ascontiguousarray(np.rot90(image.to_ndarray(format="rgb24"), turns))
                when = image.time if image.time is not None else number / (self.spec.fps or 30.0)
                known = self.spec.intrinsics if turns == self._turns else None
                yield rgbd_frame(rgb, None, known, sensor_time=float(when))
        except av.FFmpegError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error

    def stop(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()


def _turns(image: av.VideoFrame) -> int:
    return round(image.rotation / 90) % 4
