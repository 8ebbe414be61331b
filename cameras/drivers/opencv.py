"""Colour cameras and video files through OpenCV: ``opencv:0``, ``opencv:/dev/video2``, ``opencv:clip.avi``."""

import time
from pathlib import Path

import cv2
import numpy as np

from ...errors import CameraError, EndOfStream
from ..camera import Camera, CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame
from ..intrinsics_file import intrinsics_for


class OpenCV(Camera):
    """A webcam, a V4L2 device, an image sequence (``frame-%04d.png``) or a video file. It has no depth.

    Args:
        name: a number, a device or a file; empty is camera 0.
        request: size and rate are requested from a device, which may choose others.
    """

    def __init__(self, name: str, request: CameraRequest) -> None:
        self._name, self._request = name or "0", request
        self._live = self._name.isdigit() or self._name.startswith("/dev/") or "://" in self._name
        self._capture: cv2.VideoCapture | None = None
        self._spec: CameraSpec | None = None
        self._intrinsics: Intrinsics | None = None
        self._first: np.ndarray | None = None
        self._count = 0

    def open(self) -> None:
        if self._capture is not None:
            return
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error below has the reason
        try:
            capture = cv2.VideoCapture(int(self._name) if self._name.isdigit() else self._name)
        finally:
            cv2.utils.logging.setLogLevel(level)
        request = self._request
        for what, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, request.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, request.height),
            (cv2.CAP_PROP_FPS, request.fps),
        ):
            if value is not None and self._live:
                capture.set(what, value)
        if self._live:
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the latest frame, not a queue of old ones
        there, image = capture.read() if capture.isOpened() else (False, None)
        if not there or image is None:
            capture.release()
            devices = ", ".join(map(str, sorted(Path("/dev").glob("video*")))) or "none"
            raise CameraError(f"OpenCV cannot read camera or file {self._name!r}; devices here: {devices}")
        self._capture, self._first = capture, image
        size = image.shape[:2]
        self._intrinsics = intrinsics_for(request.calibration, size)
        rate = capture.get(cv2.CAP_PROP_FPS)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._spec = CameraSpec(
            name=f"opencv:{self._name}",
            driver="opencv",
            live=self._live,
            color_size=(int(size[0]), int(size[1])),
            depth_size=None,
            fps=float(rate) if rate > 0 else None,
            intrinsics=self._intrinsics,
            frames=count if count > 0 and not self._live else None,
            numbered=not self._live,
            details={"backend": capture.getBackendName()},
        )

    def read(self) -> Frame:
        if self._capture is None:
            raise CameraError("the camera is not open")
        there, image = (True, self._first) if self._first is not None else self._capture.read()
        self._first = None
        if not there and not self._live and self._request.repeat and self._count:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            there, image = self._capture.read()
        if not there or image is None:
            if self._live:
                raise CameraError(f"{self.spec.name} gives no more frames; is it plugged in?")
            raise EndOfStream(f"{self.spec.name} has no more frames after {self._count}")
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        self._count += 1
        rate = self.spec.fps or 30.0
        when = time.monotonic() if self._live else (self._count - 1) / rate
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return rgbd_frame(rgb, None, self._intrinsics, sensor_time=when, sequence=self._count - 1)

    def close(self) -> None:
        capture, self._capture, self._first = self._capture, None, None
        if capture is not None:
            capture.release()
