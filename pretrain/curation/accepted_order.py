"""The images of each epoch, drawn by their weights, and the order in which they are visited.

An image is drawn in an epoch if a number computed from seed, epoch and image is below its weight. Only the number of
drawn images of each chunk is stored. The image of a position is found at once, in any process and after any restart.

Shapes: N training images, P positions, C chunks.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ...errors import DataError
from ...files import replacing
from ..order import Order, keys_of, scramble

CHUNK = 4096  # images; a look-up draws a whole chunk
_STRIDE = 256  # chunks counted at a time
_DRAWS = 0x64726177  # separates random draws from orders


def draws(seed: int, epoch: int, hashes: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) for every image, (N,) float64, independent between seeds, epochs and images.

    Args:
        hashes: (N,) uint64, one per image.
    """
    (key,) = keys_of(seed ^ _DRAWS, np.array([epoch]), 0)
    return (scramble(scramble(hashes ^ key) ^ key) >> np.uint64(11)) * 2.0**-53


def drawn(seed: int, epoch: int, hashes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return which images are drawn, (N,) bool: none with weight 0, all with weight 1."""
    return draws(seed, epoch, hashes) < weights


class AcceptedOrder:
    """Visits the images drawn in an epoch once, then those of the next epoch: `Order` over weighted images.

    Args:
        folder: holds ``hashes.npy`` and ``weights.npy`` of the training images; the counts of epochs are kept there.
        seed: of draws and orders.
        block, mix: as in `Order`.

    Raises:
        DataError: if less than one image is expected an epoch.
    """

    def __init__(self, folder: Path, seed: int, block: int = 1, mix: int = 1) -> None:
        self._folder, self._seed, self._layout = folder, seed, (block, mix)
        self._open()
        self.length = len(self._weights)
        sums = [float(self._weights[at : at + CHUNK * _STRIDE].sum(dtype=np.float64)) for at in self._strides()]
        self.epoch_length = sum(sums)  # expected
        if self.epoch_length < 1:
            raise DataError(
                f"{self.epoch_length:.3g} images are expected an epoch of {self.length}: their weights are almost 0. "
                "Check the report of `pixio-robot curate` and its filters"
            )
        self._epochs: list[int] = []  # where they end, as positions

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return which images are visited.

        Args:
            positions: (P,) int64, numbers of samples since the run began, from 0.

        Returns:
            (P,) int64 in [0, length).
        """
        positions = np.asarray(positions, np.int64)
        if not len(positions):
            return positions
        while not self._epochs or self._epochs[-1] <= int(positions.max()):
            number = len(self._epochs)
            self._epochs.append((self._epochs[-1] if number else 0) + int(self._ends(number)[-1]))
        epochs = np.searchsorted(self._epochs, positions, side="right")
        result = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            begin = self._epochs[epoch - 1] if epoch else 0
            result[mine] = self._images(epoch, self._epochs[epoch] - begin, positions[mine] - begin)
        return result

    def epoch(self, number: int) -> np.ndarray:
        """Return the images drawn in an epoch, sorted."""
        parts = [at + np.flatnonzero(self._drawn(number, at, CHUNK)) for at in range(0, self.length, CHUNK)]
        return np.concatenate(parts)

    def _images(self, epoch: int, count: int, places: np.ndarray) -> np.ndarray:
        ranks = Order(count, self._seed, *self._layout).at(epoch * count + places)  # among the images drawn
        ends = self._ends(epoch)
        chunks = np.searchsorted(ends, ranks, side="right")
        result = np.empty_like(ranks)
        for chunk in np.unique(chunks).tolist():
            mine = chunks == chunk
            inside = np.flatnonzero(self._drawn(epoch, chunk * CHUNK, CHUNK))
            result[mine] = chunk * CHUNK + inside[ranks[mine] - (ends[chunk - 1] if chunk else 0)]
        return result

    def _drawn(self, epoch: int, begin: int, count: int) -> np.ndarray:
        part = slice(begin, begin + count)
        return drawn(self._seed, epoch, self._hashes[part], self._weights[part])

    def _ends(self, epoch: int) -> np.ndarray:
        """Return the number of drawn images up to the end of each chunk, (C,) int64; counted once for all processes."""
        path = self._folder / f"counts-{self._seed}-{epoch}.npy"
        if not path.is_file():
            with FileLock(path.with_suffix(".lock")):
                if not path.is_file():
                    self._count(epoch, path)
        return _running_sums(path)

    def _count(self, epoch: int, path: Path) -> None:
        counts = np.zeros(-(-self.length // CHUNK), np.int32)
        for begin in self._strides():
            hits = self._drawn(epoch, begin, CHUNK * _STRIDE)
            sums = np.add.reduceat(hits, np.arange(0, len(hits), CHUNK), dtype=np.int32)
            counts[begin // CHUNK :][: len(sums)] = sums
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, counts)

    def _strides(self) -> range:
        return range(0, self.length, CHUNK * _STRIDE)

    def _open(self) -> None:
        self._hashes = np.load(self._folder / "hashes.npy", mmap_mode="r")
        self._weights = np.load(self._folder / "weights.npy", mmap_mode="r")
        self.length = len(self._weights)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_hashes", "_weights")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()  # not pickled, since that would copy the arrays


@lru_cache(maxsize=4)
def _running_sums(path: Path) -> np.ndarray:
    return np.cumsum(np.load(path), dtype=np.int64)
