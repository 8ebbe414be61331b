"""Recordings of `pixio-robot record`: a folder with lossless colour and depth videos, a row per frame, a calibration.

``color.mkv`` is lossless H.264 in RGB, or ``color.mov`` PNG. ``depth.mkv`` is FFV1 of 16-bit values: the sensor's
integers, or, for a source that measures in metres, the upper and the lower halves of the floats, stacked vertically.
``frames.jsonl`` has times, numbers and poses, ``recording.json`` the rest. Reading gives back what was written, bit for
bit.

Shapes: H height, W width.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...errors import CameraError, DataError
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, metric
from ..playback import Playback

CODECS: dict[str, tuple[str, str, str, dict[str, str]]] = {  # file, encoder, its pixels, options
    "h264": ("color.mkv", "libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast", "mbtree": "0"}),
    "png": ("color.mov", "png", "rgb24", {"compression_level": "1"}),
}
DEPTH = ("depth.mkv", "ffv1", "gray16le", {"level": "3"})
FORMAT = 1


@dataclass
class _Files:
    """An open recording."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]
    containers: dict[str, Any]


class Recording(Playback):
    """A folder written by `pixio-robot record`.

    Args:
        path: the folder.
    """

    numbered = True
    needs_argument = True
    reads = "a recording of `pixio-robot record`"
    has_intrinsics = True

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._files: _Files | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return (path / "recording.json").is_file()

    def start(self) -> CameraSpec:
        try:
            about = json.loads((self.path / "recording.json").read_text())
            lines = (self.path / "frames.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            if about["format"] != FORMAT or len(rows) != about["frames"]:
                raise ValueError(f"{len(rows)} of {about['frames']} rows in format {about['format']}")
            kinds = [kind for kind in ("rgb", "depth") if any(row[kind] for row in rows)]
            names = {"depth": DEPTH[0]}
            if about["color"] is not None:
                names["rgb"] = CODECS[about["color"]["codec"]][0]
            requested = {"rgb": self.request.color, "depth": self.request.depth}
            containers = {kind: av.open(str(self.path / names[kind])) for kind in kinds if requested[kind]}
        except (OSError, ValueError, KeyError, TypeError, av.FFmpegError) as error:
            raise DataError(f"{self.path} is no complete recording: {error}; record it again") from error
        if not containers:
            raise DataError(f"{self.path} holds {' and '.join(kinds) or 'nothing'} only, which was not requested")
        self._files = _Files(about, rows, containers)
        sizes = {kind: (each.streams.video[0].height, each.streams.video[0].width) for kind, each in containers.items()}
        if "depth" in sizes and about["unit"] is None:
            sizes["depth"] = (sizes["depth"][0] // 2, sizes["depth"][1])
        return CameraSpec(
            name=str(self.path),
            driver="recording",
            live=False,
            color_size=sizes.get("rgb"),
            depth_size=sizes.get("depth"),
            fps=about["fps"],
            unit=about.get("unit"),
            intrinsics=_known(about.get("intrinsics")),
            frames=len(rows),
            details={"camera": about["camera"], **about["details"]},
        )

    def frames(self) -> Iterator[Frame]:
        files = self._files
        if files is None:
            raise CameraError("the camera is not open")
        about, pose = files.about, files.about.get("depth_to_color")
        images = {kind: each.decode(video=0) for kind, each in files.containers.items()}
        known, deep = _known(about.get("intrinsics")), _known(about.get("depth_intrinsics"))
        try:
            for row in files.rows:
                rgb = next(images["rgb"]).to_ndarray(format="rgb24") if row["rgb"] and "rgb" in images else None
                depth, valid = None, None
                if row["depth"] and "depth" in images:
                    values = next(images["depth"]).to_ndarray(format="gray16le")
                    depth, valid = metric(_joined(values) if about["unit"] is None else values, about["unit"])
                if rgb is None and depth is None:  # it has only what was not requested
                    continue
                yield Frame(
                    rgb=rgb,
                    depth=depth,
                    valid=valid,
                    intrinsics=None if rgb is None else known,
                    depth_intrinsics=None if depth is None else deep,
                    depth_to_color=None if depth is None or pose is None else np.array(pose),
                    unit=None if depth is None else about["unit"],
                    camera_to_world=None if row["camera_to_world"] is None else np.array(row["camera_to_world"]),
                    sensor_time=row["sensor_time"] if rgb is not None or depth is None else row["depth_time"],
                    depth_time=row["depth_time"],
                    sequence=row["sequence"],
                    is_first=row["is_first"],
                    proprio=None if row["proprio"] is None else np.array(row["proprio"], np.float32),
                )
        except (av.FFmpegError, StopIteration) as error:
            raise DataError(
                f"{self.path} is damaged: {str(error) or 'its videos are shorter than its rows'}"
            ) from error

    def stop(self) -> None:
        files, self._files = self._files, None
        for container in () if files is None else files.containers.values():
            container.close()


def _joined(halves: np.ndarray) -> np.ndarray:
    upper, lower = np.split(halves.astype(np.uint32), 2)
    return ((upper << 16) | lower).view(np.float32)


def _known(values: dict[str, Any] | None) -> Intrinsics | None:
    return None if values is None else Intrinsics(**{**values, "coefficients": tuple(values["coefficients"])})
