"""CortexBench's released demonstrations: where each task lies in the four archives, and how its arrays map to ours.

Adroit, DMC and MetaWorld have one pickle for each task, a list of paths. TriFinger has a folder for each demonstration,
with a file by ``torch.save``. The source's values are only read.

Shapes: T steps, A actions, P proprioception, H, W image.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError, UnknownName, closest
from ...restricted_pickle import read_pickle
from ...torch_files import read_torch_file
from .archive_files import ArchiveFile, matching
from .source_tree import size_of

Numbered = Sequence[tuple[int, ArchiveFile]]  # files with the numbers of their (first) demonstrations


class ReleasedDemo(NamedTuple):
    """One demonstration: as released, and the arrays of our layout."""

    number: int
    source: dict[str, Any]
    actions: np.ndarray  # (T, A) float32, clipped to [-1, 1]
    observations: dict[str, np.ndarray | str]  # by key on disk: values (T, ...), or the source's key that holds them
    rewards: np.ndarray | None = None  # (T,)
    success: np.ndarray | None = None  # (T,) bool


class OpenedRelease(NamedTuple):
    """The demonstrations of a source that is open for reading."""

    numbers: list[int]  # of the demonstrations
    size: int  # uncompressed, at most [bytes]
    demos: Iterator[ReleasedDemo]


@dataclass(frozen=True)
class PathsRelease:
    """A task of Adroit, DMC or MetaWorld: a pickle with a list of paths."""

    env_id: str  # also the file's name
    camera: str
    action_dim: int
    state_dim: int  # width of the simulator's own observation
    train: int  # demonstrations that CortexBench trains on
    proprio: str = ""  # its key in env_infos
    proprio_dim: int = 0
    valid: int | None = None  # of validation; None is all others

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that were recorded, by our names."""
        return (self.camera,)

    def find(self, files: Sequence[ArchiveFile], source: Path) -> Numbered:
        """Return the task's file.

        Raises:
            DataError: if it is not there, or `source` is another task's file.
        """
        found = [file for _, file in matching(files, re.escape(f"{self.env_id}.pickle"))]
        if not found and len(files) == 1 and files[0].info is None and not source.is_dir():
            if source.stem in [each.env_id for each in RELEASES.values() if isinstance(each, PathsRelease)]:
                raise DataError(f"{source} is of {source.stem}, not of {self.env_id}; give its own task=")
            found = list(files)  # renamed
        if not found:
            have = [Path(file.name).name for _, file in matching(files, r"[^/]+\.pickle")]
            raise DataError(f"{source} has no {self.env_id}.pickle; it has: {', '.join(have) or 'no pickles'}")
        return [(0, found[0])]

    @contextmanager
    def read(self, files: Numbered, beside: Path) -> Iterator[OpenedRelease]:
        """Open the file; one in a zip archive is unpacked beside a path first.

        Raises:
            DataError: if the file is no list of paths of this task, before the first demonstration is given.
        """
        ((_, file),) = files
        with file.on_disk(beside) as path:
            paths = read_pickle(path, where=file.name)
            if not isinstance(paths, list) or not paths or not all(isinstance(each, dict) for each in paths):
                raise DataError(f"{file.name} holds no list of demonstrations, but {_described(paths)}")
            demos = [self._demo(number, each, file.name) for number, each in enumerate(paths)]
            numbers, size = list(range(len(paths))), sum(size_of(each) for each in paths)
            del paths  # a demonstration's memory is free once it is written
            yield OpenedRelease(numbers, size, (demos.pop(0) for _ in numbers))

    def _demo(self, number: int, path: dict[str, Any], name: str) -> ReleasedDemo:
        about = f"demonstration {number} of {name}"
        infos = path["env_infos"] if isinstance(path.get("env_infos"), dict) else {}
        images = _images(path, "images", about)
        steps = len(images)
        actions = _array(path, "actions", about, (steps, self.action_dim))
        kept_once = isinstance(path["images"], np.ndarray)
        observations: dict[str, np.ndarray | str] = {f"{self.camera}_image": "images" if kept_once else images}
        if self.proprio:
            proprio = _array(infos, self.proprio, f"{about}, env_infos,", (steps, self.proprio_dim))
            observations["proprio"] = proprio.astype(np.float32)
        for key in ("state_obs", "observations"):
            if getattr(path.get(key), "shape", None) == (steps, self.state_dim):
                observations["state"] = path[key].astype(np.float32)
        rewards = _per_step(path.get("rewards"), steps)
        success = _per_step(infos.get("success", infos.get("goal_achieved")), steps)
        success = None if success is None else success.astype(bool)
        return ReleasedDemo(number, path, _clipped(actions), observations, rewards, success)


