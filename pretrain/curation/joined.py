"""The weights of a set of training images: joined once by shard and offset, and kept in the cache.

Shapes: N training images.
"""

import hashlib
import logging
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from ...errors import DataError
from ...files import sha256_of
from ...run_folder import digest, read_json, write_json
from ..images.image_set import Concatenation, ImageSet
from ..images.shards import TarShards
from ..order import Split
from .statistics import shard_name
from .weight_file import WeightFile

log = logging.getLogger(__name__)


class Joined(NamedTuple):
    """The joined weights of training images."""

    folder: Path  # hashes.npy (N,) uint64 and weights.npy (N,) float32, for `AcceptedOrder`
    sha256: str  # of the file of weights
    missing: int  # images without a weight, which are never drawn


def join_weights(images: ImageSet, split: Split, weights: Path, cache: Path) -> Joined:
    """Find the weight of every training image.

    An image and a weight match if shard name, offset and size are equal.

    Args:
        images: the set; only images of tar shards can have weights.
        split: which of them are trained on.
        weights: a file of `pixio-robot curate`.
        cache: folder of all caches.

    Raises:
        DataError: if the file holds no weights, or none of these images', or two shards share a name.
    """
    file = WeightFile(weights)
    try:
        sha256 = sha256_of(weights)
        names = _names(images)
        if not set(names) & set(file.shards):
            raise DataError(
                f"{weights} has weights for {_few(file.shards)}; the images are in {_few(names)}. Weights are "
                "matched by the names of shard and folder: score and curate these images"
            )
        val_images = hashlib.sha256(split.val_images.tobytes()).hexdigest()
        folder = cache / "weights" / digest("join-1", images.fingerprint, names, val_images, sha256)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # one rank joins, the others wait
            if not folder.is_dir():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                _write(images, split, file, partial)
                partial.rename(folder)
    finally:
        file.close()
    missing = read_json(folder / "joined.json")["missing"]
    if missing == split.training:
        raise DataError(
            f"{weights} has the shards but none of the {missing} images at their offsets: the shards were "
            "packed again since they were scored; score and curate them again"
        )
    return Joined(folder, sha256, missing)


def _write(images: ImageSet, split: Split, file: WeightFile, folder: Path) -> None:
    hashes = np.lib.format.open_memmap(folder / "hashes.npy", "w+", np.uint64, (split.training,))
    weights = np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, (split.training,))
    at, missing = 0, 0
    for begin, places, name in _by_shard(images):
        held = split.val_images[slice(*np.searchsorted(split.val_images, (begin, begin + len(places))))] - begin
        trained = np.delete(np.arange(len(places)), held)
        part = slice(at, at + len(trained))
        at += len(trained)
        known = file.read(name) if name else None
        if known is None:
            missing += len(trained)
            continue
        offset, size = places["offset"][trained], places["size"][trained]
        row = np.minimum(np.searchsorted(known.offset, offset), len(known.offset) - 1)
        same = (known.offset[row] == offset) & (known.size[row] == size)
        hashes[part], weights[part] = known.hash[row], np.where(same, known.weight[row], 0)
        missing += int((~same).sum())
    hashes.flush()
    weights.flush()
    write_json(folder / "joined.json", {"images": split.training, "missing": missing})


def _sets(images: ImageSet) -> list[ImageSet]:
    return [part for each in images.sets for part in _sets(each)] if isinstance(images, Concatenation) else [images]


def _names(images: ImageSet) -> list[str]:
    """Return the names of all shards."""
    paths = [shard for each in _sets(images) if isinstance(each, TarShards) for shard in each.shards]
    names = [shard_name(Path(path)) for path in paths]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        same = [path for path, each in zip(paths, names, strict=True) if each == name]
        raise DataError(
            f"{same[0]} and {same[1]} are both called {name}, so their weights cannot be distinguished; rename a folder"
        )
    return names


def _by_shard(images: ImageSet) -> Iterator[tuple[int, np.ndarray, str]]:
    """Yield for every shard the index of its first image, its places and its name; for other sets an empty name."""
    begin = 0
    for each in _sets(images):
        if not isinstance(each, TarShards):
            yield begin, np.empty(len(each)), ""
        else:
            shard, first = each.places["shard"], 0
            for number, path in enumerate(each.shards):
                end = bisect_right(shard, number, first)  # NumPy's search would copy the mapped column
                yield begin + first, each.places[first:end], shard_name(Path(path))
                first = end
        begin += len(each)


def _few(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "no tar shards"
    )
