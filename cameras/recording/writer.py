"""Writes recordings; `recording` describes their format and reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...errors import BadInput, DataError, UnknownName, closest
from ...files import replacing
from ..camera import CameraSpec
from ..frame import Frame, Intrinsics, to_sensor_units
from .reader import CODECS, DEPTH, FORMAT


class _Track:
    """A lossless video that is being written."""

    def __init__(self, folder: Path, name: str, codec: str, pixels: str, options: dict[str, str]) -> None:
        self._container = av.open(str(folder / name), "w")
        stream: Any = self._container.add_stream(codec, rate=30)
        self._stream = stream
        self._stream.pix_fmt = pixels
        self._stream.options = options
        self._stream.codec_context.thread_count = 1
        self._pixels = pixels
        self.shape: tuple[int, ...] | None = None

    def add(self, values: np.ndarray) -> None:
        if self.shape is None:
            self.shape = values.shape
            self._stream.height, self._stream.width = values.shape[:2]
        if values.shape != self.shape:
            raise BadInput(f"a recording has images of one size; got {values.shape} after {self.shape}")
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=self._pixels)
        self._container.mux(self._stream.encode(image))

    def close(self) -> None:
        if self.shape is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


class RecordingWriter:
    """Writes frames to a folder, complete or not at all: the folder gets its name on `close`.

    Args:
        path: the folder; it must not exist.
        spec: of the camera.
        color: "h264" (smaller) or "png"; both are lossless.

    Raises:
        DataError: if `path` exists, or cannot be created.
        UnknownName: for another `color`.
    """

    def __init__(self, path: Path, spec: CameraSpec, color: str = "h264") -> None:
        if color not in CODECS:
            raise UnknownName(f"no colour codec {color!r}{closest(color, CODECS)}; there are: {', '.join(CODECS)}")
        if path.exists():
            raise DataError(f"{path} exists already; delete it or choose another out=")
        self.path, self.count = path, 0
        self._spec, self._codec = spec, color
        self._folder = path.with_name(f".{path.name}.partial")
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"out={path} cannot be created: {error.strerror}; choose another out=") from error
        self._rows = (self._folder / "frames.jsonl").open("w")
        self._color: _Track | None = None
        self._depth: _Track | None = None
        self._first: dict[str, Any] = {}
        self._open = True

    def add(self, frame: Frame) -> None:
        """Append a frame, with colour, depth or both.

        Raises:
            BadInput: if its images have another size, unit or calibration than the first, or depth does not fit 16
                bits.
        """
        if frame.rgb is not None:
            if self._color is None:
                self._color = _Track(self._folder, *CODECS[self._codec])
            self._calibrate("intrinsics", _listed(frame.intrinsics))
            self._color.add(frame.rgb)
        if frame.depth is not None:
            if self._depth is None:
                self._depth = _Track(self._folder, *DEPTH)
                self._first["unit"] = frame.unit
            if frame.unit != self._first["unit"]:
                raise BadInput(f"the unit of depth changed from {self._first['unit']} to {frame.unit}")
            self._calibrate("depth_intrinsics", _listed(frame.depth_intrinsics))
            pose = None if frame.depth_to_color is None else np.asarray(frame.depth_to_color).tolist()
            self._calibrate("depth_to_color", pose)
            self._depth.add(_halves(frame.depth) if frame.unit is None else to_sensor_units(frame.depth, frame.unit))
        pose = None if frame.camera_to_world is None else np.asarray(frame.camera_to_world).tolist()
        row = {
            "sequence": frame.sequence,
            "sensor_time": frame.sensor_time,
            "depth_time": frame.depth_time,
            "arrival_time": frame.arrival_time,
            "is_first": frame.is_first,
            "rgb": frame.rgb is not None,
            "depth": frame.depth is not None,
            "camera_to_world": pose,
            "proprio": None if frame.proprio is None else np.asarray(frame.proprio, float).tolist(),
        }
        self._rows.write(json.dumps(row) + "\n")
        self.count += 1

    def _calibrate(self, name: str, value: Any) -> None:
        """Keep the first value of a calibration; a frame without one is assumed to have the same."""
        first = self._first.setdefault(name, value)
        if first is None:
            self._first[name] = value
        elif value is not None and value != first:
            raise BadInput(f"a recording has one calibration; {name} changed from {first} to {value}")

    def close(self) -> Path:
        """Finish the folder, give it its name and return its path.

        Raises:
            DataError: if no frame was added; then nothing is written.
        """
        if not self._open:
            return self.path
        if not self.count:
            self.discard()
            raise DataError(f"the camera gave no frame, so there is nothing to record in {self.path}")
        try:
            self._end_files()
            about = {
                "format": FORMAT,
                "camera": self._spec.name,
                "driver": self._spec.driver,
                "details": self._spec.details,
                "fps": self._spec.fps,
                "frames": self.count,
                "color": None if self._color is None else {"codec": self._codec, "size": self._color.shape},
                **self._first,
            }
            with replacing(self._folder / "recording.json") as temporary:
                temporary.write_text(json.dumps(about, indent=1))
            self._folder.rename(self.path)
        except BaseException:
            self.discard()
            raise
        return self.path

    def _end_files(self) -> None:
        self._open = False
        self._rows.close()
        for track in (self._color, self._depth):
            if track is not None:
                track.close()

    def discard(self) -> None:
        """Stop and remove the unfinished folder; does nothing after `close`."""
        try:
            if self._open:
                self._end_files()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _halves(depth: np.ndarray) -> np.ndarray:
    """Return the bits of (H, W) float32 as (2 H, W) uint16: upper halves, then lower ones."""
    bits = np.ascontiguousarray(depth, np.float32).view(np.uint32)
    return np.concatenate([bits >> 16, bits & 0xFFFF]).astype(np.uint16)


def _listed(known: Intrinsics | None) -> dict[str, Any] | None:
    return None if known is None else known._asdict()
