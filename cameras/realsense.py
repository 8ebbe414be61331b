"""Intel RealSense cameras and their recordings, through the maker's library (extra ``realsense``).

`frame_of` turns a set of frames of that library into ours; it serves live cameras, recordings and `software_device`.
"""

import ctypes
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import numpy as np

from ..errors import CameraError, DataError, MissingExtra
from .camera import Camera, CameraRequest, CameraSpec
from .frame import Frame, Intrinsics, metric
from .pairing import nearest_pairs
from .playback import Playback

_MODELS = {
    "none": "none",
    "brown_conrady": "opencv",
    "inverse_brown_conrady": "inverse_brown_conrady",
    "modified_brown_conrady": "inverse_brown_conrady",
}
_WAITING = 4  # frames of a recording that wait to be read


def realsense_library() -> Any:
    """Import pyrealsense2. Where the system has no libusb-1.0, the one in the package libusb-package is loaded first.

    Raises:
        MissingExtra: if pyrealsense2 is not installed.
        CameraError: if there is no libusb.
    """
    if importlib.util.find_spec("pyrealsense2") is None:
        raise MissingExtra("a RealSense camera or recording", "realsense")
    try:
        import pyrealsense2
    except ImportError as error:
        if "usb" not in str(error):
            raise CameraError(f"pyrealsense2 does not import: {error}") from error
        try:
            import libusb_package

            ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
            import pyrealsense2
        except (ImportError, OSError) as second:
            raise CameraError(
                f"pyrealsense2 needs libusb ({error}); on Debian or Ubuntu: apt-get install -y libusb-1.0-0, or "
                "anywhere: pip install libusb-package"
            ) from second
    return pyrealsense2


class RealSense(Camera):
    """A connected camera.

    Args:
        serial: which one; empty for the only or first one.
        request: size and rate; 640x480 at 30 by default.
    """

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
        there = [device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()]
        if not there or (self._serial and self._serial not in there):
            asked = f" with serial number {self._serial}" if self._serial else ""
            raise CameraError(f"no RealSense camera{asked} is connected; connected are: {', '.join(there) or 'none'}")
        if self._serial:
            config.enable_device(self._serial)
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
                "lists what it can"
            ) from error
        self._pipeline = pipeline
        device = profile.get_device()
        self._unit = _unit(device)
        streams = {stream.stream_type(): stream for stream in profile.get_streams()}
        self._spec = _describe(rs, device, streams, f"realsense:{self._serial or there[0]}", True, self._unit)

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
            except RuntimeError:  # it is gone already
                return


class RealSenseFile(Playback):
    """A recording of the maker's library (.bag, or .db3 since 2026): every colour picture with the nearest depth.

    The library's own pairing is not used: of the colour picture and the two depth maps in its published D435
    recording it pairs those that are 268 ms apart.

    Args:
        path: the file.
    """

    numbered = True

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self._rs = realsense_library()
        self.path = Path(path)
        self._device: Any = None
        self._sensors: list[Any] = []
        self._streams: dict[Any, Any] = {}  # profiles by stream type
        self._unit = 0.001
        self._queue: Queue[Frame | Exception] = Queue(_WAITING)

    def start(self) -> CameraSpec:
        rs = self._rs
        try:
            self._device = rs.context().load_device(str(self.path))
        except RuntimeError as error:
            raise DataError(f"{self.path} is no RealSense recording that can be played: {error}") from error
        self._device.as_playback().set_real_time(False)
        self._unit = _unit(self._device)
        asked = ((rs.stream.color, self.request.color), (rs.stream.depth, self.request.depth))
        wanted = [kind for kind, yes in asked if yes]
        by_sensor = []
        for sensor in self._device.query_sensors():
            profiles = [each for each in sensor.get_stream_profiles() if each.stream_type() in wanted]
            chosen = list({each.stream_type(): each for each in profiles}.values())
            self._streams |= {each.stream_type(): each for each in chosen}
            if chosen:
                by_sensor.append((sensor, chosen))
        if not by_sensor:
            raise DataError(f"{self.path} holds neither colour nor depth")
        self._queue = Queue(_WAITING)
        for sensor, chosen in by_sensor:
            sensor.open(chosen)
            self._sensors.append(sensor)
        for sensor in self._sensors:
            sensor.start(self._take)
        return _describe(rs, self._device, self._streams, str(self.path), False, self._unit)

    def _take(self, frame: Any) -> None:
        """Take a frame from the library's thread, which waits while nobody reads."""
        rs = self._rs
        try:
            kind = frame.profile.stream_type()
            color = frame.as_video_frame() if kind == rs.stream.color else None
            deep = frame.as_depth_frame() if kind == rs.stream.depth else None
            item: Frame | Exception = _frame(rs, color, deep, self._unit, self._streams.get(rs.stream.color))
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
        """Yield a frame a colour picture, or a depth map where there is no colour."""
        return nearest_pairs(self._single()) if len(self._streams) == 2 else self._single()

    def _single(self) -> Iterator[Frame]:
        over = False
        while True:
            try:
                item = self._queue.get(timeout=0.1)
            except Empty:
                if over:  # it had stopped before this wait
                    return
                over = self._device.as_playback().current_status() == self._rs.playback_status.stopped
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


