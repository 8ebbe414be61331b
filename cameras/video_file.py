"""Video files as cameras: their colour, through PyAV."""

from collections.abc import Iterator

import av
import numpy as np

from ..errors import DataError
from .camera import CameraRequest, CameraSpec
from .container import ContainerFile
from .frame import Frame, rgbd_frame
from .intrinsics_file import intrinsics_for


class VideoFile(ContainerFile):
    """The first video track of a file, upright as a phone was held.

    Args:
        path: the file.
    """

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(path, request)
        self._size = (0, 0)

    def start(self) -> CameraSpec:
        tracks = self.open_container("video").streams.video
        if not tracks:
            raise DataError(f"{self.path} is no video that can be read: it has no pictures")
        stream = tracks[0]
        stream.thread_type = "NONE"
        self._size = (stream.height, stream.width)
        rate = stream.average_rate or stream.guessed_rate
        return CameraSpec(
            name=str(self.path),
            driver="video",
            live=False,
            color_size=self._size,
            depth_size=None,
            fps=float(rate) if rate else None,
            intrinsics=intrinsics_for(self.request.calibration, self._size),
            frames=stream.frames or None,
        )

    def frames(self) -> Iterator[Frame]:
        try:
            for number, picture in enumerate(self.container.decode(self.container.streams.video[0])):
                turns = round(picture.rotation / 90)
                rgb = np.ascontiguousarray(np.rot90(picture.to_ndarray(format="rgb24"), turns))
                when = picture.time if picture.time is not None else number / (self.spec.fps or 30.0)
                yield rgbd_frame(rgb, None, None if turns % 4 else self.spec.intrinsics, sensor_time=float(when))
        except av.FFmpegError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error
