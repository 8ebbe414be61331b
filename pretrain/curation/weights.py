"""From an image's statistics to the probability of drawing it in an epoch.

Pixio's rule (arXiv 2512.15715): images of few colours and small images are left out. Each of the others is drawn with
probability min(1, loss), so images that are easy to reconstruct are seen less often.

Shapes: N images of a shard.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...errors import BadInput
from .statistics import NO_RECORD, OK, ShardStatistics

VERDICTS = ("drawn", "unreadable", "no record", "duplicate", "few colours", "too small")
_DRAWN, _UNREADABLE, _NO_RECORD, _DUPLICATE, _FEW_COLOURS, _SMALL = range(len(VERDICTS))


@dataclass(frozen=True)
class WeightRule:
    """How statistics become weights; the defaults are Pixio's.

    Raises:
        BadInput: if temperature or cap is not positive.
    """

    entropy: float | None = 4.5  # images must exceed it [bits]; None leaves none out
    least_side: int = 320  # least height and width [px]
    temperature: float = 1.0  # weight = min(1, loss ** (1 / temperature)); above 1 weights get more equal, below 1 less
    cap: float | None = None  # most images expected an epoch from one folder of shards; applied by `Source.factor`

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise BadInput(f"temperature={self.temperature} must be positive and finite; 1 is Pixio's rule")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise BadInput(f"cap={self.cap} must be a positive number of images an epoch, or null")


class Weighed(NamedTuple):
    """Weights of a shard's images."""

    weight: np.ndarray  # (N,) float64 in [0, 1]
    verdict: np.ndarray  # (N,) int8, indices of `VERDICTS`; the first reason that applies
    noise: np.ndarray  # (N,) float64, variance of the weight due to the random masks; NaN where unknown


def weigh(statistics: ShardStatistics, rule: WeightRule) -> Weighed:
    """Return weights, before any cap, and why images are left out.

    Of images with the same name in one shard only the first is used, since statistics cannot distinguish them.
    """
    status = np.array(statistics.status, object)
    repeated = np.ones(len(status), bool)
    repeated[np.unique(statistics.hash, return_index=True)[1]] = False
    sides = np.minimum(statistics.width, statistics.height)
    verdict = np.zeros(len(status), np.int8)
    for number, applies in (  # later reasons override earlier ones
        (_SMALL, sides < rule.least_side),
        (_FEW_COLOURS, np.zeros(len(status), bool) if rule.entropy is None else statistics.entropy <= rule.entropy),
        (_UNREADABLE, status != OK),
        (_NO_RECORD, status == NO_RECORD),
        (_DUPLICATE, repeated),
    ):
        verdict[applies] = number
    drawn = verdict == _DRAWN
    loss = np.where(drawn, statistics.loss, 0.0)
    power = 1 / rule.temperature
    weight = np.minimum(1.0, loss**power)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(weight < 1, power * loss ** (power - 1), 0.0)
        noise = slope**2 * statistics.spread**2 / max(statistics.masks, 1)
    return Weighed(weight, verdict, noise)
