"""Visualisation of a camera: colour above depth in strips, videos and rerun streams.

Shapes: H height, W width.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import BadInput, DataError, MissingExtra
from ...files import replacing
from ...progress import stage
from ...video import VideoWriter, filmstrip
from ..camera import Camera
from ..frame import Frame
from ..geometry import points, registered

log = logging.getLogger(__name__)

_INVALID = (180, 180, 180)  # colour of invalid depth
_CLOUD = 20_000  # largest number of points in a cloud
_SCALE_FRAMES = 5  # frames that set the scale of depth


def depth_span(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the first and the 99th percentile of the depth of some frames [m]."""
    seen = [frame.depth[frame.depth > 0][::7] for frame in frames if frame.depth is not None]
    values = np.concatenate(seen) if seen else np.zeros(0)
    if not values.size:
        return 0.1, 1.0
    near, far = (float(each) for each in np.percentile(values, (1, 99)))
    return near, max(far, near * 1.01)


def colourised(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Return depth as colours, (H, W, 3) uint8: near is warm, far is cold, linear in inverse depth; invalid is grey.

    Args:
        depth: (H, W) [m], 0 where invalid.
        near, far: distances at the ends of the scale [m].

    Raises:
        BadInput: unless 0 < near < far.
    """
    if not 0 < near < far:
        raise BadInput(f"near={near}, far={far}: distances must be positive, and far the larger one [m]")
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape, np.float32), where=depth > 0)
    shade = np.clip((inverse - 1 / far) / (1 / near - 1 / far), 0, 1)
    image = cv2.cvtColor(cv2.applyColorMap((255 * shade).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    image[depth <= 0] = _INVALID
    return image


def tile(frame: Frame, near: float, far: float) -> np.ndarray:
    """Return a frame's colour above its depth, (2 H, W, 3) uint8, or the one that it has."""
    parts = [] if frame.rgb is None else [frame.rgb]
    if frame.depth is not None:
        drawn = colourised(frame.depth, near, far)
        if parts and drawn.shape[1] != parts[0].shape[1]:
            width = parts[0].shape[1]
            size = (width, round(drawn.shape[0] * width / drawn.shape[1]))
            drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_NEAREST)
        parts.append(drawn)
    image = np.concatenate(parts)
    return np.pad(image, ((0, len(image) % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def write_strip(path: Path, tiles: Sequence[np.ndarray], count: int) -> None:
    """Write evenly spaced tiles side by side as a PNG, completely or not at all."""
    data = cv2.imencode(".png", cv2.cvtColor(filmstrip(np.stack(tiles), count), cv2.COLOR_RGB2BGR))[1]
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_tile_video(path: Path, tiles: Sequence[np.ndarray], fps: float) -> None:
    """Write tiles as an H.264 video, completely or not at all."""
    with VideoWriter(path, fps) as writer:
        for each in tiles:
            writer.add(each)


class RerunStream:
    """Sends frames to rerun: colour, depth in metres with its camera, and a point cloud (coloured if registered).

    Args:
        path: a .rrd file to write, or None to open a viewer.

    Raises:
        MissingExtra: if the package rerun-sdk is not installed.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            import rerun
        except ImportError as error:
            raise MissingExtra("a rerun stream", "viz") from error
        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream("pixio-robot")
        if path is None:
            self._stream.spawn()
        else:
            self._stream.save(str(path))

    def add(self, frame: Frame) -> None:
        """Send one frame at its sensor time."""
        rr, stream = self._rerun, self._stream
        stream.set_time("camera", duration=frame.sensor_time)
        stream.set_time("frame", sequence=frame.sequence)
        for place, known, values in (
            ("camera/color", frame.intrinsics, frame.rgb),
            ("camera/depth", frame.depth_intrinsics, frame.depth),
        ):
            if values is None:
                continue
            if known is not None:
                stream.log(place, rr.Pinhole(image_from_camera=known.matrix, width=known.width, height=known.height))
            stream.log(place, rr.Image(values) if values.ndim == 3 else rr.DepthImage(values, meter=1.0))
        if frame.depth is not None and frame.depth_intrinsics is not None:
            cloud = points(frame.depth, frame.depth_intrinsics)[frame.depth > 0]
            step = max(1, len(cloud) // _CLOUD)
            together = frame.rgb is not None and frame.is_registered
            colors = frame.rgb[frame.depth > 0][::step] if together and frame.rgb is not None else None
            stream.log("camera/cloud", rr.Points3D(cloud[::step], colors=colors))

    def close(self) -> None:
        """Flush and end the stream."""
        self._stream.flush()
        self._stream.disconnect()


@dataclass(frozen=True)
class ViewOptions:
    """What to show of a camera."""

    frames: int = 60  # largest number of frames
    every: int = 1  # show every n-th frame
    strip: int = 6  # images in a strip
    register: bool = True  # transform depth to the colour image, if the geometry is known
    near: float | None = None  # distance at the warm end of the scale [m]; None is that of the first frames
    far: float | None = None  # at the cold end [m]


def view_camera(camera: Camera, out: Path | None, options: ViewOptions = ViewOptions()) -> int:
    """Write a strip (.png), a video (.mp4) or a rerun stream (.rrd) of a camera; return the number of frames.

    Args:
        camera: open or not; it is closed afterwards.
        out: the file, or None to open a rerun viewer.

    Raises:
        BadInput: for another kind of file.
        DataError: if the camera gives no frame.
        MissingExtra: if rerun is needed and not installed.
    """
    if out is not None and out.suffix not in (".png", ".mp4", ".rrd"):
        raise BadInput(f"out={out}: give a .png for a strip, an .mp4 for a video or an .rrd for rerun")
    with camera:
        frames = _selected(camera, options)
        if out is None:
            return _stream(RerunStream(None), frames)
        if out.suffix == ".rrd":
            with replacing(out) as temporary:
                return _stream(RerunStream(temporary), frames)
        first = list(islice(frames, _SCALE_FRAMES))
        near, far = depth_span(first)
        tiles = [tile(frame, options.near or near, options.far or far) for frame in chain(first, frames)]
        name, rate = camera.spec.name, (camera.spec.fps or 30.0) / options.every
    if not tiles:
        raise DataError(f"{name} gave no frame to show")
    if out.suffix == ".mp4":
        write_tile_video(out, tiles, rate)
    else:
        write_strip(out, tiles, options.strip)
    return len(tiles)


def _selected(camera: Camera, options: ViewOptions) -> Iterator[Frame]:
    """Yield the frames to show, registered if requested and possible."""
    warned = False
    with stage(f"view {camera.spec.name}", options.frames) as bar:
        for number, frame in enumerate(camera):
            if number % options.every:
                continue
            if number // options.every >= options.frames:
                return
            bar.advance(1)
            try:
                yield (registered(frame) if options.register else frame).copy()
            except BadInput as error:
                if not warned:
                    log.warning("%s; it is shown unregistered", error)
                warned = True
                yield frame.copy()


def _stream(stream: RerunStream, frames: Iterator[Frame]) -> int:
    count = 0
    try:
        for frame in frames:
            stream.add(frame)
            count += 1
    finally:
        stream.close()
    return count
