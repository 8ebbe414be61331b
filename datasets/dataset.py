"""What a demonstration data set is, whatever its format: features, episodes, splits, rows.

Shapes: E episodes, F frames of all episodes, one after the other, n rows.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..calibration import Calibration
from ..errors import DataError, UnknownName, closest
from ..plugins import find_plugin, plugin_names

KeyMap = Mapping[str, str | Sequence[str]]  # feature -> name, or names to join, in the file


@dataclass(frozen=True)
class Feature:
    """One array of a data set or of an observation, for one frame."""

    kind: Literal["image", "depth", "vector", "text"]
    shape: tuple[int, ...]  # of one frame: (H, W, 3) image, (H, W) depth, (n,) vector
    dtype: str = "float32"
    names: tuple[str, ...] = ()  # of a vector's elements
    unit: str = ""


class EpisodeDataset(abc.ABC):
    """Demonstrations of any format.

    Feature names: ``rgb`` and ``rgb_<camera>`` (H, W, 3) uint8, ``depth`` and ``depth_<camera>`` (H, W) float32 [m]
    along the optical axis, 0 where invalid, ``proprio`` (P,), ``state`` (S,), ``action`` (A,), ``reward``, ``success``.
    Numbers keep the units of the data.

    A new format is a subclass with an entry point in the group ``pixio_robot.datasets``. Its constructor takes the
    source and a `KeyMap` or None.
    """

    source: str  # what was opened; named in messages
    features: dict[str, Feature]
    lengths: np.ndarray  # (E,) int64 [frames]
    fps: float | None = None  # [1/s]; None where the data does not say
    provenance: dict[str, Any]  # what recorded it; may be empty, training never needs it

    @classmethod
    @abc.abstractmethod
    def recognises(cls, source: str) -> bool:
        """Return whether this format reads `source`."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the content; two data sets with the same one give the same rows."""

    @abc.abstractmethod
    def split(self, name: str) -> np.ndarray:
        """Return the episodes of a split ("train", "valid"), (n,) int64; empty where there is no such split."""

    @abc.abstractmethod
    def read(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Return a feature at `rows` (n,) of all frames, in this order, (n, ...).

        Raises:
            DataError: if there is no such feature, or it cannot be read.
        """

    def calibration(self, key: str, episode: int | None = None) -> Calibration:
        """Return the calibration of the camera behind an image feature.

        Args:
            episode: of which episode; None is the one of all episodes.

        Raises:
            DataError: if the data does not hold it, or the camera was moved between episodes.
        """
        raise DataError(f"{self.source} does not hold the calibration of {key!r}")

    def feature(self, key: str) -> Feature:
        """Return a feature by name.

        Raises:
            DataError: naming what there is.
        """
        if key not in self.features:
            raise DataError(
                f"{self.source} has no {key!r}{closest(key, self.features)}; it has: {', '.join(self.features)}"
            )
        return self.features[key]

    @property
    def frames(self) -> int:
        """F, the number of frames."""
        return int(self.lengths.sum())

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """For each frame the row at which its episode starts, (F,) int64."""
        return np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of a split's frames, (n,) int64, in the order of the file."""
        keep = np.zeros(len(self.lengths), bool)
        keep[self.split(split)] = True
        return np.flatnonzero(np.repeat(keep, self.lengths))

    def column(self, key: str) -> np.ndarray:
        """Return a feature at all frames, (F, ...); for what fits in memory."""
        return self.read(key, np.arange(self.frames))

    def batches(self, key: str, first: int, size: int) -> Iterator[np.ndarray]:
        """Yield a feature from row `first` on, at most `size` frames at a time, never across episodes."""
        ends = np.cumsum(self.lengths)
        for begin, end in zip(ends - self.lengths, ends, strict=True):
            for row in range(max(int(begin), first), int(end), size):
                yield self.read(key, np.arange(row, min(row + size, int(end))))

    @property
    def cameras(self) -> list[str]:
        """The image features, the default camera first."""
        return [name for name, feature in self.features.items() if feature.kind == "image"]

    @property
    def initial_states(self) -> list[str]:
        """Hashes of the simulator's state at the start of each episode; "" where unknown."""
        return list(self.provenance.get("initial_states", [""] * len(self.lengths)))


def depth_key(image: str) -> str:
    """Return the name of the depth feature of an image feature.

    >>> depth_key("rgb"), depth_key("rgb_wrist")
    ('depth', 'depth_wrist')
    """
    return "depth" + image.removeprefix("rgb")


def camera_keys(dataset: EpisodeDataset, cameras: Sequence[str]) -> tuple[str, ...]:
    """Return the image features of cameras; no camera means the default one.

    Args:
        cameras: names as they were recorded (``front``), or features (``rgb``, ``rgb_front``).

    Raises:
        UnknownName: for a camera that was not recorded.
        DataError: if there are no images at all.
    """
    if not dataset.cameras:
        raise DataError(f"{dataset.source} has no images; it has: {', '.join(dataset.features)}")
    names = {key: key for key in dataset.cameras} | {key.removeprefix("rgb_"): key for key in dataset.cameras}
    recorded = dataset.provenance.get("cameras") or []
    if recorded:
        names |= {recorded[0]: dataset.cameras[0]}
    if unknown := [camera for camera in cameras if camera not in names]:
        known = recorded or dataset.cameras
        raise UnknownName(f"{dataset.source} has no camera {', '.join(unknown)}; it has: {', '.join(known)}")
    return tuple(names[camera] for camera in cameras) or (dataset.cameras[0],)


def open_dataset(source: str | Path, keys: KeyMap | None = None) -> EpisodeDataset:
    """Open demonstrations of any installed format.

    Args:
        source: a file or folder.
        keys: which of the file's arrays are which feature, e.g. ``{"rgb": "agentview_image"}``; None guesses.

    Raises:
        DataError: if nothing is there, or no format reads it.
    """
    name = str(source)
    if not Path(name).exists():
        raise DataError(f"no demonstrations at {name}; make them with: pixio-robot collect task=... out={name}")
    found = recognised(name)
    if found is None:
        known = ", ".join(plugin_names("datasets"))
        raise DataError(f"{name} is not a data set of a known format; formats are: {known}")
    opened: EpisodeDataset = found(name, keys)  # type: ignore[call-arg]
    return opened


def recognised(source: str) -> type[EpisodeDataset] | None:
    """Return the format that reads `source`, or None if no installed format does."""
    formats: list[type[EpisodeDataset]] = [find_plugin("datasets", name) for name in plugin_names("datasets")]
    return next((each for each in formats if each.recognises(source)), None)
