"""Tar shards in webdataset's convention, with random access by an index that is built once.

A sample is the run of members that share a key, the path up to the first dot of its base name: ``0001.jpg`` beside
``0001.cls`` or ``0001.json`` with an integer "label". The index, ``rows.npy``, has one row per image. It is
memory-mapped from a folder of the cache, whose name is a digest of the shards' paths, sizes and modification times.
Unchanged shards are not read again.

Shapes: N images.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from ...errors import DataError, Unreadable
from ...run_folder import digest, read_json, write_json
from .file_index import Arrays, index_files, load, state_of
from .handles import Handles
from .image_set import ImageSet, files_fingerprint, fingerprint
from .tar_walk import Member, TarWalk

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_KIND = "tar-1"  # change the number to invalidate old indexes
_ROW = np.dtype([("shard", "<i4"), ("label", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("header", "<i8")])
_OPEN_SHARDS = 128
_MOST_CLASSES = 100_000  # larger numbers are not classes


class TarShards(ImageSet):
    """Images of tar files. A truncated shard provides the images before the truncation.

    Args:
        root: folder that names in the fingerprint are relative to.
        shards: their paths.
        cache: folder of all caches; the index goes below ``images``.

    Raises:
        DataError: if no shard holds a whole image.
    """

    def __init__(self, root: Path, shards: Sequence[Path], cache: Path) -> None:
        self._shards = [str(shard) for shard in shards]
        folder = _index(shards, cache / "images")
        summary = read_json(folder / "index.json")
        if not summary["images"]:
            raise DataError(_nothing(shards))
        for shard, images in summary["cut"].items():
            log.warning("%s is cut short or damaged; the %d whole images before that are used", shard, images)
        if len(summary["cut"]) > 1:
            log.warning("%d of %d shards are cut short or damaged", len(summary["cut"]), len(shards))
        self.fingerprint = fingerprint([files_fingerprint(root, shards), summary["sha256"]])
        if summary["classes"]:
            self.classes = _class_names(shards[0].parent, summary["classes"])
        self._path = str(folder / "rows.npy")
        self._files: Handles[str, int] = Handles(_open_shard, os.close, _OPEN_SHARDS)
        self._map()

    @property
    def shards(self) -> Sequence[str]:
        """Return the paths of the shards, in the order of `places`."""
        return self._shards

    @property
    def places(self) -> np.ndarray:
        """Return the place of each image, (N,) with fields shard, offset and size, ordered by shard; memory-mapped."""
        return self._rows

    def _map(self) -> None:
        self._rows = np.load(self._path, mmap_mode="r")
        self.labels = self._rows["label"] if self.classes else None

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes:
        shard, _, offset, size, _ = self._rows[index].item()
        data = os.pread(self._files.get(self._shards[shard]), size, offset)
        if len(data) < size:
            raise Unreadable("its shard became shorter since it was indexed")
        return data

    def name(self, index: int) -> str:
        shard, _, _, _, header = self._rows[index].item()
        try:
            member = next(iter(TarWalk(self._shards[shard], header)), None)
        except OSError:  # the shard is missing; its image still needs a name
            member = None
        return f"{self._shards[shard]}:{member.name if member else f'byte {header}'}"

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_rows", "labels")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map()  # pickled, the index would be copied


def _open_shard(path: str) -> int:
    return os.open(path, os.O_RDONLY)


def _nothing(shards: Sequence[Path]) -> str:
    which = str(shards[0]) if len(shards) == 1 else f"the {len(shards)} tar files beside {shards[0]}"
    return (
        f"no whole image in {which}; expected members such as 0001.jpg beside 0001.cls, with a suffix of "
        f"{', '.join(IMAGE_SUFFIXES)} after the first dot of the name, in a plain (not compressed) tar file"
    )


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    file = folder / "classes.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return (*names, *(str(label) for label in range(len(names), count)))


def _index(shards: Sequence[Path], root: Path) -> Path:
    """Return the folder of the index of shards; build it if it is missing."""
    folder = root / digest(_KIND, [state_of(shard) for shard in shards])
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            pieces = index_files(shards, root / "files", _KIND, _rows_of)
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _merge(shards, [piece for piece in pieces if piece is not None], partial)
            partial.rename(folder)
    return folder


def _merge(shards: Sequence[Path], pieces: Sequence[Path], folder: Path) -> None:
    """Merge the shards' indexes; they are read twice to save memory."""
    counts, cut, most, state = [], {}, -1, hashlib.sha256()
    for shard, arrays in zip(shards, map(load, pieces), strict=True):
        rows = arrays["rows"]
        counts.append(len(rows))
        most = max(most, int(rows["label"].max(initial=-1)))
        state.update(rows.tobytes())
        if arrays["cut"]:
            cut[str(shard)] = len(rows)
    total = sum(counts)
    if total:  # an empty file cannot be mapped
        merged = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=_ROW, shape=(total,))
        begin = 0
        for number, arrays in enumerate(map(load, pieces)):
            part = merged[begin : begin + counts[number]]
            part[:] = arrays["rows"]
            part["shard"] = number
            begin += counts[number]
        merged.flush()
    summary = {"images": total, "classes": most + 1, "cut": cut, "sha256": state.hexdigest()}
    write_json(folder / "index.json", {"shards": [str(shard) for shard in shards], **summary})


def _rows_of(shard: Path) -> Arrays:
    """Index one shard: its rows, and whether it is cut short."""
    walk = TarWalk(shard)
    rows = [(0, label, image.offset, image.size, image.header) for image, label in samples(walk)]
    return {"rows": np.array(rows, _ROW), "cut": np.array(walk.cut)}


def samples(walk: TarWalk) -> Iterator[tuple[Member, int]]:
    """Yield the image of every sample of a shard that has one, and its label, -1 where there is none."""
    key, image, label = "", None, -1
    with open(walk.path, "rb") as file:
        for member in walk:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if key != (key := f"{folder}/{stem}"):
                if image is not None:
                    yield image, label
                image, label = None, -1
            suffix = suffix.lower()
            if suffix in IMAGE_SUFFIXES and stem:
                image = image or member
            elif suffix in ("cls", "json"):
                label = _label(os.pread(file.fileno(), member.size, member.offset), suffix, label)
        if image is not None:
            yield image, label


def _label(content: bytes, suffix: str, otherwise: int) -> int:
    try:
        value = int(content) if suffix == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError):
        return otherwise
    return value if type(value) is int and 0 <= value < _MOST_CLASSES else otherwise
