"""What a camera sees, for people: colour over depth in strips, videos and rerun streams.

Shapes: H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import BadInput, MissingExtra
from ..files import replacing
from ..video import VideoWriter, filmstrip
from .frame import Frame
from .geometry import points

_UNKNOWN = (180, 180, 180)  # what invalid depth looks like
_CLOUD = 20_000  # points of a cloud, at most


def depth_span(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the distances between which most depth of some frames lies [m]."""
    seen = [frame.depth[frame.depth > 0][::7] for frame in frames if frame.depth is not None]
    values = np.concatenate(seen) if seen else np.zeros(0)
    if not values.size:
        return 0.1, 1.0
    near, far = (float(each) for each in np.percentile(values, (1, 99)))
    return near, max(far, near * 1.01)


def colourised(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Return depth as colours, (H, W, 3) uint8: near warm, far cold, even in inverse depth; unknown grey.

    Args:
        depth: (H, W) [m], 0 where unknown.
        near, far: distances at the ends of the scale [m].

    Raises:
        BadInput: unless 0 < near < far.
    """
    if not 0 < near < far:
        raise BadInput(f"near={near}, far={far}: distances must be positive and far the larger one [m]")
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape, np.float32), where=depth > 0)
    shade = np.clip((inverse - 1 / far) / (1 / near - 1 / far), 0, 1)
    image = cv2.cvtColor(cv2.applyColorMap((255 * shade).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    image[depth <= 0] = _UNKNOWN
    return image


def tile(frame: Frame, near: float, far: float) -> np.ndarray:
    """Return a frame's colour above its depth, (2 H, W, 3) uint8, or the one it has."""
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
    """Write evenly spaced tiles side by side as a PNG, whole or not at all."""
    data = cv2.imencode(".png", cv2.cvtColor(filmstrip(np.stack(tiles), count), cv2.COLOR_RGB2BGR))[1]
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_film(path: Path, tiles: Sequence[np.ndarray], fps: float) -> None:
    """Write tiles as an H.264 video, whole or not at all."""
    with VideoWriter(path, fps) as writer:
        for each in tiles:
            writer.add(each)


class RerunStream:
    """Sends frames to rerun: colour, depth in metres with its camera, and where it can a coloured cloud of points.

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
        """Write out what is left."""
        self._stream.flush()
        self._stream.disconnect()
