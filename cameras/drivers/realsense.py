"""Intel RealSense cameras and their recordings, through Intel's library (extra ``realsense``)."""

from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from ...errors import CameraError, DataError
from ..camera import Camera, CameraRequest, CameraSpec
from ..frame import Frame
from ..playback import Playback
from .file_types import is_realsense_recording
from .pairing import nearest_pairs
from .realsense_frames import Stamped, describe, frame_of, on_one_clock, realsense_library, stamped, unit_of

_QUEUE = 4  # frames of a recording that are decoded in advance


class RealSense(Camera):
    """A connected camera.

    Args:
        serial: serial number; empty for the first camera.
        request: size and rate; 640x480 at 30 by default.
    """

    has_intrinsics = True

    def __init__(self, serial: str, request: CameraRequest) -> None:
        self._rs = realsense_library()
        self._serial, self._request = serial, request
        self._pipeline: Any = None
        self._spec: CameraSpec | None = None
        self._unit = 0.001

    def open(self) -> None:
        if self._pipeline is not None:
            return
        rs, request, config = self._rs, self._request, self._rs.config()
        serial = self.choose_device(config)
        width, height, fps = request.width or 640, request.height or 480, round(request.fps or 30)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        if request.depth:
            config.enable_stream(rs.stream.depth, width, height, rs.format.z16, fps)
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise CameraError(
                f"the RealSense camera does not start with {width}x{height} at {fps}/s: {error}; realsense-viewer "
                "lists its modes"
            ) from error
        self._pipeline = pipeline
        device = profile.get_device()
        self._unit = unit_of(device)
        streams = {stream.stream_type(): stream for stream in profile.get_streams()}
        self._spec = describe(rs, device, streams, f"realsense:{serial}", True, self._unit)

    def choose_device(self, config: Any) -> str:
        """Set the device of a configuration; return its serial number."""
        info = self._rs.camera_info.serial_number
        there = [device.get_info(info) for device in self._rs.context().query_devices()]
        if not there or (self._serial and self._serial not in there):
            named = f" with serial number {self._serial}" if self._serial else ""
            raise CameraError(f"no RealSense camera{named} is connected; connected are: {', '.join(there) or 'none'}")
        if self._serial:
            config.enable_device(self._serial)
        return self._serial or there[0]

    def read(self) -> Frame:
        if self._pipeline is None:
            raise CameraError("the camera is not open")
        try:
            there, frames = self._pipeline.try_wait_for_frames(round(1000 * self._request.timeout))
        except RuntimeError as error:
            raise CameraError(f"the RealSense camera is gone: {error}") from error
        if not there:
            raise CameraError(
                f"the RealSense camera gave no frame for {self._request.timeout:.1f} s; is it plugged in?"
            )
        return frame_of(self._rs, frames, self._unit)

    def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.stop()
            except RuntimeError:  # it is disconnected
                return


class RealSenseFile(Playback):
    """A recording of Intel's library (.bag, or .db3 since 2026): every colour image with the nearest depth map.

    The library's own pairing is not used: in Intel's published D435 recording, with one colour image and two depth
    maps, it pairs images that are 268 ms apart.

    Args:
        path: the file.
    """

    numbered = True
    needs_argument = True
    reads = "RealSense .bag and .db3"
    has_intrinsics = True

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self._rs = realsense_library()
        self.path = Path(path)
        self._device: Any = None
        self._sensors: list[Any] = []
        self._streams: dict[Any, Any] = {}  # profiles by stream type
        self._unit = 0.001
        self._queue: Queue[Stamped | Exception] = Queue(_QUEUE)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return is_realsense_recording(path)

    def start(self) -> CameraSpec:
        rs = self._rs
        try:
            self._device = rs.context().load_device(str(self.path))
        except RuntimeError as error:
            raise DataError(f"{self.path} is no RealSense recording that can be played: {error}") from error
        self._device.as_playback().set_real_time(False)
        self._unit = unit_of(self._device)
        requested = ((rs.stream.color, self.request.color), (rs.stream.depth, self.request.depth))
        kinds = [kind for kind, yes in requested if yes]
        by_sensor = []
        for sensor in self._device.query_sensors():
            profiles = [each for each in sensor.get_stream_profiles() if each.stream_type() in kinds]
            chosen = list({each.stream_type(): each for each in profiles}.values())
            self._streams |= {each.stream_type(): each for each in chosen}
            if chosen:
                by_sensor.append((sensor, chosen))
        if not by_sensor:
            raise DataError(f"{self.path} has neither colour nor depth")
        self._queue = Queue(_QUEUE)
        for sensor, chosen in by_sensor:
            sensor.open(chosen)
            self._sensors.append(sensor)
        for sensor in self._sensors:
            sensor.start(self._take)
        return describe(rs, self._device, self._streams, str(self.path), False, self._unit)

    def _take(self, frame: Any) -> None:
        """Queue a frame of the library's thread, which waits while the queue is full."""
        try:
            item: Stamped | Exception = stamped(self._rs, frame, self._unit, self._streams.get(self._rs.stream.color))
        except Exception as error:  # an exception in the library's thread would end the process
            item = error
        queue = self._queue
        while self._device is not None:
            try:
                queue.put(item, timeout=0.1)
                return
            except Full:
                continue

    def frames(self) -> Iterator[Frame]:
        """Yield a frame per colour image, or per depth map without colour."""
        if len(self._streams) == 2:
            return nearest_pairs(on_one_clock(self._single()))
        return (each.frame for each in self._single())

    def _single(self) -> Iterator[Stamped]:
        stopped = False
        while not self.closing:
            try:
                item = self._queue.get(timeout=0.1)
            except Empty:
                if stopped:  # it stopped before this wait
                    return
                stopped = self._device.as_playback().current_status() == self._rs.playback_status.stopped
                continue
            if isinstance(item, Exception):
                raise item
            yield item

    def stop(self) -> None:
        device, self._device = self._device, None
        sensors, self._sensors = self._sensors, []
        for sensor in sensors:
            sensor.stop()
            sensor.close()
        del device
