"""Images in ROS recordings (ROS 1 bags, also RealSense's; ROS 2 folders, .db3 and .mcap files), read by rosbags.

Shapes: H height, W width.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .errors import DataError, MissingExtra, Unreadable

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_COLOURS: dict[str, tuple[int, int | None]] = {  # bytes per pixel, and the OpenCV conversion to RGB
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
_DEPTHS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}  # RealSense's older bags call their depth mono16


def open_recording(path: Path) -> "AnyReader":
    """Open a recording; close the reader when done.

    Raises:
        MissingExtra: if the package rosbags is not installed.
        DataError: if it is not a recording, or damaged.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise MissingExtra("reading ROS bags", "recordings") from error
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))  # for bags without types
        reader.open()
    except Exception as error:  # rosbags' parsers raise many types for damaged files
        raise DataError(f"{path} cannot be read as a recording: {error or type(error).__name__}") from error
    return reader


def is_colour(message: Any) -> bool:
    """Return whether an Image or CompressedImage holds colour."""
    if hasattr(message, "encoding"):
        return message.encoding in _COLOURS
    said = message.format.lower()  # "jpeg", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth png"
    return not any(word in said for word in ("depth", "mono", "16uc1", "32fc1"))


def is_depth(message: Any) -> bool:
    """Return whether an Image or CompressedImage holds 16-bit or float values."""
    if hasattr(message, "encoding"):
        return message.encoding in _DEPTHS
    return "compresseddepth" in message.format.lower()


def colour_image(message: Any) -> bytes | np.ndarray:
    """Return an Image as (H, W, 3) uint8 RGB, a CompressedImage as the bytes of its file.

    Raises:
        Unreadable: for an unknown encoding, or too few bytes.
    """
    if not hasattr(message, "encoding"):
        return message.data.tobytes()
    if message.encoding not in _COLOURS:
        raise Unreadable(f"encoding {message.encoding!r}; known are {', '.join(_COLOURS)}")
    channels, code = _COLOURS[message.encoding]
    values = _rows(message, channels).reshape(message.height, message.width, channels)
    return np.ascontiguousarray(values) if code is None else cv2.cvtColor(np.ascontiguousarray(values), code)


def depth_image(message: Any) -> np.ndarray:
    """Return depth (H, W) as recorded: uint16 in the sensor's unit, or float32 [m].

    Compressed depth of floats holds inverse distances; compressed_depth_image_transport's two numbers decode them.

    Raises:
        Unreadable: for an unknown encoding, or damage.
    """
    if not hasattr(message, "encoding"):
        return _compressed_depth(message)
    if message.encoding not in _DEPTHS:
        raise Unreadable(f"encoding {message.encoding!r}; known are {', '.join(_DEPTHS)}")
    kind = np.dtype(_DEPTHS[message.encoding])
    values = np.ascontiguousarray(_rows(message, kind.itemsize)).view(
        kind.newbyteorder(">" if message.is_bigendian else "<")
    )
    return values.reshape(message.height, message.width).astype(kind)


def _rows(message: Any, channels: int) -> np.ndarray:
    if message.data.size < message.height * message.step or message.step < message.width * channels:
        raise Unreadable(f"{message.data.size} bytes for {message.width}x{message.height} {message.encoding}")
    rows = message.data[: message.height * message.step].reshape(message.height, message.step)
    return rows[:, : message.width * channels]


def _compressed_depth(message: Any) -> np.ndarray:
    data = message.data.tobytes()
    values = cv2.imdecode(np.frombuffer(data[12:], np.uint8), cv2.IMREAD_UNCHANGED) if len(data) > 12 else None
    if values is None or values.ndim != 2:
        raise Unreadable(f"compressed depth of format {message.format!r} that OpenCV cannot decode")
    if "32fc1" not in message.format.lower():
        return values
    _, scale, shift = struct.unpack("<iff", data[:12])
    known = values > 0
    return np.divide(scale, values - np.float32(shift), out=np.zeros(values.shape, np.float32), where=known)
