"""Correctness of each test image, for paired tests between encoders: ``outcomes/`` of a run folder."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ...files import replacing
from ...metrics import mcnemar
from ...run_folder import digest
from .classification import PROBES
from .rows import Row, headlines


def keep_outcomes(out: Path, encoder: str, probe: str, kept: np.ndarray, right: np.ndarray) -> None:
    """Write the correctness of a headline on each test image, int8: 1 right, 0 wrong, -1 unreadable."""
    outcomes = np.full(len(kept), -1, np.int8)
    outcomes[kept] = right
    with replacing(_file(out, encoder, probe)) as temporary, temporary.open("wb") as file:
        np.save(file, outcomes)


def comparisons(out: Path, rows: list[Row]) -> list[dict[str, Any]]:
    """Return McNemar's test of every two encoders on the headline of each probe that classifies."""
    tests = []
    for first, second in combinations(headlines(rows), 2):
        if first.probe != second.probe or first.metric != second.metric or first.probe not in PROBES:
            continue
        ones, others = (np.load(_file(out, each.encoder, each.probe)) for each in (first, second))
        both = (ones >= 0) & (others >= 0)
        test = mcnemar((ones[both] == 1).tolist(), (others[both] == 1).tolist())
        tests.append(
            {
                "probe": first.probe,
                "first": first.encoder,
                "second": second.encoder,
                "only first right": test.only_first,
                "only second right": test.only_second,
                "p, McNemar": f"{test.p:.2g}",
            }
        )
    return tests


def _file(out: Path, encoder: str, probe: str) -> Path:
    return out / "outcomes" / f"{digest(encoder, probe)}.npy"
