"""Demonstrations read back under the keys of an environment's observation; `envs.demo_file` writes them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..envs.demo_file import disk_key
from ..envs.registry import EnvRequest, tasks
from ..envs.rendering import Calibration
from ..errors import DataError, UnknownName
from ..files import sha256_of


def depth_key(picture: str) -> str:
    """Return the observation key of the depth of a camera's picture.

    >>> depth_key("rgb"), depth_key("rgb_wrist")
    ('depth', 'depth_wrist')
    """
    return "depth" + picture.removeprefix("rgb")


class DemoSet:
    """A read-only view of a demonstration file.

    Raises:
        DataError: if the file is missing or not in robomimic's layout.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(
                f"no demonstrations at {self.path}; make them with: pixio-robot collect task=... out={path}"
            )
        try:
            with h5py.File(self.path) as file:
                data = file["data"]
                self.names = sorted(data, key=lambda name: int(name.removeprefix("demo_")))
                self.lengths = np.array([int(data[name].attrs["num_samples"]) for name in self.names])
                self.environment: dict[str, Any] = json.loads(data.attrs["env_args"])
                self.collection: dict[str, Any] = json.loads(data.attrs.get("collection", "{}"))
                self.seeds = [int(data[name].attrs.get("seed", -1)) for name in self.names]
                self.starts = [str(data[name].attrs.get("start", "")) for name in self.names]
                self.disk_keys = sorted(data[self.names[0]]["obs"])
                self._splits = {
                    split: [name.decode() for name in file[f"mask/{split}"][:]] for split in file.get("mask", {})
                }
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise DataError(f"{self.path} is not a demonstration file in robomimic's layout: {error}") from error

    @property
    def task(self) -> str:
        """Return the task's name."""
        return str(self.environment["env_name"])

    @property
    def request(self) -> EnvRequest:
        """Return how the environment was made, to make it again; a robot's recording says what was observed.

        Raises:
            DataError: if another tool recorded the file, or there is no such task here and no robot recorded it.
        """
        arguments = dict(self.environment.get("env_kwargs") or {})
        if set(arguments) != {each.name for each in fields(EnvRequest)}:
            raise DataError(f"{self.path} was recorded by another tool; its environment cannot be made here")
        if self.task not in tasks() and "robot" not in self.environment:
            raise DataError(f"{self.path} is of {self.task}, which cannot be simulated here; it can be embedded only")
        arguments["observe"] = tuple(arguments["observe"])
        arguments["cameras"] = tuple(arguments["cameras"])
        return EnvRequest(**arguments)

    def pictures(self, cameras: Sequence[str], depth: str = "none") -> tuple[str, ...]:
        """Return the observation keys of cameras' pictures; no camera means the first that was recorded.

        Args:
            depth: "channels" adds their depth; other fusions do not, but want it to be there.

        Raises:
            UnknownName: for a camera that was not recorded.
            DataError: if depth is wanted and was not recorded.
        """
        recorded = self.environment.get("cameras") or []
        if unknown := [camera for camera in cameras if camera not in recorded]:
            raise UnknownName(f"{self.path} has no camera {', '.join(unknown)}; it has: {', '.join(recorded)}")
        pictures = tuple("rgb" if camera == recorded[0] else f"rgb_{camera}" for camera in cameras) or ("rgb",)
        depths = () if depth == "none" else tuple(depth_key(key) for key in pictures)
        for key in depths:
            if disk_key(key, recorded) not in self.disk_keys:
                raise DataError(f"{self.path} holds no {key!r}; record it with: pixio-robot collect obs=rgbd")
        return pictures + (depths if depth == "channels" else ())

    def calibration(self, picture: str) -> Calibration:
        """Return the camera of pictures such as "rgb", which stood still.

        Raises:
            DataError: if it is not known, or was not the same in all demonstrations.
        """
        recorded = self.environment.get("cameras") or []
        camera = disk_key(picture, recorded or ("",)).removesuffix("_image")
        found: list[Calibration] = []
        with self._open() as data:
            for name in self.names:
                known = json.loads(data[name].attrs.get("camera_info", "{}")).get(camera)
                if known is None:
                    raise DataError(f"{self.path} does not tell the calibration of camera {camera!r}")
                found.append(Calibration(np.array(known["intrinsics"]), np.array(known["extrinsics"])))
        for each in found[1:]:
            if not all(np.allclose(one, other) for one, other in zip(each, found[0], strict=True)):
                raise DataError(
                    f"camera {camera!r} of {self.path} was moved between demonstrations; points need one place"
                )
        return found[0]

    @property
    def widths(self) -> dict[str, int]:
        """Return the width of an action and of each observation that is a vector."""
        with self._open() as data:
            first = data[self.names[0]]
            vectors = {key: first[f"obs/{key}"] for key in self.disk_keys if first[f"obs/{key}"].ndim == 2}
            return {key: int(each.shape[1]) for key, each in {**vectors, "actions": first["actions"]}.items()}

    @property
    def frame_starts(self) -> np.ndarray:
        """Return, for each frame of the concatenated demonstrations, the row its own starts at; (F,) int64."""
        firsts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        return np.repeat(firsts, self.lengths)

    def members(self, split: str) -> list[str]:
        """Return the names of a split's demonstrations; all for split "train" where the file has no masks."""
        return self._splits.get(split, self.names if split == "train" else [])

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of a split's frames, (n,) int64."""
        members = set(self.members(split))
        keep = np.array([name in members for name in self.names])
        return np.flatnonzero(np.repeat(keep, self.lengths))

    def read(self, key: str) -> np.ndarray:
        """Return one dataset of all demonstrations, (F, ...): "actions", "rewards", or an observation key.

        Meant for what fits in memory; pictures come through `batches`.
        """
        with self._open() as data:
            where = key if key in ("actions", "rewards", "success", "states") else f"obs/{self._disk_key(key, data)}"
            if any(where not in data[name] for name in self.names):
                raise DataError(f"{self.path} has no {key!r} in all of its demonstrations")
            return np.concatenate([data[name][where][:] for name in self.names])

    def batches(self, key: str, first: int, size: int) -> Iterator[np.ndarray]:
        """Yield an observation's frames from row `first` on, at most `size` at a time, never across demonstrations."""
        with self._open() as data:
            where = f"obs/{self._disk_key(key, data)}"
            begin = 0
            for name, length in zip(self.names, self.lengths, strict=True):
                for row in range(max(first - begin, 0), length, size):
                    yield data[name][where][row : row + size]
                begin += length

    def frames(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Return an observation's frames at `rows` (n,), in this order."""
        ends = np.cumsum(self.lengths)
        with self._open() as data:
            where = f"obs/{self._disk_key(key, data)}"
            members = np.searchsorted(ends, rows, side="right")
            begins = ends[members] - self.lengths[members]
            found = zip(members, rows - begins, strict=True)
            return np.stack([data[self.names[member]][where][row] for member, row in found])

    def sha256(self) -> str:
        """Return the hash of the file's bytes."""
        return sha256_of(self.path)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with h5py.File(self.path) as file:
            yield file["data"]

    def _disk_key(self, key: str, data: Any) -> str:
        cameras = self.environment.get("cameras") or [self.disk_keys[0].rpartition("_")[0]]
        name = disk_key(key, cameras)
        if name not in self.disk_keys:
            raise DataError(f"{self.path} has no observation {key!r} ({name}); it has: {', '.join(self.disk_keys)}")
        return name
