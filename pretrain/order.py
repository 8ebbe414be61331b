"""The order in which images are visited, a pure function of seed, epoch and position; nothing is stored.

Shapes: P positions, G sequences.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import BadInput

_ROUNDS = 8  # of the Feistel network; four are enough for large sets, small ones need more
_MOST = 2**40  # images
_VALIDATION = 0x68656C64  # separates the validation split from the orders of epochs


class ImageOrder(Protocol):
    """The training image at each position of a run, a function of the position only."""

    @property
    def length(self) -> int:
        """Return the number of training images."""

    @property
    def epoch_length(self) -> float:
        """Return the number of positions of an epoch; where that varies, the expected number."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices of training images at positions; both (P,) int64."""


@dataclass(frozen=True)
class Order:
    """Visits `length` images once an epoch, in a different order each epoch.

    With `block` > 1, images that are stored together are visited together: blocks are in random order, and the images
    of `mix` blocks at a time are shuffled. The last images, too few for a block, come at the end of each epoch.

    Args:
        length: number of images, 1 to 2**40.
        seed: of the order.
        block: images that are read together.
        mix: blocks that are shuffled together.

    Raises:
        BadInput: for a length, block or mix out of range.
    """

    length: int
    seed: int
    block: int = 1
    mix: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.length <= _MOST and self.block >= 1 and self.mix >= 1):
            raise BadInput(f"an order needs 1 to 2**40 images, block and mix of at least 1; got {self}")

    @property
    def epoch_length(self) -> float:
        """Return the number of positions of an epoch."""
        return self.length

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the images at positions.

        Args:
            positions: (P,) int64, numbers of samples since the run began, from 0.

        Returns:
            (P,) int64 in [0, length); the epoch of a position is ``position // length``.
        """
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.length)
        if self.block == 1:
            return permute(places, self.length, keys_of(self.seed, epochs, 0))
        blocks = self.length // self.block
        whole, window = blocks * self.block, self.block * self.mix
        result = np.empty_like(places)
        full = blocks // self.mix * window
        # windows of `mix` blocks, one of the blocks left over, one of the images left over
        for begin, end, size in ((0, full, window), (full, whole, whole - full), (whole, self.length, window)):
            mask = (places >= begin) & (places < end)
            if not mask.any():
                continue
            window_starts = begin + (places[mask] - begin) // size * size
            inner = permute(
                places[mask] - window_starts,
                min(size, end - begin),
                keys_of(self.seed, epochs[mask], 1 + window_starts),
            )
            here = window_starts + inner
            if begin < whole:
                slots, inner = np.divmod(here, self.block)
                here = permute(slots, blocks, keys_of(self.seed, epochs[mask], 0)) * self.block + inner
            result[mask] = here
        return result


def permute(places: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Permute [0, length) by an alternating Feistel network over the next power of two, walking cycles back inside.

    Args:
        places: (P,) int64 in [0, length).
        length: at least 1.
        keys: (P,) uint64; each key is a permutation.

    Returns:
        (P,) int64 in [0, length).
    """
    bits = max(2, (length - 1).bit_length())
    result = _feistel(places.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(result >= length)
    while len(outside):
        result[outside] = _feistel(result[outside], bits, keys[outside])
        outside = outside[result[outside] >= length]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << bits // 2) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for turn in range(_ROUNDS):
        key = keys + np.uint64(turn)
        if turn % 2:
            low = low ^ (scramble(high ^ scramble(key)) & low_mask)
        else:
            high = high ^ (scramble(low ^ scramble(key)) & high_mask)
    return high << low_bits | low


def keys_of(seed: int, epochs: np.ndarray, branch: np.ndarray | int) -> np.ndarray:
    """Return a key for every epoch and branch, (P,) uint64."""
    key = scramble(np.full(epochs.shape, seed % 2**64, np.uint64))
    key = scramble(key ^ epochs.astype(np.uint64))
    return scramble(key ^ np.asarray(branch, np.uint64))


def scramble(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit numbers: a step of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


@dataclass(frozen=True)
class Split:
    """Training and validation images.

    Args:
        length: number of images in all.
        val_images: (n,) int64, sorted: images kept out of training.
        evaluated: (m,) int64, sorted: the subset of them that is evaluated.
    """

    length: int
    val_images: np.ndarray
    evaluated: np.ndarray

    @property
    def training(self) -> int:
        """Return the number of training images."""
        return self.length - len(self.val_images)

    def index(self, numbers: np.ndarray) -> np.ndarray:
        """Return the indices in the set of training images (P,) int64 in [0, training)."""
        gaps = self.val_images - np.arange(len(self.val_images))  # training images before each validation image
        return numbers + np.searchsorted(gaps, numbers, side="right")


class Grouped(Protocol):
    """The part of an image set that `hold_out` uses."""

    @property
    def groups(self) -> np.ndarray | None:
        """Return offsets of sequences, (G + 1,) int64; None for still images."""

    def __len__(self) -> int: ...


def hold_out(images: Grouped, count: int, seed: int) -> Split:
    """Choose validation images, a function of set, count and seed.

    Still images are chosen at random. Sequences are chosen as a whole, in random order, until there are `count` frames,
    but never more than half of the sequences or of the frames; `count` evenly spaced frames of them are evaluated. Of a
    single sequence the last frames are chosen.

    Args:
        images: the set.
        count: images to evaluate on, 0 to half of the set.

    Raises:
        BadInput: if count is out of range.
    """
    total = len(images)
    if not 0 <= count <= total // 2:
        raise BadInput(f"{count} images of {total} cannot be validation images: at most half, {total // 2}")
    nothing = np.zeros(0, np.int64)
    if not count:
        return Split(total, nothing, nothing)
    if images.groups is None:
        chosen = np.sort(_shuffled(total, count, seed))
        return Split(total, chosen, chosen)
    if len(images.groups) == 2:
        last = np.arange(total - count, total)
        return Split(total, last, last)
    groups = len(images.groups) - 1
    parts: list[np.ndarray] = []
    held = 0
    for number in _shuffled(groups, groups, seed):
        begin, end = int(images.groups[number]), int(images.groups[number + 1])
        if held + end - begin <= total // 2:
            parts.append(np.arange(begin, end))
            held += end - begin
        if held >= count or len(parts) == groups // 2:
            break
    frames = np.sort(np.concatenate(parts))
    spaced = np.linspace(0, held - 1, min(count, held)).round().astype(np.int64)
    return Split(total, frames, frames[spaced])


def _shuffled(length: int, count: int, seed: int) -> np.ndarray:
    keys = keys_of(seed ^ _VALIDATION, np.zeros(count, np.int64), 0)
    return permute(np.arange(count), length, keys)
