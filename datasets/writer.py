"""Writes demonstrations in robomimic's HDF5 layout: one file each, then joined into one.

On disk: ``data/demo_N`` with ``actions`` (T, A), ``rewards`` (T,), ``dones`` (T,), ``states`` (T, S), ``success`` (T,)
and ``obs/<camera>_image`` (T, H, W, 3) uint8, ``obs/<camera>_depth`` (T, H, W, 1) float32 [m], ``obs/proprio`` (T, P);
``mask/train`` and ``mask/valid`` name the demonstrations of each split. Robots add what else happened under ``run/``.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..calibration import Calibration
from ..files import replacing, require_space

_ROOM = 100 * 2**20  # that a disk must have left [bytes]
_LOOK_AT_DISK = 100  # steps after which it is looked at again
GYM_TYPE = 2  # robomimic's number for a gym-like environment


@dataclass(frozen=True)
class EpisodeFacts:
    """Facts about an episode, beside its arrays."""

    seed: int
    initial_state_hash: str  # of the simulator's state after reset
    score: float  # what its suite counts, 0 to 100
    good: bool  # whether it is suitable for training
    cameras: dict[str, Calibration]  # by name


@dataclass
class Demo:
    """One demonstration in memory."""

    observations: dict[str, np.ndarray]  # keys as on disk, each (T, ...)
    actions: np.ndarray  # (T, A) float32, in the data's units
    rewards: np.ndarray  # (T,)
    success: np.ndarray  # (T,) bool, per step
    states: np.ndarray  # (T, S) float64
    facts: EpisodeFacts


@dataclass(frozen=True)
class Provenance:
    """What recorded a file."""

    task: str  # name of the task, or of the robot
    environment: dict[str, Any]  # arguments that make the environment again, ready for JSON
    cameras: Sequence[str]  # the first one is the default
    robot: dict[str, Any] | None = None  # the robot's own description, where one recorded


@dataclass(frozen=True)
class Splits:
    """Files by `write_demo`, by what they are used for."""

    train: Sequence[Path]
    valid: Sequence[Path] = ()
    rest: Sequence[Path] = ()  # kept, and in no split

    @property
    def files(self) -> list[Path]:
        """All of them, in the order of the joined file."""
        return [*self.train, *self.valid, *self.rest]


def disk_key(key: str, cameras: Sequence[str]) -> str:
    """Return the name on disk of an observation key.

    >>> disk_key("rgb", ("top_cap2",)), disk_key("depth_side", ("front", "side")), disk_key("proprio", ())
    ('top_cap2_image', 'side_depth', 'proprio')
    """
    kind, _, camera = key.partition("_")
    suffix = {"rgb": "image", "depth": "depth"}.get(kind)
    return key if suffix is None else f"{camera or cameras[0]}_{suffix}"


def write_demo(path: Path, demo: Demo) -> None:
    """Write one demonstration to a separate file, complete or not at all.

    HDF5 builds it in memory, because its own writing ends the process on a full disk, where Python's raises.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        _fill_group(file.create_group("demo"), demo)
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)


