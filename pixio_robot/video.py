"""Episode videos: H.264 files that any browser plays, and filmstrips of them.

Shapes: T frames, H height, W width.
"""

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from .errors import BadInput, DataError
from .files import replacing


class VideoWriter:
    """Writes images to an H.264 mp4 that is complete or absent.

    The file appears under its name on `close`; an exception inside ``with``, or `discard`, leaves no file.

    Args:
        path: the video to write; missing folders are created, an older file is replaced.
        fps: images per second of playback.

    Raises:
        BadInput: if `fps` is not positive and finite.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if not 0 < fps < float("inf"):
            raise BadInput(f"fps must be positive and finite; got {fps}")
        self.path = path
        self.fps = fps
        self._size: tuple[int, int] | None = None  # height, width of the first image
        self._place = replacing(path)
        self._container = av.open(str(self._place.__enter__()), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(float(fps)).limit_denominator(1000))
        self._stream.pix_fmt = "yuv420p"
        # x264's macroblock tree reads uninitialised memory, so that the bytes would differ from run to run
        self._stream.options = {"crf": "23", "preset": "veryfast", "mbtree": "0"}
        self._stream.codec_context.thread_count = 1  # simulators use the other cores; the bytes repeat
        self._open = True

    def add(self, image: np.ndarray) -> None:
        """Append one image.

        Args:
            image: (H, W, 3) uint8 RGB with even H and W; all images of a video have one size.

        Raises:
            BadInput: if the image is not that, or the writer is closed.
        """
        if not self._open:
            raise BadInput(f"{self.path} is closed; open a new VideoWriter to write another video")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise BadInput(f"a video image must be uint8 (H, W, 3); got {image.dtype} {image.shape}")
        height, width = image.shape[:2]
        if height % 2 or width % 2 or not height or not width:
            raise BadInput(f"H.264 needs an even height and width; got {height}x{width}: crop or pad by one pixel")
        if self._size is None:
            self._size = height, width
            self._stream.height, self._stream.width = height, width
        if self._size != (height, width):
            raise BadInput(f"the images of one video have one size; got {height}x{width} after {self._size}")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")))

    def close(self) -> Path:
        """Finish the file and return its path; closing twice is harmless.

        Raises:
            BadInput: if no image was added; nothing is written then.
        """
        if self._open and self._size is None:
            self.discard()
            raise BadInput(f"no image was added to {self.path}, so there is no video to write")
        if self._open:
            try:
                self._container.mux(self._stream.encode())
                self._container.close()
            except BaseException:
                self.discard()
                raise
            self._open = False
            self._place.__exit__(None, None, None)
        return self.path

    def discard(self) -> None:
        """Stop and delete the unfinished file; does nothing after `close`."""
        if not self._open:
            return
        self._open = False
        reason = BadInput(f"{self.path} was discarded")
        try:
            self._container.close()
        finally:
            self._place.__exit__(BadInput, reason, None)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def read_video(path: Path) -> np.ndarray:
    """Return all frames of a video, (T, H, W, 3) uint8 RGB.

    Raises:
        DataError: if the file is missing, damaged or holds no image.
    """
    if not path.is_file():
        raise DataError(f"no video {path}")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: a file without a video stream
        raise DataError(f"{path} cannot be read as a video ({error}); record it again") from error
    if not frames:
        raise DataError(f"{path} holds no frame; record it again")
    return np.stack(frames)


def filmstrip(images: np.ndarray, count: int) -> np.ndarray:
    """Concatenate evenly spaced images horizontally, including the first and the last.

    Args:
        images: (T, H, W, 3).
        count: how many to show; fewer where T is smaller.

    Returns:
        (H, count W, 3), of the type of `images`.

    Raises:
        BadInput: if there is no image, or `count` is below 1.
    """
    if images.ndim != 4 or not len(images):
        raise BadInput(f"a filmstrip needs images (T, H, W, 3) with T of at least 1; got {images.shape}")
    if count < 1:
        raise BadInput(f"a filmstrip shows at least 1 image; got count={count}")
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return np.concatenate(list(images[chosen]), axis=1)
