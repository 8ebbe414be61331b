"""Demonstrations in robomimic's HDF5 layout, read back under the keys of an environment's observation.

On disk: ``data/demo_N`` with ``actions`` (T, A), ``rewards`` (T,), ``dones`` (T,), ``states`` (T, S), ``success`` (T,)
and ``obs/<camera>_image`` (T, H, W, 3) uint8, ``obs/<camera>_depth`` (T, H, W, 1) float32 [m], ``obs/proprio`` (T, P);
``mask/train`` and ``mask/valid`` name the demonstrations of each split.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..envs.registry import EnvRequest, tasks
from ..envs.rendering import Calibration
from ..errors import DataError, UnknownName
from ..files import replacing, require_space, sha256_of

GYM_TYPE = 2  # robomimic's number for a gym-like environment


@dataclass
class Demo:
    """One demonstration in memory."""

    observations: dict[str, np.ndarray]  # keys as on disk, each (T, ...)
    actions: np.ndarray  # (T, A) float32 in [-1, 1]
    rewards: np.ndarray  # (T,)
    success: np.ndarray  # (T,) bool, per step
    score: float  # what its suite counts, 0 to 100
    good: bool  # whether it is fit to learn from
    states: np.ndarray  # (T, S) float64
    seed: int
    start: str  # digest of the first state
    cameras: dict[str, Calibration]


def disk_key(key: str, cameras: Sequence[str]) -> str:
    """Return the name on disk of an observation key.

    >>> disk_key("rgb", ("top_cap2",)), disk_key("depth_side", ("front", "side")), disk_key("proprio", ())
    ('top_cap2_image', 'side_depth', 'proprio')
    """
    kind, _, camera = key.partition("_")
    suffix = {"rgb": "image", "depth": "depth"}.get(kind)
    return key if suffix is None else f"{camera or cameras[0]}_{suffix}"


def depth_key(picture: str) -> str:
    """Return the observation key of the depth of a camera's picture.

    >>> depth_key("rgb"), depth_key("rgb_wrist")
    ('depth', 'depth_wrist')
    """
    return "depth" + picture.removeprefix("rgb")


def write_demo(path: Path, demo: Demo) -> None:
    """Write one demonstration to a file of its own, whole or not at all.

    HDF5 builds it in memory: on a full disk its own writing ends the process, Python's raises.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        _fill_group(file.create_group("demo"), demo)
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)


def _fill_group(group: h5py.Group, demo: Demo) -> None:
    steps = len(demo.actions)
    group.attrs.update(num_samples=steps, seed=demo.seed, start=demo.start, score=demo.score, success=demo.good)
    calibrations = {
        name: {"intrinsics": each.intrinsics.tolist(), "extrinsics": each.camera_to_world.tolist()}
        for name, each in demo.cameras.items()
    }
    group.attrs["camera_info"] = json.dumps(calibrations)
    dones = np.zeros(steps, np.int64)
    dones[-1] = 1
    group.create_dataset("actions", data=demo.actions)
    group.create_dataset("rewards", data=demo.rewards)
    group.create_dataset("dones", data=dones)
    group.create_dataset("success", data=demo.success)
    group.create_dataset("states", data=demo.states)
    for key, values in demo.observations.items():
        if values.ndim == 1 + 2:  # depth: robomimic wants a channel
            values = values[..., None]
        pictures = values.ndim == 4
        options = dict(chunks=(1, *values.shape[1:]), compression="lzf") if pictures else {}
        group.create_dataset(f"obs/{key}", data=values, **options)


def demo_outcome(path: Path) -> bool:
    """Return whether a file by `write_demo` is fit to learn from."""
    with h5py.File(path) as file:
        return bool(file["demo"].attrs["success"])


def merge_demos(
    target: Path,
    train: Sequence[Path],
    valid: Sequence[Path],
    request: EnvRequest,
    cameras: Sequence[str],
    collection: dict[str, Any],
) -> None:
    """Join files by `write_demo` into one robomimic dataset, train demonstrations first.

    `collection` is what was asked for; it is kept beside robomimic's own attributes.

    Raises:
        OSError: before anything is written, if the disk has no room.
    """
    require_space(target, sum(part.stat().st_size for part in [*train, *valid]))
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        names = [f"demo_{index}" for index in range(len(train) + len(valid))]
        for name, part in zip(names, [*train, *valid], strict=True):
            with h5py.File(part) as source:
                source.copy("demo", data, name)
        splits = {"train": names[: len(train)], "valid": names[len(train) :]}
        describe(file, splits, request, cameras, collection)


def describe(
    file: h5py.File, splits: dict[str, list[str]], request: EnvRequest, cameras: Sequence[str], asked: dict[str, Any]
) -> None:
    """Say in a file whose demonstrations are written what was asked for, and which are in which split."""
    data = file["data"]
    environment = {
        "env_name": request.task,
        "type": GYM_TYPE,
        "env_type": GYM_TYPE,
        "env_kwargs": asdict(request),
        "cameras": list(cameras),
    }
    total = sum(int(each.attrs["num_samples"]) for each in data.values())
    data.attrs.update(total=total, env_args=json.dumps(environment), collection=json.dumps(asked))
    for split, members in splits.items():
        if members:
            file.create_dataset(f"mask/{split}", data=np.array(members, dtype="S"))


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
        """Return how the environment was made, to make it again.

        Raises:
            DataError: if another tool recorded the file, or there is no such task here.
        """
        arguments = dict(self.environment.get("env_kwargs") or {})
        added = {"depth_sensor"}  # after the first files were written
        known = {each.name for each in fields(EnvRequest)}
        if not known - added <= set(arguments) <= known:
            raise DataError(f"{self.path} was recorded by another tool; its environment cannot be made here")
        if self.task not in tasks():
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
