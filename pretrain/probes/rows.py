"""What probes measured, one row a number: ``probe.jsonl`` of a run folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One measured number with its 95 % interval."""

    encoder: str  # as `load_encoder` takes it; "pixels" for the reference without an encoder
    weights: str  # "trained" or "random"; "none" without an encoder
    probe: str  # knn, linear, ...
    layer: int  # 0-based block; -1 without one
    token: str  # "mean", "0" to "7", "concat", "patches", ...: what the probe reads
    metric: str  # "accuracy", "accuracy@20", "rmse [m]", ...
    value: float
    low: float
    high: float
    count: int  # test images


def read_rows(path: Path) -> list[Row]:
    """Read ``probe.jsonl`` in the order of writing; a line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to ``probe.jsonl`` in one write, in place of a line that a crash cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write("".join(json.dumps(row._asdict()) + "\n" for row in rows))
