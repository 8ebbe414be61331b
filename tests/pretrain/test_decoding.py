"""Images of every format decode to the same RGB, and damaged files are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixio_robot.errors import Unreadable
from pixio_robot.pretrain.images.crops import Box, Cropping, center_crop, random_box, random_crop, resized
from pixio_robot.pretrain.images.decoding import decode
from pixio_robot.pretrain.images.headers import read_header


def _image(height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth, so that JPEG hardly changes it, and different in every corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * columns / width, 255 * rows / height
    return np.stack([red, green, (red + green) / 2], axis=-1).astype(np.uint8)


def _encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape and one.dtype == np.uint8
    return float(np.abs(one.astype(float) - other).max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_every_format_decodes_to_the_image(kind: str) -> None:
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = _encode(_image(), kind, **options)
    assert read_header(data).shape == (40, 56)
    assert _distance(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(_image(), kind, exif=exif.tobytes() if kind != "TIFF" else exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert read_header(data).orientation == orientation and read_header(data).shape == expected.shape[:2]
    assert _distance(decode(data), expected) <= 3


def test_orientation_of_a_png_may_follow_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encode(_image())
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    assert read_header(data[:-12] + chunk + data[-12:]).orientation == 6
    assert _distance(decode(data[:-12] + chunk + data[-12:]), np.rot90(_image(), -1)) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning:PIL")
def test_damaged_exif_does_not_cost_the_image() -> None:
    damaged = _encode(_image(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff", quality=100)
    assert read_header(damaged).orientation == 1 and decode(damaged).shape == (40, 56, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cmyk_images_are_rotated_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(Image.fromarray(_image()).convert("CMYK"), "JPEG", exif=exif.tobytes(), quality=100)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert _distance(decode(data), expected) <= 1


def test_unusual_samples_become_rgb() -> None:
    image = _image()
    grey = Image.fromarray(image).convert("L")
    as_rgb = np.asarray(grey.convert("RGB"))
    assert _distance(decode(_encode(grey)), as_rgb) == 0
    assert _distance(decode(_encode(grey, "JPEG", quality=100)), as_rgb) <= 1
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert _distance(decode(_encode(deep)), as_rgb) == 0
    assert _distance(decode(_encode(deep, "TIFF")), as_rgb) == 0
    for mode in ("P", "1"):
        few = Image.fromarray(image).convert(mode)
        assert _distance(decode(_encode(few)), np.asarray(few.convert("RGB"))) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_images_lie_on_white(kind: str) -> None:
    values = np.dstack([_image(), np.full((40, 56), 255, np.uint8)])
    values[:20, :, 3], values[20:30, :, 3] = 0, 51
    seen = decode(_encode(values, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert (seen[:20] == 255).all()
    assert _distance(seen[20:30], (values[20:30, :, :3] * 0.2 + 255 * 0.8).round().astype(np.uint8)) <= 1
    assert _distance(seen[30:], values[30:, :, :3]) == 0


def test_grey_with_transparency_and_palette_with_transparency() -> None:
    grey = np.dstack([np.full((4, 4), 100, np.uint8), np.full((4, 4), 255, np.uint8)])
    grey[0, 0, 1] = 0
    assert decode(_encode(Image.fromarray(grey, "LA")))[0, 0].tolist() == [255] * 3
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(_encode(palette))[0, 0].tolist() == [10, 20, 30]
    assert decode(_encode(palette, transparency=1))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_truncated_image_is_refused(kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = _encode(noise, kind)
    with pytest.raises(Unreadable):
        decode(data[: int(kept * len(data))])


def test_truncated_cmyk_image_is_refused() -> None:
    data = _encode(Image.fromarray(_image()).convert("CMYK"), "JPEG")
    with pytest.raises(Unreadable, match="cut short"):
        decode(data[: len(data) // 2])


def test_extra_bytes_are_ignored() -> None:
    data = _encode(_image(), "JPEG")
    assert _distance(decode(data + b"\0" * 7), decode(data)) == 0
    assert _distance(decode(data[:2] + b"\xff" + data[2:]), decode(data)) == 0  # padding before a marker


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"hello, I am a text file\n", "no image"), (b"\xff\xd8\xff", "header"), (b"BM", "header")],
)
def test_files_that_are_no_images_say_so(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(data)


def test_huge_and_empty_images_are_refused_without_decoding() -> None:
    def png(width: int, height: int) -> bytes:
        chunks = b"\x89PNG\r\n\x1a\n"
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
            chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        return chunks

    with pytest.raises(Unreadable, match="100000x100000 pixels"):
        decode(png(100_000, 100_000))
    with pytest.raises(Unreadable, match="no pixels"):
        decode(png(0, 5))
    with pytest.raises(Unreadable, match="accepted"):
        decode(_encode(_image(), "JPEG"), most_pixels=1000)


def test_one_pixel_is_an_image() -> None:
    for kind in ("PNG", "JPEG"):
        data = _encode(np.full((1, 1, 3), 128, np.uint8), kind)
        assert decode(data).shape == (1, 1, 3)
        crop = random_crop(data, (8, 12), np.random.default_rng(0))
        assert crop.shape == (8, 12, 3) and abs(int(crop.mean()) - 128) <= 2


def test_boxes_follow_the_published_rule() -> None:
    generator = np.random.default_rng(0)
    boxes = [random_box(375, 500, generator) for _ in range(3000)]
    shares = np.array([box.height * box.width / (375 * 500) for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert all(0 <= box.top <= 375 - box.height and 0 <= box.left <= 500 - box.width for box in boxes)
    assert shares.min() > 0.19 and shares.max() <= 1 and 0.45 < shares.mean() < 0.6
    assert ratios.min() > 0.74 and ratios.max() < 1.35 and abs(np.log(ratios).mean()) < 0.05
    assert random_box(1000, 10, generator) == Box(493, 0, 13, 10)  # nothing fits: the centre
    assert random_box(10, 1000, generator) == Box(0, 493, 10, 13)


def test_decoding_smaller_changes_little() -> None:
    image = _image(1600, 2000)
    data = _encode(image, "JPEG", quality=95)
    for seed in range(6):
        small = random_crop(data, (64, 64), np.random.default_rng(seed))
        whole = random_crop(decode(data), (64, 64), np.random.default_rng(seed))
        assert _distance(small, whole) <= 4
    assert decode(data, shrink=9).shape == (200, 250, 3) and decode(data, shrink=1.9).shape == (1600, 2000, 3)


def test_crops_are_those_of_pillow() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for box in (Box(5, 7, 50, 40), Box(20, 20, 9, 12)):
        frame = (box.left, box.top, box.left + box.width, box.top + box.height)
        theirs = Image.fromarray(image).crop(frame).resize((32, 24), Image.Resampling.BICUBIC)
        difference = np.abs(resized(image, box, (24, 32)).astype(float) - np.asarray(theirs))
        assert difference.mean() < 0.5 and difference.max() <= 8


def test_center_crop_keeps_the_centre_and_the_proportions() -> None:
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, 30:60] = 200
    assert (center_crop(image, (30, 30)) == 200).all()
    assert center_crop(image, (16, 48)).shape == (16, 48, 3)
    assert (center_crop(_encode(image), (30, 30)) == 200).all()


def test_flips_are_drawn_only_if_enabled() -> None:
    image = _image()
    whole = Cropping(scale=(1.0, 1.0), ratio=(56 / 40, 56 / 40))
    crops = [random_crop(image, (40, 56), np.random.default_rng(seed), whole) for seed in range(8)]
    assert all((crop == image).all() for crop in crops)
    crops = [random_crop(image, (40, 56), np.random.default_rng(seed), whole._replace(flip=True)) for seed in range(32)]
    flipped = [bool((crop == image[:, ::-1]).all()) for crop in crops]
    assert 4 < sum(flipped) < 28 and all(one or (crop == image).all() for one, crop in zip(flipped, crops, strict=True))
