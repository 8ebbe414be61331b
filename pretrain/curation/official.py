"""Statistics in the format of Pixio's own loader: one JSON file per tar shard, from any scorer.

``<root>/<parent folder>/<stem of the tar>.json`` holds, for the name of each member, its ``mae_loss``,
``histogram_score``, ``height`` and ``width``.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..images.shards import samples
from ..images.tar_walk import TarWalk
from .statistics import NO_RECORD, OK, ShardStatistics, image_hash, shard_name

log = logging.getLogger(__name__)

_FIELDS = ("mae_loss", "histogram_score", "height", "width")


def official_statistics(shard: Path, root: Path) -> ShardStatistics:
    """Return the statistics of a shard's images; images with an incomplete record have the status "no record".

    Raises:
        DataError: if the JSON file is damaged.
        OSError: if the shard cannot be read.
    """
    name = shard_name(shard)
    records = _records(root / f"{name}.json")
    walk = TarWalk(shard)
    members = [member for member, _ in samples(walk)]
    numbers = np.array([_numbers(records.get(member.name)) for member in members], np.float64).reshape(-1, len(_FIELDS))
    loss, entropy, height, width = numbers.T
    return ShardStatistics(
        name,
        0,
        walk.cut,
        key=tuple(member.name for member in members),
        hash=np.array([image_hash(name, member.name) for member in members], np.uint64),
        offset=np.array([member.offset for member in members], np.int64),
        size=np.array([member.size for member in members], np.int64),
        width=np.nan_to_num(width).astype(np.int32),
        height=np.nan_to_num(height).astype(np.int32),
        entropy=entropy,
        loss=loss,
        spread=np.full(len(members), np.nan),
        status=tuple(OK if math.isfinite(sum(row)) else NO_RECORD for row in numbers.tolist()),
    )


def _records(path: Path) -> dict[str, Any]:
    if not path.is_file():
        log.warning("no records for a shard: %s is missing; none of its images is drawn", path)
        return {}
    try:
        records = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(records, dict):
        raise DataError(
            f"{path} holds a {type(records).__name__}; expected an object: {{member name: {{mae_loss: ...}}}}"
        )
    return records


def _numbers(record: Any) -> list[float]:
    try:
        values = [float(record[name]) for name in _FIELDS]
    except (TypeError, KeyError, ValueError):
        return [math.nan] * len(_FIELDS)
    return values
