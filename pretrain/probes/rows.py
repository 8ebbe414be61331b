"""Results of probes, one row per number: ``probe.jsonl`` of a run folder."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...files import replacing


@dataclass(frozen=True)
class Row:
    """One measured number with its 95 % interval. The first row of an encoder and probe is its headline."""

    encoder: str  # as for `load_encoder`; "pixels" for the reference without an encoder
    weights: str  # "trained" or "random"; "none" without an encoder
    probe: str  # knn, linear, ...
    layer: int  # 0-based block; -1 without one
    token: str  # "mean", "0" to "7", "concat", "patches", ...: input of the probe
    metric: str  # "accuracy", "accuracy@20", "rmse [m]", ...
    value: float
    low: float
    high: float
    count: int  # test images


def headlines(rows: Iterable[Row]) -> list[Row]:
    """Return the first row of every encoder and probe."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.encoder, row.probe), row)
    return list(first.values())


def read_rows(path: Path) -> list[Row]:
    """Read ``probe.jsonl`` in the order of writing."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to ``probe.jsonl``, all or none, so results of a probe and an encoder are never partial."""
    before = path.read_text() if path.is_file() else ""
    with replacing(path) as temporary:
        temporary.write_text(before + "".join(json.dumps(asdict(row)) + "\n" for row in rows))


def lower_is_better(metric: str) -> bool:
    """Return whether a metric is an error.

    >>> lower_is_better("rmse [m]"), lower_is_better("accuracy@10")
    (True, False)
    """
    return metric.startswith(("rmse", "abs_rel"))
