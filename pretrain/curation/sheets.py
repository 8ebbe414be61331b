"""Example sheets of images drawn often, seldom and never, and histograms of a curation.

Shapes: S side of a thumbnail.
"""

import heapq
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ...errors import Unreadable
from ...files import replacing
from ..images.crops import center_crop
from .statistics import ShardStatistics
from .totals import ENTROPIES, LOSSES, Totals
from .weights import VERDICTS, Weighed

_SIDE, _STRIP, _COLUMNS = 128, 18, 8  # of a thumbnail and its caption [px]; thumbnails in a row
KINDS = {
    "seldom": "Drawn least: a sample of the tenth with the lowest loss",
    "often": "Drawn most: a sample of the tenth with the highest loss",
    "few colours": "Never drawn: entropy too low",
    "too small": "Never drawn: a side too short",
}


class Example(NamedTuple):
    """An image of an example sheet."""

    hash: int  # the images with the lowest are shown
    shard: str
    offset: int
    size: int
    loss: float
    entropy: float


@dataclass
class Examples:
    """A few random images of each kind, selected by the hashes of their names.

    Args:
        count: images of each kind.
        low, high: losses of the lowest and the highest tenth.
    """

    count: int
    low: float
    high: float
    found: dict[str, list[Example]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def add(self, statistics: ShardStatistics, weighed: Weighed) -> None:
        """Add the images of one shard."""
        drawn = weighed.verdict == 0
        for kind, matches in (
            ("seldom", drawn & (statistics.loss < self.low)),
            ("often", drawn & (statistics.loss >= self.high)),
            *((kind, weighed.verdict == VERDICTS.index(kind)) for kind in ("few colours", "too small")),
        ):
            numbers = np.flatnonzero(matches)
            numbers = numbers[np.argsort(statistics.hash[numbers])][: self.count]
            rows = [
                Example(
                    int(statistics.hash[number]),
                    statistics.shard,
                    int(statistics.offset[number]),
                    int(statistics.size[number]),
                    float(statistics.loss[number]),
                    float(statistics.entropy[number]),
                )
                for number in numbers
            ]
            self.found[kind] = heapq.nsmallest(self.count, [*self.found[kind], *rows])

    def draw(self, shards: dict[str, Path], folder: Path) -> dict[str, Path]:
        """Write one sheet per kind, ordered by loss, of images whose shard is available.

        Args:
            shards: their paths by name.
            folder: of the sheets.

        Returns:
            The sheets by kind.
        """
        sheets = {}
        for kind, examples in self.found.items():
            cells = [_cell(shards[each.shard], each) for each in sorted(examples, key=_loss) if each.shard in shards]
            if cells:
                sheets[kind] = folder / f"{kind.replace(' ', '-')}.png"
                _write(sheets[kind], cells)
        return sheets


def _loss(example: Example) -> float:
    return example.loss


def _cell(shard: Path, example: Example) -> np.ndarray:
    cell = np.full((_SIDE + _STRIP, _SIDE, 3), 255, np.uint8)
    try:
        file = os.open(shard, os.O_RDONLY)
        try:
            cell[:_SIDE] = center_crop(os.pread(file, example.size, example.offset), (_SIDE, _SIDE))
        finally:
            os.close(file)
    except (OSError, Unreadable):
        cell[:_SIDE] = 200
    text = f"loss {example.loss:.2f}  {example.entropy:.1f} bit"
    cv2.putText(cell, text, (3, _SIDE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _write(path: Path, cells: list[np.ndarray]) -> None:
    cells = cells + [np.full_like(cells[0], 255)] * (-len(cells) % _COLUMNS)
    rows = [np.concatenate(cells[at : at + _COLUMNS], axis=1) for at in range(0, len(cells), _COLUMNS)]
    encoded = cv2.imencode(".png", np.ascontiguousarray(np.concatenate(rows)[..., ::-1]))[1]
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def draw_histograms(path: Path, totals: Totals, threshold: float | None) -> None:
    """Write the distributions of loss, before and after drawing, and of entropy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    before, after, edges = totals.losses.reshape(-1, 8).sum(1), totals.kept.reshape(-1, 8).sum(1), LOSSES[::8]
    left.stairs(before, edges, fill=True, color="#c9d3df", label="images that pass the filters")
    left.stairs(after, edges, color="#1f5fa8", label="expected in an epoch, without caps")
    shown = np.flatnonzero(totals.losses)
    left.set_xlim(0, max(1.1, float(LOSSES[shown[-1] + 1])) if len(shown) else 1.1)
    left.set_xlabel("loss")
    left.set_ylabel("images")
    left.legend(frameon=False, fontsize=8)
    right.stairs(totals.entropies, ENTROPIES, fill=True, color="#c9d3df")
    if threshold is not None:
        right.axvline(threshold, color="#b23b3b")
    right.set_xlabel(
        "entropy [bits]; images left of the line are not drawn" if threshold is not None else "entropy [bits]"
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
