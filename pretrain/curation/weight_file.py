"""The weights of a set of images: one Parquet file with one row per image and one row group per shard.

Shapes: N images of a shard.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from ...files import replacing
from .sidecar import arrow
from .statistics import ShardStatistics

_KIND = b"pixio-robot weights 1"


class ShardWeights(NamedTuple):
    """Places and weights of the images of one shard."""

    offset: np.ndarray  # (N,) int64 [bytes]
    size: np.ndarray  # (N,) int64 [bytes]
    hash: np.ndarray  # (N,) uint64
    weight: np.ndarray  # (N,) float32 in [0, 1]


class WeightWriter:
    """Appends shards to a file of weights; see `writing`."""

    def __init__(self, path: Path) -> None:
        pa, parquet = arrow()
        self._schema = pa.schema(
            [
                ("shard", pa.string()),
                ("offset", pa.int64()),
                ("size", pa.int64()),
                ("hash", pa.uint64()),
                ("weight", pa.float32()),
            ]
        )
        self._pa, self._writer = pa, parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._shards: list[str] = []

    def add(self, statistics: ShardStatistics, weight: np.ndarray) -> None:
        """Append the images of a shard with their weights, (N,)."""
        if not len(weight):
            return  # a row group cannot be empty
        columns = [[statistics.shard] * len(weight), statistics.offset, statistics.size, statistics.hash]
        arrays = [*columns, weight.astype(np.float32)]
        table = self._pa.table(
            [self._pa.array(each, kind) for each, kind in zip(arrays, self._schema.types, strict=True)],
            schema=self._schema,
        )
        self._writer.write_table(table, row_group_size=len(weight))
        self._shards.append(statistics.shard)

    def close(self) -> None:
        """Finish the file."""
        self._writer.add_key_value_metadata({_KIND: json.dumps(self._shards)})
        self._writer.close()


@contextmanager
def writing(path: Path) -> Iterator[WeightWriter]:
    """Yield a writer of a file that is complete or absent."""
    with replacing(path) as temporary:
        writer = WeightWriter(temporary)
        yield writer
        writer.close()


class WeightFile:
    """Reads weights shard by shard.

    Raises:
        DataError: if the file is missing or holds no weights.
    """

    def __init__(self, path: Path) -> None:
        pa, parquet = arrow()
        if not path.is_file():
            raise DataError(f"no weights at {path}; `pixio-robot curate` writes weights.parquet into its run folder")
        try:
            self._file: Any = parquet.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path} is damaged or no Parquet file ({error}); write it again: pixio-robot curate"
            ) from error
        metadata = self._file.metadata.metadata or {}
        if _KIND not in metadata:
            raise DataError(
                f"{path} is a Parquet file but holds no weights; use the weights.parquet of `pixio-robot curate`"
            )
        self._groups = {shard: number for number, shard in enumerate(json.loads(metadata[_KIND]))}

    @property
    def shards(self) -> list[str]:
        """Return the names of the shards."""
        return list(self._groups)

    def read(self, shard: str) -> ShardWeights | None:
        """Return the weights of a shard's images in order of their offsets; None for an unknown shard."""
        if shard not in self._groups:
            return None
        table = self._file.read_row_group(self._groups[shard], columns=list(ShardWeights._fields))
        columns = [table.column(name).to_numpy() for name in ShardWeights._fields]
        order = np.argsort(columns[0], kind="stable")
        return ShardWeights(*(each[order] for each in columns))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
