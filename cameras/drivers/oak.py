"""Luxonis OAK cameras through depthai 3 (extra ``oak``). Written from its documentation; not tested on a device."""

import datetime
import time
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import CameraError, MissingExtra
from ..camera import Camera, CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame

_UNIT = 0.001  # of its depth [m]
_STEREO = (640, 400)  # width, height of the stereo pair [px]


class Oak(Camera):
    """A camera that aligns its stereo depth to undistorted colour and sends both together.

    Args:
        device: id or address; empty for the first one found.
        request: size and rate of colour; 640x480 at 30 by default.
    """

    has_intrinsics = True

    def __init__(self, device: str, request: CameraRequest) -> None:
        try:
            import depthai
        except ImportError as error:
            raise MissingExtra("a Luxonis camera", "oak") from error
        self._library: Any = depthai
        self._device, self._request = device, request
        self._pipeline: Any = None
        self._queue: Any = None
        self._spec: CameraSpec | None = None

    def open(self) -> None:
        if self._pipeline is not None:
            return
        dai, request = self._library, self._request
        try:
            device = dai.Device(dai.DeviceInfo(self._device)) if self._device else dai.Device()
        except RuntimeError as error:
            raise CameraError(f"no Luxonis camera {self._device or ''} can be opened: {error}") from error
        width, height, fps = request.width or 640, request.height or 480, request.fps or 30.0
        pipeline = dai.Pipeline(device)
        sync = pipeline.create(dai.node.Sync)
        sync.setSyncThreshold(datetime.timedelta(seconds=0.5 / fps))
        sockets = dai.CameraBoardSocket
        color = pipeline.create(dai.node.Camera).build(sockets.CAM_A)
        image = color.requestOutput(size=(width, height), fps=fps, enableUndistortion=True)
        image.link(sync.inputs["rgb"])
        if request.depth:
            stereo, align = pipeline.create(dai.node.StereoDepth), pipeline.create(dai.node.ImageAlign)
            for socket, side in ((sockets.CAM_B, stereo.left), (sockets.CAM_C, stereo.right)):
                pipeline.create(dai.node.Camera).build(socket).requestOutput(size=_STEREO, fps=fps).link(side)
            stereo.setLeftRightCheck(True)  # marks pixels that only one of the two cameras sees as invalid
            stereo.setSubpixel(True)
            stereo.depth.link(align.input)
            image.link(align.inputAlignTo)
            align.outputAligned.link(sync.inputs["depth"])
        self._queue = sync.out.createOutputQueue(maxSize=1, blocking=False)
        try:
            pipeline.start()
        except RuntimeError as error:
            raise CameraError(f"the Luxonis camera does not start: {error}") from error
        matrix = device.readCalibration().getCameraIntrinsics(sockets.CAM_A, width, height)
        self._pipeline = pipeline
        self._spec = CameraSpec(
            name=f"oak:{device.getDeviceId()}",
            driver="oak",
            live=True,
            color_size=(height, width),
            depth_size=(height, width) if request.depth else None,
            fps=fps,
            unit=_UNIT if request.depth else None,
            intrinsics=Intrinsics.from_matrix(np.array(matrix), width, height),
        )

    def read(self) -> Frame:
        if self._pipeline is None:
            raise CameraError("the camera is not open")
        deadline = time.monotonic() + self._request.timeout
        while (group := self._queue.tryGet()) is None:
            if time.monotonic() > deadline or not self._pipeline.isRunning():
                raise CameraError(f"the Luxonis camera gave no frame for {self._request.timeout:.1f} s")
            time.sleep(0.001)
        color, deep = group["rgb"], group["depth"] if self._request.depth else None
        depth = None if deep is None else deep.getFrame()
        rgb = np.ascontiguousarray(color.getCvFrame()[..., ::-1])
        when = color.getTimestampDevice().total_seconds()
        frame = rgbd_frame(rgb, depth, self.spec.intrinsics, _UNIT, when, color.getSequenceNum())
        return frame if deep is None else replace(frame, depth_time=deep.getTimestampDevice().total_seconds())

    def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.stop()
