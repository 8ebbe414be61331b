"""Laws of videos: whole or absent, close to what went in, and the same bytes every time."""

from pathlib import Path

import numpy as np
import pytest

from pixio_robot.errors import BadInput, DataError
from pixio_robot.video import VideoWriter, filmstrip, read_video


def moving_square(length: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return (length, height, width, 3) uint8: a bright square that travels over a smooth background."""
    images = np.zeros((length, height, width, 3), np.uint8)
    images[..., 2] = np.linspace(40, 120, width).astype(np.uint8)
    for step, image in enumerate(images):
        image[16:32, 2 * step : 2 * step + 16] = (220, 160, 40)
    return images


def write(path: Path, images: np.ndarray, fps: float = 10) -> Path:
    with VideoWriter(path, fps) as video:
        for image in images:
            video.add(image)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    images = moving_square(20)
    again = read_video(write(tmp_path / "videos" / "square.mp4", images))
    assert again.shape == images.shape and again.dtype == np.uint8
    assert np.abs(again.astype(int) - images).mean() < 4  # of 255; chroma is stored at half the resolution


@pytest.mark.parametrize("fps", [12.5, 30])
def test_the_frame_rate_is_kept(tmp_path: Path, fps: float) -> None:
    import av

    with av.open(str(write(tmp_path / "square.mp4", moving_square(5), fps))) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == fps
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_the_index_comes_before_the_frames(tmp_path: Path) -> None:
    data = write(tmp_path / "square.mp4", moving_square(5)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    """Other work between two videos leaves its traces in freed memory, which an encoder must not read."""
    random, written = np.random.default_rng(0), set()
    for size in range(40):
        written.add(write(tmp_path / "square.mp4", moving_square(8)).read_bytes())
        random.integers(0, 255, 1 << (15 + size % 4), np.uint8)
    assert len(written) == 1


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), VideoWriter(tmp_path / "square.mp4", 10) as video:
        video.add(moving_square(1)[0])
        raise KeyError("the simulator broke")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_older_video(tmp_path: Path) -> None:
    path = write(tmp_path / "square.mp4", moving_square(3))
    with pytest.raises(BadInput), VideoWriter(path, 10) as video:
        video.add(moving_square(1)[0])
        video.add(np.zeros((3, 3)))
    assert list(tmp_path.iterdir()) == [path] and len(read_video(path)) == 3


@pytest.mark.parametrize("frames", [0, 2])
def test_a_discarded_video_leaves_nothing(tmp_path: Path, frames: int) -> None:
    video = VideoWriter(tmp_path / "square.mp4", 10)
    for image in moving_square(frames):
        video.add(image)
    video.discard()
    video.discard()
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_harmless_and_adding_after_it_is_an_error(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "square.mp4", 10)
    video.add(moving_square(1)[0])
    assert video.close() == video.close() == tmp_path / "square.mp4"
    video.discard()
    assert video.path.is_file()
    with pytest.raises(BadInput, match="closed"):
        video.add(moving_square(1)[0])


def test_a_video_without_an_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no image"), VideoWriter(tmp_path / "empty.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((31, 32, 3), np.uint8), "even height and width; got 31x32"),
        (np.zeros((32, 33, 3), np.uint8), "even height and width; got 32x33"),
        (np.zeros((32, 32, 3), np.float32), "uint8"),
        (np.zeros((32, 32), np.uint8), "uint8"),
        (np.zeros((32, 32, 3), np.uint8), "one size"),
    ],
)
def test_an_image_that_does_not_fit_is_named(tmp_path: Path, image: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput, match=message), VideoWriter(tmp_path / "square.mp4", 10) as video:
        video.add(moving_square(1)[0])
        video.add(image)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_frame_rate_is_positive(tmp_path: Path, fps: float) -> None:
    with pytest.raises(BadInput, match="fps"):
        VideoWriter(tmp_path / "square.mp4", fps)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no video .*gone\.mp4"):
        read_video(tmp_path / "gone.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be read"):
        read_video(tmp_path / "broken.mp4")


@pytest.mark.parametrize(("length", "count", "shown"), [(9, 3, [0, 4, 8]), (2, 6, [0, 1]), (5, 5, [0, 1, 2, 3, 4])])
def test_a_filmstrip_shows_the_first_and_the_last(length: int, count: int, shown: list[int]) -> None:
    images = np.arange(length, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    strip = filmstrip(images, count)
    assert strip.shape == (4, 6 * len(shown), 3)
    assert strip[0, ::6, 0].tolist() == shown


@pytest.mark.parametrize(("length", "count"), [(0, 3), (3, 0)])
def test_a_filmstrip_of_nothing_is_an_error(length: int, count: int) -> None:
    with pytest.raises(BadInput, match="filmstrip"):
        filmstrip(np.zeros((length, 4, 4, 3), np.uint8), count)
