"""Format, size and orientation of an encoded image, read by Pillow without decoding pixels."""

import io
from contextlib import suppress
from typing import Any, NamedTuple

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.ExifTags import Base as Tag
from PIL.Image import Exif

from ...errors import Unreadable

_READERS: dict[str, tuple[Any, ...]] = {  # kind: reader, first bytes; `Image.open` warns about large sizes
    "jpeg": (JpegImagePlugin.JpegImageFile, b"\xff\xd8\xff"),
    "png": (PngImagePlugin.PngImageFile, b"\x89PNG\r\n\x1a\n"),
    "webp": (WebPImagePlugin.WebPImageFile, b"RIFF"),
    "bmp": (BmpImagePlugin.BmpImageFile, b"BM"),
    "gif": (GifImagePlugin.GifImageFile, b"GIF8"),
    "tiff": (TiffImagePlugin.TiffImageFile, b"II*\0", b"MM\0*"),
}


class Header(NamedTuple):
    """Format, size and orientation of an encoded image."""

    kind: str  # "jpeg", "png", "webp", "bmp", "gif" or "tiff"
    height: int  # as stored [px]
    width: int
    orientation: int  # EXIF: 1 upright, 2 to 8 flipped or rotated

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width with the orientation applied [px]."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> Header:
    """Read the header of an encoded image.

    Raises:
        Unreadable: if the format is unknown, the header is damaged or cut short, or the image has no pixels.
    """
    kind = next((kind for kind, (_, *prefixes) in _READERS.items() if data.startswith(tuple(prefixes))), None)
    if kind is None:
        known = ", ".join(_READERS)
        raise Unreadable(f"no image: it begins with {data[:8]!r}; known are {known}" if data else "an empty file")
    if kind == "png" and b"\0\0\0\0IEND" not in data:  # decoders differ in what they return for half a PNG
        raise Unreadable(f"a PNG cut short after {len(data)} bytes")
    try:
        image = _READERS[kind][0](io.BytesIO(data))
    except Exception as error:  # Pillow's parsers raise many types for damage
        reason = str(error) or type(error).__name__
        raise Unreadable(f"a {kind} whose header is damaged, cut short or of no pixels: {reason}") from error
    if kind == "tiff":  # the file is one EXIF block; Pillow has applied the orientation to `image.size`
        tags, width, height = image.tag_v2, image.tag_v2[Tag.ImageWidth], image.tag_v2[Tag.ImageLength]
    else:
        tags, (width, height) = Exif(), image.size
        with suppress(Exception):  # a damaged EXIF block must not cost the image; a PNG's may follow the pixels
            tags.load(image.info.get("exif") or (data.partition(b"eXIf")[2] if kind == "png" else b""))
    orientation = tags.get(Tag.Orientation)
    return Header(kind, height, width, orientation if orientation in range(1, 9) else 1)
