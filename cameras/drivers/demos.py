"""Demonstrations of any installed data format as a camera."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...datasets.dataset import EpisodeDataset, camera_keys, depth_key, open_dataset, recognised
from ...errors import CameraError, DataError
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame
from ..playback import Playback

_RATE = 20.0  # steps per second, where the data does not record it
_READ = 16  # frames at once


class Demonstrations(Playback):
    """The images of one camera in all demonstrations, one after the other; each demonstration is an episode.

    Args:
        path: the data set, optionally with ``@CAMERA``; the default is its first camera.
        request: `fps` is the rate of the steps.
    """

    needs_argument = True
    reads = "demonstrations"
    has_intrinsics = True
    adjustable = ("fps",)

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        name, _, camera = path.partition("@") if not Path(path).exists() else (path, "", "")
        self.path, self._camera = Path(name), camera
        self._dataset: EpisodeDataset | None = None
        self._key = "rgb"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return recognised(str(path)) is not None

    def start(self) -> CameraSpec:
        dataset = self._dataset = open_dataset(self.path)
        (self._key,) = camera_keys(dataset, [self._camera] if self._camera else [])
        height, width = dataset.features[self._key].shape[:2]
        deep = depth_key(self._key) in dataset.features and self.request.depth
        return CameraSpec(
            name=str(self.path),
            driver="demos",
            live=False,
            color_size=(height, width),
            depth_size=(height, width) if deep else None,
            fps=self.request.fps or dataset.fps or _RATE,
            intrinsics=self._calibration(0)[0],
            frames=dataset.frames,
            details={"camera": self._camera or self._key, "demonstrations": str(len(dataset.lengths))},
        )

    def frames(self) -> Iterator[Frame]:
        dataset = self._dataset
        if dataset is None:
            raise CameraError("the camera is not open")
        rate, row = self.spec.fps or _RATE, 0
        for episode, length in enumerate(dataset.lengths):
            known, pose = self._calibration(episode)
            for step in range(0, int(length), _READ):
                rows = np.arange(row, row + min(_READ, int(length) - step))
                images = dataset.read(self._key, rows)
                depths = dataset.read(depth_key(self._key), rows) if self.spec.depth_size else [None] * len(rows)
                proprio = dataset.read("proprio", rows) if "proprio" in dataset.features else [None] * len(rows)
                for place, (rgb, depth, vector) in enumerate(zip(images, depths, proprio, strict=True)):
                    is_first = step + place == 0
                    frame = rgbd_frame(rgb, depth, known, None, (row + place) / rate, 0, pose, is_first=is_first)
                    yield replace(frame, proprio=vector)
                row += len(rows)

    def stop(self) -> None:
        self._dataset = None

    def _calibration(self, episode: int) -> tuple[Intrinsics | None, np.ndarray | None]:
        """Return the intrinsics and the pose of the camera in an episode; None where they are not recorded."""
        if self._dataset is None:
            raise CameraError("the camera is not open")
        with suppress(DataError):
            known = self._dataset.calibration(self._key, episode)
            height, width = self._dataset.features[self._key].shape[:2]
            return Intrinsics.from_matrix(known.intrinsics, width, height), known.camera_to_world
        return None, None