@dataclass(frozen=True)
class TriFingerRelease:
    """A task of TriFinger: a folder for each demonstration. A step lasts 0.4 s; the last frame has no action."""

    folder: str
    action_dim: int  # 3 for one finger, 9 for three
    reach: float  # largest fingertip displacement in a step [cm]
    cameras: tuple[str, ...]  # the first is image_60; the second, if any, is its last frame, the goal
    train = 100
    valid: int | None = 25
    proprio_dim = 9

    def find(self, files: Sequence[ArchiveFile], source: Path) -> Numbered:
        """Return the task's files, a demonstration each.

        Raises:
            DataError: if there are none.
        """
        found = matching(files, rf"{self.folder}/demo-(\d+)/dts-0p4/downsample\.pth")
        if not found:
            have = sorted({kind for kind, _ in matching(files, r"(\w+)/demo-\d+/dts-0p4/downsample\.pth")})
            raise DataError(
                f"{source} has no {self.folder}/demo-XXXX/dts-0p4/downsample.pth; it has: "
                f"{', '.join(f'{each}/demo-XXXX' for each in have) or 'no demonstrations'}"
            )
        return sorted(((int(number), file) for number, file in found), key=lambda each: each[0])

    @contextmanager
    def read(self, files: Numbered, beside: Path) -> Iterator[OpenedRelease]:
        """Open the files; each one is read when it is needed."""
        size = 2 * sum(file.size for _, file in files)
        yield OpenedRelease([number for number, _ in files], size, (self._demo(*each) for each in files))

    def _demo(self, number: int, file: ArchiveFile) -> ReleasedDemo:
        source = read_torch_file(file.read(), file.name)
        if not isinstance(source, dict):
            raise DataError(f"{file.name} holds no demonstration, but {_described(source)}")
        images = _images(source, "image_60", file.name, least=2)
        steps = len(images) - 1
        moved = _array(source, "delta_ftpos", file.name)
        if moved.ndim != 2 or len(moved) not in (steps, steps + 1) or moved.shape[1] < self.action_dim:
            raise DataError(
                f"{file.name} has delta_ftpos {moved.shape}, not ({steps} or {steps + 1}, {self.action_dim} or more); "
                "is it another task's?"
            )
        tips = _array(source, "ft_pos_cur", file.name, (steps + 1, self.proprio_dim))
        goals = np.broadcast_to(images[-1], images[:-1].shape)  # at each step, as `collect` stores it
        views = zip(self.cameras, (images[:-1], goals), strict=False)
        observations: dict[str, np.ndarray | str] = {f"{camera}_image": frames for camera, frames in views}
        observations["proprio"] = tips[:-1].astype(np.float32)
        return ReleasedDemo(number, source, _clipped(moved[:steps, : self.action_dim] / self.reach), observations)


Release = PathsRelease | TriFingerRelease


def _dmc(task: str, camera: str, action_dim: int, state_dim: int) -> PathsRelease:
    return PathsRelease(f"dmc_{task}-v1", camera, action_dim, state_dim, 100)


RELEASES: dict[str, Release] = {
    **{
        f"metaworld/{task}": PathsRelease(f"{task}-v2-goal-observable", "top_cap2", 4, 39, 25, "gripper_proprio", 4)
        for task in ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")
    },
    "dmc/walker_stand": _dmc("walker_stand", "side", 6, 24),
    "dmc/walker_walk": _dmc("walker_walk", "side", 6, 24),
    "dmc/reacher_easy": _dmc("reacher_easy", "fixed", 2, 6),
    "dmc/cheetah_run": _dmc("cheetah_run", "side", 6, 17),
    "dmc/finger_spin": _dmc("finger_spin", "cam0", 2, 9),
    "adroit/pen": PathsRelease("pen-v0", "vil_camera", 24, 45, 100, "proprio", 24),
    "adroit/relocate": PathsRelease("relocate-v0", "vil_camera", 30, 39, 100, "proprio", 30),
    "trifinger/reach_cube": TriFingerRelease("reach", 3, 5.0, ("camera60",)),
    "trifinger/move_cube": TriFingerRelease("move", 9, 8.0, ("camera60", "goal")),
}


def release_of(task: str) -> Release:
    """Return where a task's released demonstrations are and how they are read.

    Raises:
        UnknownName: if CortexBench has no such task.
    """
    if task not in RELEASES:
        raise UnknownName(f"no released demonstrations of {task!r}{closest(task, RELEASES)}; of: {', '.join(RELEASES)}")
    return RELEASES[task]


def _array(values: Any, key: str, about: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return an array of the source; the error names what is there instead."""
    if key not in values:
        raise DataError(f"{about} has no {key!r}; it has: {', '.join(map(str, values)) or 'nothing'}")
    array = _as_array(values[key])
    if array.dtype.kind not in "biuf" or (shape is not None and array.shape != shape):
        wanted = "numbers" if shape is None else f"shape {shape}"
        raise DataError(f"{about} has {key} of shape {array.shape} {array.dtype}, not {wanted}; is it another task's?")
    return array


def _images(values: Any, key: str, about: str, least: int = 1) -> np.ndarray:
    images = _array(values, key, about)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) < least:
        raise DataError(
            f"{about} has {key} {images.shape} {images.dtype}, not (T, H, W, 3) uint8" + ", T > 1" * (least > 1)
        )
    return images


def _per_step(values: Any, steps: int) -> np.ndarray | None:
    """Return `values` as one number for each step, (T,), or None if they are not that. ``extra`` keeps them anyway."""
    array = _as_array(values if isinstance(values, (np.ndarray, list)) else None)
    return array.reshape(steps) if array.dtype.kind in "biuf" and array.size == steps else None


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # a ragged list
        return np.empty(0, object)


def _clipped(actions: np.ndarray) -> np.ndarray:
    return np.clip(actions, -1.0, 1.0).astype(np.float32)


def _described(value: Any) -> str:
    return f"a {type(value).__name__}" + (" of nothing" if isinstance(value, list) and not value else "")
