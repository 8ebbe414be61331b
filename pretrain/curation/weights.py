"""From an image's statistics to the probability of drawing it in an epoch.

The rule of Pixio (arXiv 2512.15715): images of few colours and small ones are left out, of the others an image comes
up with probability min(1, loss), so what is easy to reconstruct is seen less often and nothing is banned.

Shapes: N images of a shard.
"""

from typing import NamedTuple

import numpy as np

from .statistics import NO_RECORD, OK, ShardStatistics

VERDICTS = ("drawn", "unreadable", "no record", "duplicate", "few colours", "too small")
_DRAWN, _UNREADABLE, _NO_RECORD, _DUPLICATE, _FEW_COLOURS, _SMALL = range(len(VERDICTS))


class Policy(NamedTuple):
    """How statistics become weights; the defaults are Pixio's."""

    entropy: float | None = 4.5  # must be exceeded [bits]; None leaves nothing out
    least_side: int = 320  # of the shorter side [px]
    temperature: float = 1.0  # weight = min(1, loss ** (1 / temperature)): above 1 evens out, below 1 sharpens


class Weighed(NamedTuple):
    """What the policy says of a shard's images."""

    weight: np.ndarray  # (N,) float64 in [0, 1]
    verdict: np.ndarray  # (N,) int8, places in `VERDICTS`; the first reason that applies
    noise: np.ndarray  # (N,) float64, variance of the weight that is due to the choice of masks; NaN if not known


def weigh(statistics: ShardStatistics, policy: Policy) -> Weighed:
    """Return weights and why they are 0.

    Of images with the same name in one shard the first counts: no statistics could tell them apart.
    """
    status = np.array(statistics.status, object)
    repeated = np.ones(len(status), bool)
    repeated[np.unique(statistics.hash, return_index=True)[1]] = False
    sides = np.minimum(statistics.width, statistics.height)
    verdict = np.zeros(len(status), np.int8)
    for number, applies in (  # the later overrule the earlier
        (_SMALL, sides < policy.least_side),
        (_FEW_COLOURS, np.zeros(len(status), bool) if policy.entropy is None else statistics.entropy <= policy.entropy),
        (_UNREADABLE, status != OK),
        (_NO_RECORD, status == NO_RECORD),
        (_DUPLICATE, repeated),
    ):
        verdict[applies] = number
    drawn = verdict == _DRAWN
    loss = np.where(drawn, statistics.loss, 0.0)
    power = 1 / policy.temperature
    weight = np.minimum(1.0, loss**power)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(weight < 1, power * loss ** (power - 1), 0.0)
        noise = slope**2 * statistics.spread**2 / max(statistics.masks, 1)
    return Weighed(weight, verdict, noise)
