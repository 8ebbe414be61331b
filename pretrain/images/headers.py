"""The first bytes of an image: what kind it is, how large, and which way up. Nothing is decoded here."""

import struct
from typing import NamedTuple

from ...errors import Unreadable

KINDS = "JPEG, PNG, WebP, BMP, GIF, TIFF"
_SIZELESS = {0xC4, 0xC8, 0xCC}  # JPEG markers between SOF0 and SOF15 that start no frame
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274  # TIFF tags; EXIF is a TIFF directory
_UPRIGHT = 1


class Header(NamedTuple):
    """What an image says of itself."""

    kind: str  # "jpeg", "png", "webp", "bmp", "gif" or "tiff"
    height: int  # as stored [px]
    width: int
    orientation: int  # EXIF: 1 upright, 2 to 8 flipped or turned

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width as seen, the orientation applied [px]."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> Header:
    """Read the header of an encoded image.

    Raises:
        Unreadable: if it is none of the known kinds, is cut short or has no pixels.
    """
    try:
        header = _read(data)
    except (struct.error, IndexError) as error:
        raise Unreadable(f"cut short within its header ({len(data)} bytes)") from error
    if header.height < 1 or header.width < 1:
        raise Unreadable(f"a {header.kind} of {header.width}x{header.height} pixels")
    return header


def _read(data: bytes) -> Header:
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
        return Header("bmp", abs(height), width, _UPRIGHT)  # a negative height is an image stored from the top
    if data[:4] == b"GIF8":
        width, height = struct.unpack_from("<HH", data, 6)
        return Header("gif", height, width, _UPRIGHT)
    if data[:4] in (b"II*\0", b"MM\0*"):
        tags = _tags(data)
        return Header("tiff", tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0), _orientation(tags))
    raise Unreadable(f"no image: it begins with {data[:8]!r}; known are {KINDS}" if data else "an empty file")


def _jpeg(data: bytes) -> Header:
    at, orientation = 2, _UPRIGHT
    while True:
        if data[at] != 0xFF:
            raise Unreadable(f"a JPEG without a marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a body
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _SIZELESS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header("jpeg", height, width, orientation)
        elif marker in (0xD9, 0xDA):
            raise Unreadable("a JPEG without a frame")
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker == 0xE1 and orientation == _UPRIGHT and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _exif(data[at + 10 : at + 2 + length])
            at += 2 + length


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    at, orientation = 8, _UPRIGHT
    while data[at + 4 : at + 8] != b"IEND":  # to the end: decoders differ in what they make of half a PNG
        if at + 12 > len(data):
            raise Unreadable(f"a PNG cut short after {len(data)} bytes")
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"eXIf":
            orientation = _exif(data[at + 8 : at + 8 + length])
        at += 12 + length
    return Header("png", height, width, orientation)


def _webp(data: bytes) -> Header:
    chunk, orientation = data[12:16], _UPRIGHT
    if chunk == b"VP8 ":
        width, height = (each & 0x3FFF for each in struct.unpack_from("<HH", data, 26))
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        at = 12
        while at + 8 <= len(data):
            (length,) = struct.unpack_from("<I", data, at + 4)
            if data[at : at + 4] == b"EXIF":
                orientation = _exif(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
            at += 8 + length + length % 2
    else:
        raise Unreadable(f"a WebP that begins with {chunk!r}")
    return Header("webp", height, width, orientation)


def _exif(data: bytes) -> int:
    try:
        return _orientation(_tags(data))
    except (struct.error, IndexError):  # a damaged note must not cost the image
        return _UPRIGHT


def _orientation(tags: dict[int, int]) -> int:
    value = tags.get(_ORIENTATION, _UPRIGHT)
    return value if 1 <= value <= 8 else _UPRIGHT


def _tags(data: bytes) -> dict[int, int]:
    """Return the first directory's tags that hold one small integer."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    found = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        if length == 1 and kind in (3, 4):  # SHORT, LONG
            (found[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, entry + 8)
    return found
