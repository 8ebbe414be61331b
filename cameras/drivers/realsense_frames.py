"""Frames of Intel RealSense cameras: Intel's library (extra ``realsense``) and the conversion of its frames.

`frame_of` converts frames of live cameras, recordings and `software_device`.
"""

import ctypes
import importlib.util
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...errors import CameraError, MissingExtra
from ..camera import CameraSpec
from ..frame import Frame, Intrinsics, metric

_MODELS = {
    "none": "none",
    "brown_conrady": "opencv",
    "inverse_brown_conrady": "inverse_brown_conrady",
    "modified_brown_conrady": "inverse_brown_conrady",
}
_MAX_HELD = 60  # frames: a second of colour and depth at 30 Hz


def realsense_library() -> Any:
    """Import pyrealsense2. If the system has no libusb-1.0, that of the package libusb-package is loaded first.

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


def frame_of(rs: Any, frames: Any, unit: float) -> Frame:
    """Convert a set of frames of the library to a `Frame`; what the set lacks is None.

    Args:
        rs: the library.
        frames: `rs.composite_frame` or `rs.frameset`.
        unit: of depth [m].

    Raises:
        CameraError: if the set has neither colour nor depth.
    """
    color, deep = frames.get_color_frame(), frames.get_depth_frame()
    if not (color or deep):
        raise CameraError("a set of the camera has neither colour nor depth")
    return single_frame(rs, color or None, deep or None, unit, color.profile if color else None)


def single_frame(rs: Any, color: Any, deep: Any, unit: float, reference: Any) -> Frame:
    """Return a frame of colour, depth or both; `reference` is the profile of colour, for the pose of depth."""
    metres, valid, pose, depth_intrinsics = None, None, None, None
    if deep is not None:
        metres, valid = metric(np.asanyarray(deep.get_data()), unit)
        depth_intrinsics = _intrinsics(deep.profile)
        pose = None if reference is None else _pose(deep.profile.get_extrinsics_to(reference))
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


class Stamped(NamedTuple):
    """Colour or depth of a recording, with the clock of its time."""

    frame: Frame
    domain: Any  # clock of its time
    arrived: float | None  # on the recording computer's clock [s]


def stamped(rs: Any, frame: Any, unit: float, reference: Any) -> Stamped:
    """Return a single colour or depth frame of a recording; arguments as for `single_frame`."""
    deep = frame.as_depth_frame() if frame.profile.stream_type() == rs.stream.depth else None
    single = single_frame(rs, None if deep else frame.as_video_frame(), deep, unit, reference)
    return Stamped(single, frame.get_frame_timestamp_domain(), _arrival(rs, frame))


def on_one_clock(frames: Iterable[Stamped]) -> Iterator[Frame]:
    """Yield colour and depth; if their clocks differ, times are replaced by times of arrival where these are known.

    The first frames are delayed until both streams have been received, at most a second.
    """
    held: list[Stamped] = []
    domains: dict[bool, Any] = {}  # by whether it is colour
    for each in frames:
        held.append(each)
        domains[each.frame.rgb is not None] = each.domain
        if len(domains) == 2 or len(held) >= _MAX_HELD:
            yield from _retimed(held, domains)
            held.clear()
    yield from _retimed(held, domains)


def _retimed(held: list[Stamped], domains: dict[bool, Any]) -> Iterator[Frame]:
    one_clock = len(set(domains.values())) < 2
    for frame, _, arrived in held:
        if one_clock or arrived is None:
            yield frame
        else:
            yield replace(frame, sensor_time=arrived, depth_time=None if frame.depth is None else arrived)


def _rgb(rs: Any, color: Any) -> np.ndarray:
    values = np.asanyarray(color.get_data())
    kind = color.profile.format()
    if kind == rs.format.bgr8:
        return values[..., ::-1].copy()
    if kind != rs.format.rgb8:
        raise CameraError(f"colour is {kind}; rgb8 and bgr8 are supported")
    return values.copy()  # the library reuses its buffer


def _when(rs: Any, frame: Any, one_clock: bool) -> float:
    """Return the time of a frame [s]; on the computer's clock if the two sensors have different clocks."""
    arrived = None if one_clock else _arrival(rs, frame)
    return frame.get_timestamp() / 1000 if arrived is None else arrived


def _arrival(rs: Any, frame: Any) -> float | None:
    arrival = rs.frame_metadata_value.time_of_arrival
    return frame.get_frame_metadata(arrival) / 1000 if frame.supports_frame_metadata(arrival) else None


def unit_of(device: Any) -> float:
    """Return the unit of a device's depth [m]; a millimetre if it has none."""
    try:
        return float(np.float32(device.first_depth_sensor().get_depth_scale()))
    except RuntimeError:  # no depth
        return 0.001


def describe(rs: Any, device: Any, streams: dict[Any, Any], name: str, live: bool, unit: float) -> CameraSpec:
    """Return the spec of a device; `streams` are its profiles by type, `unit` is the unit of depth [m]."""
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
        raise CameraError(f"unknown lens model {model!r} of the camera; there are: {', '.join(_MODELS)}")
    else:
        model = _MODELS[model]
    return Intrinsics(known.width, known.height, known.fx, known.fy, known.ppx, known.ppy, model, coefficients)


def _pose(extrinsics: Any) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(extrinsics.rotation).reshape(3, 3).T  # stored by columns
    matrix[:3, 3] = extrinsics.translation
    return matrix
