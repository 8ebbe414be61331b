"""Interface of image sources: numbered images, optionally with labels and in sequences.

Shapes: N images, G groups, H height, W width.
"""

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


class ImageSet(ABC):
    """Images by number. Sets are safe to pickle and to fork: every process opens its own files."""

    labels: np.ndarray | None = None  # (N,) int32, -1 where unknown; None where none is known
    classes: tuple[str, ...] = ()  # names of the labels
    groups: np.ndarray | None = None  # (G + 1,) int64 offsets of sequences of near duplicates; None for still images
    block: int = 1  # number of neighbours that are best read together, for `Order`
    fingerprint: str  # of the images: equal for a copy of the files, different when one is added or changed

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """Return one image: encoded bytes, or (H, W, 3) uint8 RGB where it is not stored as an image.

        Raises:
            Unreadable: if it is damaged or gone.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the display name of an image: shard:member, path or file#frame."""


class Sequences(ImageSet):
    """Images in sequences of near duplicates, one group each: clips, demonstrations, recordings.

    Args:
        lengths: of the sequences, each at least 1.
    """

    groups: np.ndarray

    def __init__(self, lengths: Sequence[int]) -> None:
        self.groups = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.groups[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return the sequence of an image and its index there."""
        number = int(np.searchsorted(self.groups, index, side="right")) - 1
        return number, index - int(self.groups[number])


class Concatenation(ImageSet):
    """Several sets in order. Labels are matched by class name; each still image is its own group."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self.sets = tuple(sets)
        self._starts = [0]
        for each in self.sets:
            self._starts.append(self._starts[-1] + len(each))
        self.classes = tuple(dict.fromkeys(name for each in self.sets for name in each.classes))
        if any(each.labels is not None for each in self.sets):
            self.labels = np.concatenate([self._labels(each) for each in self.sets])
        if any(each.groups is not None for each in self.sets):
            offsets = [np.arange(len(each) + 1) if each.groups is None else each.groups for each in self.sets]
            moved = [each[:-1] + start for each, start in zip(offsets, self._starts, strict=False)]
            self.groups = np.concatenate([*moved, [self._starts[-1]]]).astype(np.int64)
        self.block = max(each.block for each in self.sets)
        self.fingerprint = fingerprint(each.fingerprint for each in self.sets)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> bytes | np.ndarray:
        which, inner = self._locate(index)
        return which.read(inner)

    def name(self, index: int) -> str:
        which, inner = self._locate(index)
        return which.name(inner)

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        number = bisect_right(self._starts, index) - 1
        return self.sets[number], index - self._starts[number]

    def _labels(self, each: ImageSet) -> np.ndarray:
        if each.labels is None:
            return np.full(len(each), -1, np.int32)
        ours = np.array([*(self.classes.index(name) for name in each.classes), -1], np.int32)  # the last is for -1
        return ours[each.labels]


def fingerprint(parts: Iterable[object]) -> str:
    """Return 16 hex digits for a sequence of values."""
    state = hashlib.sha256()
    for part in parts:
        state.update(f"{part}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()[:16]


def files_fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return a hash of files by paths below `root` and sizes; modification times change when data is copied."""
    return fingerprint((file.relative_to(root).as_posix(), file.stat().st_size) for file in files)
