import time

import numpy as np

from pixio_robot.cameras.camera import Camera, CameraRequest, CameraSpec
from pixio_robot.cameras.frame import Frame, rgbd_frame


class PatternCamera(Camera):
    """A white bar that moves; a driver calls the library of its device instead."""

    def __init__(self, name: str, request: CameraRequest) -> None:
        self._size = request.height or 48, request.width or 64
        self._fps = request.fps or 20.0

    def open(self) -> None:
        if self._spec is None:
            self._spec = CameraSpec("pattern", "pattern", True, self._size, None, self._fps)
            self._count, self._start = 0, time.monotonic()

    def read(self) -> Frame:
        height, width = self.spec.color_size  # raises if the camera is not open
        self._count += 1
        seconds = self._count / self._fps
        time.sleep(max(0.0, self._start + seconds - time.monotonic()))
        image = np.zeros((height, width, 3), np.uint8)
        image[:, self._count % width] = 255
        return rgbd_frame(image, None, None, sensor_time=seconds, sequence=self._count)

    def close(self) -> None:
        self._spec = None
