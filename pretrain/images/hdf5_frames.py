"""Images in HDF5 files, such as demonstrations of robomimic: datasets of uint8 (T, H, W, 3).

Shapes: T frames of a dataset, H height, W width.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from ...errors import DataError, Unreadable
from .file_index import Arrays, index_files, load
from .handles import Handles
from .image_set import Sequences, files_fingerprint

_OPEN_FILES = 16
_REPEATED = "next_obs"  # robomimic stores every image a second time, one step later


class Hdf5Frames(Sequences):
    """Every frame of every image dataset of HDF5 files; each dataset is a group.

    Args:
        root: folder that names in the fingerprint are relative to.
        files: the HDF5 files; those without images are left out and logged.
        cache: folder of all caches.

    Raises:
        DataError: if no file holds images.
    """

    def __init__(self, root: Path, files: Sequence[Path], cache: Path) -> None:
        indices = index_files(files, cache / "images" / "files", "hdf5-1", _index)
        self._datasets: list[tuple[Path, str]] = []
        lengths: list[int] = []
        for file, index in zip(files, indices, strict=True):
            if index is not None:
                arrays = load(index)
                self._datasets += [(file, str(name)) for name in arrays["names"]]
                lengths += arrays["lengths"].tolist()
        super().__init__(lengths)
        self.fingerprint = files_fingerprint(root, sorted({file for file, _ in self._datasets}))
        self._open: Handles[Path, h5py.File] = Handles(h5py.File, h5py.File.close, _OPEN_FILES)

    def read(self, index: int) -> np.ndarray:
        number, frame = self.locate(index)
        file, dataset = self._datasets[number]
        try:
            return self._open.get(file)[dataset][frame]
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise Unreadable(f"HDF5 cannot read it: {error}") from error

    def name(self, index: int) -> str:
        number, frame = self.locate(index)
        file, dataset = self._datasets[number]
        return f"{file}:{dataset}#{frame}"


def _index(path: Path) -> Arrays:
    found: dict[str, int] = {}

    def collect(name: str, item: h5py.Dataset | h5py.Group) -> None:
        images = isinstance(item, h5py.Dataset) and item.dtype == np.uint8 and item.ndim == 4 and item.shape[3] == 3
        if images and item.size and _REPEATED not in name.split("/"):
            found[name] = len(item)

    try:
        with h5py.File(path) as file:
            file.visititems(collect)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a complete HDF5 file: {error}") from error
    if not found:
        raise DataError(f"{path} holds no images; expected datasets of uint8 (frames, height, width, 3)")
    names = sorted(found, key=_natural)
    return {"names": np.array(names), "lengths": np.array([found[name] for name in names])}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort demo_10 after demo_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
