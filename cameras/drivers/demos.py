"""Demonstrations in HDF5 (robomimic's layout, as written by `collect`) as a camera."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import CameraError, DataError
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame
from ..playback import Playback
from .file_types import HDF5, starts_with

_RATE = 20.0  # steps per second; the layout does not record it


class Demonstrations(Playback):
    """The images of one camera in all demonstrations, one after the other; each demonstration is an episode.

    Args:
        path: the file, optionally with ``@CAMERA``; the default is its first camera.
        request: `fps` is the rate of the steps.
    """

    needs_argument = True
    reads = "HDF5 demonstrations"
    has_intrinsics = True
    adjustable = ("fps",)

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        name, _, camera = path.partition("@") if not Path(path).exists() else (path, "", "")
        self.path, self._camera = Path(name), camera
        self._file: h5py.File | None = None
        self._names: list[str] = []

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return starts_with(path, HDF5)

    def start(self) -> CameraSpec:
        try:
            self._file = h5py.File(self.path)
            data = self._file["data"]
            self._names = sorted(data, key=lambda name: [int(each) for each in re.findall(r"\d+", name)])
            first = data[self._names[0]]
            cameras = [key.removesuffix("_image") for key in first["obs"] if key.endswith("_image")]
            recorded = json.loads(data.attrs.get("env_args", "{}")).get("cameras") or cameras
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise DataError(f"{self.path} is no file of demonstrations: {error}") from error
        self._camera = self._camera or next((each for each in recorded if each in cameras), "")
        if self._camera not in cameras:
            raise DataError(
                f"{self.path} has no images of camera {self._camera!r}; it has: {', '.join(cameras) or 'none'}"
            )
        size = first[f"obs/{self._camera}_image"].shape[1:3]
        deep = f"{self._camera}_depth" in first["obs"] and self.request.depth
        return CameraSpec(
            name=str(self.path),
            driver="demos",
            live=False,
            color_size=size,
            depth_size=size if deep else None,
            fps=self.request.fps or _RATE,
            intrinsics=_calibration(first, self._camera, size)[0],
            frames=sum(len(data[name]["actions"]) for name in self._names),
            details={"camera": self._camera, "demonstrations": str(len(self._names))},
        )

    def frames(self) -> Iterator[Frame]:
        if self._file is None:
            raise CameraError("the camera is not open")
        rate, count = self.spec.fps or _RATE, 0
        for name in self._names:
            group = self._file["data"][name]
            known, pose = _calibration(group, self._camera, self.spec.color_size or (0, 0))
            for step in range(len(group["actions"])):
                depth = group[f"obs/{self._camera}_depth"][step, ..., 0] if self.spec.depth_size else None
                rgb = group[f"obs/{self._camera}_image"][step]
                frame = rgbd_frame(rgb, depth, known, None, count / rate, 0, pose, is_first=step == 0)
                proprio = group["obs/proprio"][step] if "proprio" in group["obs"] else None
                yield replace(frame, proprio=proprio)
                count += 1

    def stop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _calibration(demo: Any, camera: str, size: tuple[int, int]) -> tuple[Intrinsics | None, np.ndarray | None]:
    """Return the intrinsics and the pose of a demonstration's camera; None where they are not recorded."""
    known = json.loads(demo.attrs.get("camera_info", "{}")).get(camera)
    if known is None:
        return None, None
    return Intrinsics.from_matrix(np.array(known["intrinsics"]), size[1], size[0]), np.array(known["extrinsics"])
