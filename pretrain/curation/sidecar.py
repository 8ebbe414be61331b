"""One Parquet file per shard with the statistics of its images; complete or absent, and byte-identical each time."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError, MissingExtra
from ...files import replacing
from .score import Scoring
from .statistics import ShardStatistics

_KIND = b"pixio-robot scores 1"
_NUMBERS = {  # column, its type in the file and in memory
    "hash": ("uint64", np.uint64),
    "offset": ("int64", np.int64),
    "size": ("int64", np.int64),
    "width": ("int32", np.int32),
    "height": ("int32", np.int32),
    "entropy": ("float32", np.float64),
    "loss": ("float32", np.float64),
    "spread": ("float32", np.float64),
}


class SidecarHead(NamedTuple):
    """Metadata of a sidecar."""

    shard: str
    bytes: int  # of the shard
    cut: bool
    scoring: Scoring


def sidecar_path(folder: Path, shard: str) -> Path:
    """Return the path of a shard's sidecar."""
    return folder / f"{shard}.parquet"


def write_sidecar(path: Path, statistics: ShardStatistics, scoring: Scoring, size: int) -> None:
    """Write a sidecar.

    Args:
        size: of the shard [bytes].
    """
    pa, parquet = arrow()
    head = SidecarHead(statistics.shard, size, statistics.cut, scoring)
    columns = {"key": pa.array([_text(key) for key in statistics.key], pa.string())}
    columns |= {name: pa.array(getattr(statistics, name), kind) for name, (kind, _) in _NUMBERS.items()}
    columns["status"] = pa.array(statistics.status, pa.string())
    table = pa.table(columns).replace_schema_metadata(
        {_KIND: json.dumps(head._asdict() | {"scoring": scoring._asdict()})}
    )
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def read_head(path: Path) -> SidecarHead:
    """Return the metadata of a sidecar.

    Raises:
        DataError: if it is not a sidecar.
    """
    _, parquet = arrow()
    return _head(path, _reading(path, parquet.read_schema).metadata)


def read_sidecar(path: Path) -> ShardStatistics:
    """Return the statistics in a sidecar.

    Raises:
        DataError: if it is not a sidecar, or damaged.
    """
    _, parquet = arrow()
    table = _reading(path, parquet.read_table)
    head = _head(path, table.schema.metadata)
    numbers = {name: table.column(name).to_numpy().astype(kind) for name, (_, kind) in _NUMBERS.items()}
    key, status = (tuple(table.column(name).to_pylist()) for name in ("key", "status"))
    return ShardStatistics(head.shard, head.scoring.masks, head.cut, key=key, status=status, **numbers)


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module.

    Raises:
        MissingExtra: if they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("curation", "curation") from error
    return pyarrow, parquet


def _reading(path: Path, read: Any) -> Any:
    pa, _ = arrow()
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        return read(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is damaged or no Parquet file ({error}); delete it and score its shard again"
        ) from error


def _head(path: Path, metadata: dict[bytes, bytes] | None) -> SidecarHead:
    if not metadata or _KIND not in metadata:
        raise DataError(f"{path} is a Parquet file but holds no scores; `pixio-robot score` writes those")
    values = json.loads(metadata[_KIND])
    return SidecarHead(**(values | {"scoring": Scoring(**values["scoring"])}))


def _text(key: str) -> str:
    """Return a name as valid UTF-8, which Parquet requires; the hash is of the original name."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
