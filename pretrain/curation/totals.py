"""Sums and histograms over all images, added shard by shard in constant memory.

Shapes: N images of a shard.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .statistics import ShardStatistics
from .weights import VERDICTS, Weighed

LOSSES = np.linspace(0, 2, 401)  # edges of the histograms; larger losses go into the last bin
ENTROPIES = np.linspace(0, 8, 161)  # [bits]
LOW_CONTRAST = 0.1


@dataclass
class Source:
    """The images of one folder of shards."""

    images: int = 0
    scored: int = 0  # have a loss
    loss: float = 0.0  # sums over those
    entropy: float = 0.0  # [bits]
    drawable: int = 0  # pass all filters
    weight: float = 0.0  # sums over those
    squares: float = 0.0
    logs: float = 0.0  # of weight * log2(weight)

    def factor(self, cap: float | None) -> float:
        """Return the factor of the weights with which at most `cap` images are expected an epoch."""
        return 1.0 if cap is None or self.weight <= cap else cap / self.weight


@dataclass
class Totals:
    """Sums over shards; see `add`."""

    shards: int = 0
    cut: int = 0
    sources: dict[str, Source] = field(default_factory=dict)
    verdicts: np.ndarray = field(default_factory=lambda: np.zeros(len(VERDICTS), np.int64))
    losses: np.ndarray = field(default_factory=lambda: np.zeros(len(LOSSES) - 1, np.int64))  # of drawable images
    kept: np.ndarray = field(default_factory=lambda: np.zeros(len(LOSSES) - 1))  # the same times their weights
    entropies: np.ndarray = field(default_factory=lambda: np.zeros(len(ENTROPIES) - 1, np.int64))  # of readable images
    noise: float = 0.0  # sum over drawable images

    def add(self, statistics: ShardStatistics, weighed: Weighed) -> None:
        """Add one shard."""
        self.shards += 1
        self.cut += statistics.cut
        self.verdicts += np.bincount(weighed.verdict, minlength=len(VERDICTS))
        drawn = weighed.verdict == 0
        weight, loss = weighed.weight[drawn], statistics.loss[drawn]
        bins = np.minimum(np.searchsorted(LOSSES, loss, side="right") - 1, len(self.losses) - 1)
        self.losses += np.bincount(bins, minlength=len(self.losses))
        self.kept += np.bincount(bins, weight, minlength=len(self.kept))
        known = statistics.entropy[np.isfinite(statistics.entropy)]
        self.entropies += np.histogram(known.clip(0, 8), ENTROPIES)[0]
        self.noise += float(np.nan_to_num(weighed.noise[drawn]).sum())
        source = self.sources.setdefault(statistics.source, Source())
        source.images += len(drawn)
        scored = np.isfinite(statistics.loss)
        source.scored += int(scored.sum())
        source.loss += float(statistics.loss[scored].sum())
        source.entropy += float(statistics.entropy[scored].sum())
        source.drawable += int(drawn.sum())
        source.weight += float(weight.sum())
        source.squares += float((weight**2).sum())
        positive = weight[weight > 0]
        source.logs += float((positive * np.log2(positive)).sum())

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(each.images for each in self.sources.values())

    @property
    def drawable(self) -> int:
        """Return the number of images that pass all filters."""
        return sum(each.drawable for each in self.sources.values())

    @property
    def contrast(self) -> float:
        """Return the relative spread of weights: standard deviation over mean, with the noise of masks subtracted."""
        if not self.drawable:
            return 0.0
        mean = sum(each.weight for each in self.sources.values()) / self.drawable
        square = sum(each.squares for each in self.sources.values()) / self.drawable
        signal = square - mean**2 - self.noise / self.drawable
        return math.sqrt(max(0.0, signal)) / mean if mean else 0.0

    def expected(self, cap: float | None) -> float:
        """Return the expected number of images an epoch."""
        return sum(each.factor(cap) * each.weight for each in self.sources.values())

    def effective(self, cap: float | None) -> float:
        """Return the effective sample size, (sum of weights)^2 / sum of their squares."""
        squares = sum(each.factor(cap) ** 2 * each.squares for each in self.sources.values())
        return self.expected(cap) ** 2 / squares if squares else 0.0

    def entropy(self, cap: float | None) -> float:
        """Return the entropy of the weights as shares of an epoch [bits]; at most log2 of the drawable images."""
        total = self.expected(cap)
        if not total:
            return 0.0
        logs = 0.0
        for each in self.sources.values():
            factor = each.factor(cap)
            logs += factor * (each.logs + each.weight * math.log2(factor))
        return math.log2(total) - logs / total

    def quantile(self, share: float) -> float:
        """Return a quantile of the drawable images' losses, to the width of a histogram bin."""
        if not self.drawable:
            return 0.0
        number = int(np.searchsorted(np.cumsum(self.losses), share * self.drawable))
        return float(LOSSES[min(number + 1, len(LOSSES) - 1)])
