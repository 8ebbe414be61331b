"""Statistics of the images of one shard, and the names of shards and images.

Shapes: N images of a shard.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from ..images.sources import shard_files

OK, UNREADABLE, NOT_FINITE, NO_RECORD = "ok", "unreadable", "not finite", "no record"  # status of an image


class ShardStatistics(NamedTuple):
    """The images of one shard in order. Unknown numbers are NaN, unknown sizes 0."""

    shard: str  # parent folder/stem
    masks: int  # number of masks of the losses; 0 where unknown
    cut: bool  # the shard is truncated or damaged; these are the images before that place
    key: tuple[str, ...]  # names of the members
    hash: np.ndarray  # (N,) uint64, of shard and key
    offset: np.ndarray  # (N,) int64, of the image in the shard [bytes]
    size: np.ndarray  # (N,) int64 [bytes]
    width: np.ndarray  # (N,) int32, with EXIF orientation applied [px]
    height: np.ndarray  # (N,) int32 [px]
    entropy: np.ndarray  # (N,) float64 [bits]
    loss: np.ndarray  # (N,) float64, mean over the masks
    spread: np.ndarray  # (N,) float64, standard deviation over the masks
    status: tuple[str, ...]  # one of those above

    @property
    def source(self) -> str:
        """Return the folder of the shard, the unit of shares and caps."""
        return self.shard.rpartition("/")[0]


def shard_name(path: Path) -> str:
    """Return the name of a shard, independent of where its folder is.

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
    """Return the 64-bit hash of an image that all random draws use."""
    name = f"{shard}/{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
