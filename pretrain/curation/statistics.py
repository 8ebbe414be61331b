"""What is known of the images of one shard, and what shards and images are called.

Shapes: N images of a shard.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from ..images.sources import shard_files

OK, UNREADABLE, NOT_FINITE, NO_RECORD = "ok", "unreadable", "not finite", "no record"  # what became of an image


class ShardStatistics(NamedTuple):
    """The images of one shard in their order there. Numbers that are not known are NaN, sizes 0."""

    shard: str  # parent folder/stem
    masks: int  # that the losses are over; 0 where it is not known
    cut: bool  # the shard is cut short or damaged; these are the images before that
    key: tuple[str, ...]  # names of the members
    hash: np.ndarray  # (N,) uint64, of shard and key
    offset: np.ndarray  # (N,) int64, where the image begins in the shard [bytes]
    size: np.ndarray  # (N,) int64 [bytes]
    width: np.ndarray  # (N,) int32, as seen, the EXIF orientation applied [px]
    height: np.ndarray  # (N,) int32 [px]
    entropy: np.ndarray  # (N,) float64 [bits]
    loss: np.ndarray  # (N,) float64, mean over the masks
    spread: np.ndarray  # (N,) float64, standard deviation over the masks
    status: tuple[str, ...]  # one of those above

    @property
    def source(self) -> str:
        """Return the folder of the shard; shares and caps are counted by it."""
        return self.shard.rpartition("/")[0]


def shard_name(path: Path) -> str:
    """Return what a shard is called wherever its folder lies.

    >>> shard_name(Path("/data/web/00017.tar"))
    'web/00017'
    """
    return f"{path.absolute().parent.name}/{path.name.removesuffix('.tar')}"


def named_shards(source: Any) -> dict[str, Path]:
    """Return tar shards by their names.

    Raises:
        DataError: if there are none, or two of the same name.
    """
    shards: dict[str, Path] = {}
    for path in shard_files(source):
        name = shard_name(path)
        if name in shards:
            raise DataError(f"{shards[name]} and {path} are both called {name}, folder and file; rename a folder")
        shards[name] = path
    return shards


def image_hash(shard: str, key: str) -> int:
    """Return 64 bits that stand for an image in every draw."""
    name = f"{shard}/{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
