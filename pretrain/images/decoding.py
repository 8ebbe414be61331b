"""Decoding of images to RGB: JPEGs with libjpeg-turbo (simplejpeg), all other formats with OpenCV.

Shapes: H height, W width, C channels.
"""

import math

import cv2
import numpy as np
import simplejpeg

from ...errors import Unreadable
from .headers import Header, read_header

MOST_PIXELS = 178_956_970  # larger images are refused without decoding, as in Pillow: they may be decompression bombs
_BACKGROUND = 255  # behind transparent pixels


def decode(
    data: bytes, *, shrink: float = 1.0, header: Header | None = None, most_pixels: int = MOST_PIXELS
) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8 RGB, with its EXIF orientation applied.

    Grey, palette, 16-bit and CMYK images become 8-bit RGB. Transparent images get a white background. Of an animation
    the first image is used.

    Args:
        data: a complete JPEG, PNG, WebP, BMP, GIF or TIFF file.
        shrink: a JPEG may be returned with sides smaller by up to this factor; decoding at a half, quarter or eighth
            is faster.
        header: result of `read_header` for `data`, if it is known.
        most_pixels: the largest image accepted [px].

    Raises:
        Unreadable: if it is no image, is damaged or cut short, has no pixels or too many.
    """
    header = header or read_header(data)
    if header.height * header.width > most_pixels:
        raise Unreadable(f"{header.width}x{header.height} pixels, more than the {most_pixels} that are accepted")
    if header.kind == "tiff":  # the only format that OpenCV always rotates
        return _other(data, header.kind)
    pixels = _jpeg(data, header, shrink) if header.kind == "jpeg" else _other(data, header.kind)
    return _upright(pixels, header.orientation)


def _jpeg(data: bytes, header: Header, shrink: float) -> np.ndarray:
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        if colours in ("CMYK", "YCCK"):
            return _from_cmyk(simplejpeg.decode_jpeg(data, colorspace="CMYK"))
        if shrink < 2:
            return simplejpeg.decode_jpeg(data)
        least = dict(min_height=math.ceil(header.height / shrink), min_width=math.ceil(header.width / shrink))
        return simplejpeg.decode_jpeg(data, **least, min_factor=2)
    except ValueError as error:  # damage, or a rare kind of JPEG
        if "premature end" in str(error).lower() or b"\xff\xd9" not in data[-1024:]:
            raise Unreadable(f"a JPEG that is cut short or damaged: {error}") from error
        return _other(data, "jpeg")


def _from_cmyk(values: np.ndarray) -> np.ndarray:
    """Convert CMYK (H, W, 4), inverted as all programs write it, to RGB."""
    product = values[..., :3].astype(np.uint16) * values[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _other(data: bytes, kind: str) -> np.ndarray:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the reason is in our error
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Unreadable(f"a {kind} that OpenCV refuses: {error.err}") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None:
        raise Unreadable(f"a {kind} that is cut short or damaged")
    premultiplied = kind == "tiff" and values.dtype == np.uint8  # as libtiff gives them
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise Unreadable(f"a {kind} of {values.dtype} samples; 8 and 16 bits are supported")
    if values.ndim == 2 or values.shape[2] == 1:
        return cv2.cvtColor(values, cv2.COLOR_GRAY2RGB)
    if values.shape[2] == 4:
        return _on_background(cv2.cvtColor(values, cv2.COLOR_BGRA2RGBA), premultiplied)
    return cv2.cvtColor(values, cv2.COLOR_BGR2RGB)


def _on_background(values: np.ndarray, premultiplied: bool) -> np.ndarray:
    """Blend RGBA (H, W, 4) with a white background."""
    opacity = values[..., 3:].astype(np.uint16)
    blend = values[..., :3] * (np.uint16(255) if premultiplied else opacity) + _BACKGROUND * (255 - opacity)
    return ((blend + 127) // 255).astype(np.uint8)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