class DemoWriter:
    """One demonstration written step by step, for what is too long for memory. `close` puts the file in its place.

    Args:
        path: the file, as `write_demo` makes it.

    Raises:
        OSError: if the disk has less room than `_ROOM`; HDF5 itself would end the process on a full one.
    """

    def __init__(self, path: Path) -> None:
        require_space(path, _ROOM)
        self._stack = ExitStack()
        self._file = h5py.File(self._stack.enter_context(replacing(path)), "w")
        self._group = self._file.create_group("demo")
        self._path, self.steps = path, 0

    def add(self, observations: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Add a step: observations under their keys on disk, and actions, rewards, states, success, ``run/...``."""
        if self.steps % _LOOK_AT_DISK == 0:
            require_space(self._path, _ROOM)
        rows = {f"obs/{key}": value[..., None] if value.ndim == 2 else value for key, value in observations.items()}
        for key, value in {**rows, **values}.items():
            row = np.asarray(value)
            if key not in self._group:
                options = image_options(row.shape) if row.ndim == 3 else dict(chunks=(256, *row.shape))
                self._group.create_dataset(key, (0, *row.shape), row.dtype, maxshape=(None, *row.shape), **options)
            dataset = self._group[key]
            dataset.resize(self.steps + 1, axis=0)
            dataset[self.steps] = row
        self.steps += 1

    def close(self, facts: EpisodeFacts, events: str) -> None:
        """Finish the file.

        Args:
            facts: of the episode.
            events: what happened, as JSON.
        """
        dones = np.zeros(self.steps, np.int64)
        dones[-1:] = 1
        self._group.create_dataset("dones", data=dones)
        _write_facts(self._group, self.steps, facts)
        self._group.attrs["events"] = events
        self._file.close()
        self._stack.close()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        with suppress(_Dropped), self._stack:
            raise _Dropped


class _Dropped(Exception):
    """Makes `replacing` drop its file."""


def image_options(shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how images (H, W, C) are stored: each on its own, compressed without loss."""
    return dict(chunks=(1, *shape), compression="lzf")


def _write_facts(group: h5py.Group, steps: int, facts: EpisodeFacts) -> None:
    group.attrs.update(
        num_samples=steps,
        seed=facts.seed,
        initial_state_hash=facts.initial_state_hash,
        score=facts.score,
        success=facts.good,
    )
    calibrations = {
        name: {"intrinsics": each.intrinsics.tolist(), "extrinsics": each.camera_to_world.tolist()}
        for name, each in facts.cameras.items()
    }
    group.attrs["camera_info"] = json.dumps(calibrations)


def _fill_group(group: h5py.Group, demo: Demo) -> None:
    steps = len(demo.actions)
    _write_facts(group, steps, demo.facts)
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
        options = image_options(values.shape[1:]) if values.ndim == 4 else {}
        group.create_dataset(f"obs/{key}", data=values, **options)


def demo_outcome(path: Path) -> bool:
    """Return whether a file by `write_demo` is suitable for training."""
    with h5py.File(path) as file:
        return bool(file["demo"].attrs["success"])


def merge_demos(target: Path, splits: Splits, provenance: Provenance, collection: dict[str, Any]) -> None:
    """Join files by `write_demo` into one robomimic dataset, train demonstrations first.

    Args:
        collection: the settings they were recorded with; they are kept beside robomimic's own attributes.

    Raises:
        OSError: before anything is written, if the disk has no room.
    """
    require_space(target, sum(part.stat().st_size for part in splits.files))
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        names = [f"demo_{index}" for index in range(len(splits.files))]
        for name, part in zip(names, splits.files, strict=True):
            with h5py.File(part) as source:
                source.copy("demo", data, name)
        first, second = len(splits.train), len(splits.train) + len(splits.valid)
        describe(file, {"train": names[:first], "valid": names[first:second]}, provenance, collection)


def describe(file: h5py.File, splits: dict[str, list[str]], provenance: Provenance, collection: dict[str, Any]) -> None:
    """Write into a file of demonstrations what recorded them, with which settings, and which are in which split."""
    data = file["data"]
    environment: dict[str, Any] = {
        "env_name": provenance.task,
        "type": GYM_TYPE,
        "env_type": GYM_TYPE,
        "env_kwargs": provenance.environment,
        "cameras": list(provenance.cameras),
    }
    if provenance.robot is not None:
        environment["robot"] = provenance.robot
    total = sum(int(each.attrs["num_samples"]) for each in data.values())
    data.attrs.update(total=total, env_args=json.dumps(environment), collection=json.dumps(collection))
    for split, members in splits.items():
        if members or (split == "train" and len(data)):  # an empty one means that no episode is suitable for training
            file.create_dataset(f"mask/{split}", data=np.array(members, dtype="S" if members else "S1"))
