"""Demonstrations in robomimic's HDF5 layout: ours, robomimic's own, and those of tools that write the same.

``data/demo_N`` holds ``actions`` (T, A) and ``obs/<name>``; ``mask/<split>`` names the demonstrations of each split.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..calibration import Calibration
from ..errors import DataError
from .dataset import EpisodeDataset, Feature, KeyMap
from .fingerprint import fingerprint_of
from .writer import disk_key

_MAGIC = b"\x89HDF\r\n\x1a\n"
_PER_STEP = {"actions": "action", "rewards": "reward", "success": "success"}  # beside obs/: on disk -> feature
_FIRST_CAMERA = ("agentview", "front")  # robomimic's usual names of the camera that sees the scene
_PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # robomimic's default low-dimensional keys


class RobomimicDataset(EpisodeDataset):
    """A read-only view of a file in robomimic's layout.

    Images are the arrays ``obs/<camera>_image``. The default camera is the first one of ``env_args``'s ``cameras``,
    else ``agentview`` or ``front``, else the first by name. Proprioception is ``obs/proprio``, else robomimic's
    end-effector pose and gripper position.

    Args:
        source: the file.
        keys: feature -> dataset of a demonstration or below its ``obs/``, or several that are joined.

    Raises:
        DataError: if the file is missing or in another layout.
    """

    @classmethod
    def recognises(cls, source: str) -> bool:
        """Return whether `source` is an HDF5 file."""
        path = Path(source)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC

    def __init__(self, source: str | Path, keys: KeyMap | None = None) -> None:
        self.source, self.path = str(source), Path(source)
        if not self.path.is_file():
            raise DataError(
                f"no demonstrations at {self.path}; make them with: pixio-robot collect task=... out={source}"
            )
        try:
            with h5py.File(self.path) as file:
                self._read_layout(file, keys or {})
        except (OSError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path} is not a demonstration file in robomimic's layout: {error}") from error

    def _read_layout(self, file: h5py.File, keys: KeyMap) -> None:
        data = file["data"]
        self.names = sorted(data, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
        lengths = [int(data[name].attrs.get("num_samples", len(data[name]["actions"]))) for name in self.names]
        self.lengths = np.array(lengths, np.int64)
        self._splits = {split: [name.decode() for name in file[f"mask/{split}"][:]] for split in file.get("mask", {})}
        first = data[self.names[0]]
        self._on_disk = sorted(first["obs"]) if "obs" in first else []
        environment: dict[str, Any] = json.loads(data.attrs.get("env_args", "{}"))
        robot = environment.get("robot") or {}
        cameras = list(environment.get("cameras") or self._guessed_cameras())
        self.fps = float(robot["control_hz"]) if "control_hz" in robot else None
        self.provenance = {
            "task": environment.get("env_name", ""),
            "environment": environment.get("env_kwargs") or {},
            "cameras": cameras,
            "robot": environment.get("robot"),
            "collection": json.loads(data.attrs.get("collection", "{}")),
            "seeds": [int(data[name].attrs.get("seed", -1)) for name in self.names],
            "initial_states": [_initial_state(data[name].attrs) for name in self.names],
        }
        self._sources = self._guess(cameras, first) | {key: _listed(value, first) for key, value in keys.items()}
        self.features = {}
        for key, sources in self._sources.items():
            missing = [each for each in sources if each not in first]
            if missing:
                known = [*(name for name in first if name != "obs"), *self._on_disk]
                raise DataError(f"{self.path} has no {', '.join(missing)} for {key!r}; it has: {', '.join(known)}")
            try:
                self.features[key] = _feature(key, [first[each] for each in sources])
            except DataError as error:
                raise DataError(f"{self.path}: {error}") from error

    def _guess(self, cameras: list[str], first: h5py.Group) -> dict[str, tuple[str, ...]]:
        """Return which datasets of a demonstration are which feature."""
        found: dict[str, tuple[str, ...]] = {}
        for camera in cameras:
            for kind in ("rgb", "depth"):
                key = kind if camera == cameras[0] else f"{kind}_{camera}"
                if disk_key(key, cameras) in self._on_disk:
                    found[key] = (f"obs/{disk_key(key, cameras)}",)
        images = {name for sources in found.values() for name in sources}
        if "proprio" not in self._on_disk and all(each in self._on_disk for each in _PROPRIO):
            found["proprio"] = tuple(f"obs/{each}" for each in _PROPRIO)
        for name in self._on_disk:
            if f"obs/{name}" not in images and not name.endswith(("_image", "_depth")):
                found[name] = (f"obs/{name}",)
        return found | {feature: (name,) for name, feature in _PER_STEP.items() if name in first}

    def _guessed_cameras(self) -> list[str]:
        cameras = [name.removesuffix("_image") for name in self._on_disk if name.endswith("_image")]
        first = next((camera for camera in _FIRST_CAMERA if camera in cameras), None)
        return cameras if first is None else [first, *(each for each in cameras if each != first)]

    @cached_property
    def fingerprint(self) -> str:
        """The hash of the file's bytes."""
        return fingerprint_of(self.path)

    def split(self, name: str) -> np.ndarray:
        """Return the episodes of a split; all are "train" where the file has no masks."""
        members = set(self._splits.get(name, self.names if name == "train" else []))
        return np.array([index for index, each in enumerate(self.names) if each in members], np.int64)

    def read(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Return a feature at rows of all frames, (n, ...)."""
        feature = self.feature(key)
        rows = np.asarray(rows, np.int64)
        ends = np.cumsum(self.lengths)
        members = np.searchsorted(ends, rows, side="right")
        offsets = rows - (ends[members] - self.lengths[members]) if len(rows) else rows
        found = np.empty((len(rows), *feature.shape), feature.dtype)
        with self._open() as data:
            for member in np.unique(members):
                at = np.flatnonzero(members == member)
                demo = data[self.names[member]]
                parts = []
                for name in self._sources[key]:
                    if name not in demo:
                        raise DataError(f"{self.path} has no {key!r} ({name}) in demonstration {self.names[member]}")
                    parts.append(_rows(demo[name], offsets[at]))
                found[at] = _joined(parts, feature)
        return found

    def calibration(self, key: str, episode: int | None = None) -> Calibration:
        """Return the calibration of the camera behind an image feature."""
        self.feature(key)
        camera = self._sources[key][0].removeprefix("obs/").removesuffix("_image")
        found: list[Calibration] = []
        with self._open() as data:
            for name in self.names if episode is None else [self.names[episode]]:
                known = json.loads(data[name].attrs.get("camera_info", "{}")).get(camera)
                if known is None:
                    raise DataError(f"{self.path} does not hold the calibration of camera {camera!r}")
                found.append(Calibration(np.array(known["intrinsics"]), np.array(known["extrinsics"])))
        for each in found[1:]:
            if not all(np.allclose(one, other) for one, other in zip(each, found[0], strict=True)):
                raise DataError(
                    f"camera {camera!r} of {self.path} was moved between demonstrations; points need one fixed camera"
                )
        return found[0]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with h5py.File(self.path) as file:
            yield file["data"]


def _initial_state(attributes: Any) -> str:
    """Return the hash of a demonstration's initial state, "" where it has none; older files call it ``start``."""
    return str(attributes.get("initial_state_hash", attributes.get("start", "")))


def _listed(value: str | Sequence[str], first: h5py.Group) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    return tuple(f"obs/{name}" if f"obs/{name}" in first else name for name in names)


def _feature(key: str, arrays: list[h5py.Dataset]) -> Feature:
    shape, dtype = arrays[0].shape[1:], arrays[0].dtype
    if key.startswith("rgb"):
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise DataError(f"{arrays[0].name} is {dtype} {shape}; images must be uint8 (H, W, 3)")
        return Feature("image", shape, "uint8")
    if key.startswith("depth") and len(shape) in (2, 3):
        return Feature("depth", shape[:2], "float32", unit="m")
    width = sum(int(np.prod(each.shape[1:])) for each in arrays)
    if key in ("reward", "success"):
        return Feature("vector", (), str(dtype))
    return Feature("vector", (width,), "float32" if dtype.kind == "f" and len(arrays) > 1 else str(dtype))


def _rows(dataset: h5py.Dataset, offsets: np.ndarray) -> np.ndarray:
    """Return rows of an array on disk in any order, repetitions included."""
    if len(offsets) and np.array_equal(offsets, np.arange(offsets[0], offsets[0] + len(offsets))):
        return dataset[int(offsets[0]) : int(offsets[0]) + len(offsets)]
    unique, places = np.unique(offsets, return_inverse=True)
    return dataset[unique][places]


def _joined(parts: list[np.ndarray], feature: Feature) -> np.ndarray:
    if feature.kind == "vector" and feature.shape:
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    values = parts[0]
    return values[..., 0] if feature.kind == "depth" and values.ndim == 4 else values