def frame_of(rs: Any, frames: Any, unit: float) -> Frame:
    """Turn a set of the library into a `Frame`; what the set lacks is None.

    Args:
        rs: the library.
        frames: `rs.composite_frame` or `rs.frameset`.
        unit: of depth [m].

    Raises:
        CameraError: if the set holds neither colour nor depth.
    """
    color, deep = frames.get_color_frame(), frames.get_depth_frame()
    if not (color or deep):
        raise CameraError("a set of the camera holds neither colour nor depth")
    return _frame(rs, color or None, deep or None, unit, color.profile if color else None)


def _frame(rs: Any, color: Any, deep: Any, unit: float, beside: Any) -> Frame:
    """Return a frame of colour, depth or both; `beside` is the profile of colour, to which depth's pose is told."""
    metres, valid, pose, depth_intrinsics = None, None, None, None
    if deep is not None:
        metres, valid = metric(np.asanyarray(deep.get_data()), unit)
        depth_intrinsics = _intrinsics(deep.profile)
        pose = None if beside is None else _pose(deep.profile.get_extrinsics_to(beside))
    both = color is not None and deep is not None
    one_clock = not both or color.get_frame_timestamp_domain() == deep.get_frame_timestamp_domain()
    main = deep if color is None else color
    return Frame(
        rgb=None if color is None else _rgb(rs, color),
        depth=metres,
        valid=valid,
        intrinsics=None if color is None else _intrinsics(color.profile),
        depth_intrinsics=depth_intrinsics,
        depth_to_color=pose,
        unit=None if deep is None else unit,
        sensor_time=_when(rs, main, one_clock),
        depth_time=None if deep is None else _when(rs, deep, one_clock),
        arrival_time=time.monotonic(),
        sequence=main.get_frame_number(),
    )


def _rgb(rs: Any, color: Any) -> np.ndarray:
    values = np.asanyarray(color.get_data())
    kind = color.profile.format()
    if kind == rs.format.bgr8:
        return values[..., ::-1].copy()
    if kind != rs.format.rgb8:
        raise CameraError(f"colour comes as {kind}; rgb8 and bgr8 are understood")
    return values.copy()  # the library takes its buffer back


def _when(rs: Any, frame: Any, one_clock: bool) -> float:
    """Return when a frame was taken [s]; on the computer's clock where two sensors have clocks of their own."""
    arrival = rs.frame_metadata_value.time_of_arrival
    if not one_clock and frame.supports_frame_metadata(arrival):
        return frame.get_frame_metadata(arrival) / 1000
    return frame.get_timestamp() / 1000


def _unit(device: Any) -> float:
    try:
        return float(np.float32(device.first_depth_sensor().get_depth_scale()))
    except RuntimeError:  # no depth
        return 0.001


def _describe(rs: Any, device: Any, streams: dict[Any, Any], name: str, live: bool, unit: float) -> CameraSpec:
    found = {kind: stream.as_video_stream_profile() for kind, stream in streams.items()}
    color, depth = found.get(rs.stream.color), found.get(rs.stream.depth)
    info = {
        what: device.get_info(kind)
        for what, kind in (("model", rs.camera_info.name), ("serial", rs.camera_info.serial_number))
        if device.supports(kind)
    }
    main = color or depth
    return CameraSpec(
        name=name,
        driver="realsense" if live else "realsense-file",
        live=live,
        color_size=(color.height(), color.width()) if color else None,
        depth_size=(depth.height(), depth.width()) if depth else None,
        fps=float(main.fps()) if main else None,
        unit=unit if depth else None,
        intrinsics=_intrinsics(color) if color else None,
        details=info,
    )


def _intrinsics(profile: Any) -> Intrinsics:
    known = profile.as_video_stream_profile().get_intrinsics()
    model = known.model.name
    coefficients = tuple(map(float, known.coeffs))
    if not any(coefficients) or model == "none":
        model, coefficients = "none", ()
    elif model not in _MODELS:
        raise CameraError(f"lens model {model!r} of the camera is not known; there are: {', '.join(_MODELS)}")
    else:
        model = _MODELS[model]
    return Intrinsics(known.width, known.height, known.fx, known.fy, known.ppx, known.ppy, model, coefficients)


def _pose(extrinsics: Any) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(extrinsics.rotation).reshape(3, 3).T  # stored by columns
    matrix[:3, 3] = extrinsics.translation
    return matrix
