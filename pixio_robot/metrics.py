"""Episode records, success rates, means and tests, with confidence intervals."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, trim_mean

from .files import replacing

_RESAMPLED = 4000


@dataclass
class EpisodeRecord:
    """One evaluated episode: a row of ``episodes.jsonl``."""

    task: str
    policy: str  # name of the policy, "expert" for a task's expert
    encoder: str  # name as `load_encoder` takes it, or "none"
    weights: str  # "random" or "trained"; "none" where no encoder is used
    fusion: str
    render: str  # render quality
    index: int  # place in the fixed list of episodes
    seed: int
    start: str  # digest of the simulator's state after reset
    episode_return: float
    success_any: bool  # at any step
    success_last: bool  # at the last step: CortexBench's rule for MetaWorld
    success_count: int  # steps with success
    score: float  # the suite's score, 0 to 100
    length: int  # [steps]
    wall_s: float  # [s]
    video: str = ""  # path relative to the run folder


class Rate(NamedTuple):
    """A success rate with its interval."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Return successes / trials."""
        return self.successes / self.trials

    def __str__(self) -> str:
        return f"{self.successes}/{self.trials} = {self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


def success_rate(outcomes: Iterable[bool]) -> Rate:
    """Return the rate of true outcomes with its two-sided 95 % Wilson score interval (Wilson 1927).

    >>> str(success_rate([True] * 20 + [False] * 5))
    '20/25 = 80% [61%, 91%]'
    """
    outcomes = list(outcomes)
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(0.95, method="wilson")
    return Rate(sum(outcomes), len(outcomes), float(interval.low), float(interval.high))


class Mean(NamedTuple):
    """A mean with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_score(scores: Iterable[float]) -> Mean:
    """Return the mean with its 95 % percentile bootstrap interval over episodes, the same on every call.

    >>> str(mean_score([40.0, 60.0, 50.0, 50.0]))
    '50.0 [42.5, 57.5]'
    """
    values = np.array(list(scores), dtype=float)
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(float(values.mean()), float(low), float(high))


def resampled(grids: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> Mean:
    """Return the mean over tasks with its 95 % percentile bootstrap interval, the same on every call.

    Training seeds and initial states are both resampled, separately in each task. With one seed the interval does not
    include the variance of training.

    Args:
        grids: for each task scores, or differences of scores, (seeds, initial states); all seeds have the same initial
            states.
        weights: of the tasks, which sum to 1; None weighs them equally.

    >>> str(resampled([np.array([[0.0, 100.0, 0.0, 100.0]]), np.array([[50.0, 50.0, 50.0, 50.0]])]))
    '50.0 [25.0, 75.0]'
    """
    rng, means, value = np.random.default_rng(0), np.zeros(_RESAMPLED), 0.0
    for grid, weight in zip(grids, weights or [1 / len(grids)] * len(grids), strict=True):
        rows, columns = (rng.integers(0, size, (_RESAMPLED, size)) for size in grid.shape)
        means += weight * grid[rows[:, :, None], columns[:, None, :]].mean((1, 2))
        value += weight * float(grid.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(value, float(low), float(high))


def interquartile_mean(values: Iterable[float]) -> Mean:
    """Return the mean of the middle half with its 95 % percentile bootstrap interval, the same on every call.

    Agarwal et al. 2021, arXiv 2108.13264. Pass one value for each seed: seeds, not episodes, are the random variable.

    >>> str(interquartile_mean([0.0, 40.0, 60.0, 1000.0]))
    '50.0 [0.0, 1000.0]'
    """
    given = np.array(list(values), dtype=float)
    drawn = np.random.default_rng(0).choice(given, (2000, len(given)))
    low, high = np.quantile(trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
    return Mean(float(trim_mean(given, 0.25)), float(low), float(high))


class PairedTest(NamedTuple):
    """Result of a paired test: two policies on the same episodes, or two encoders on the same images."""

    only_first: int  # trials in which only the first succeeds
    only_second: int
    p: float  # two-sided


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Return McNemar's exact test (McNemar 1947) of two outcomes of each trial.

    >>> mcnemar([True] * 6 + [False], [False] * 6 + [True])
    PairedTest(only_first=6, only_second=1, p=0.125)
    """
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    differing = only_first + only_second
    p = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return PairedTest(only_first, only_second, p)


def paired_test(first: Sequence[EpisodeRecord], second: Sequence[EpisodeRecord], rule: str) -> PairedTest | None:
    """Return McNemar's exact test on episodes with the same seed and initial state; None if there are none.

    Args:
        rule: "last" or "any".
    """
    outcomes = {(row.seed, row.start): getattr(row, f"success_{rule}") for row in second}
    pairs = [
        (getattr(row, f"success_{rule}"), outcomes[row.seed, row.start])
        for row in first
        if (row.seed, row.start) in outcomes
    ]
    return mcnemar(*zip(*pairs, strict=True)) if pairs else None


def read_episodes(path: Path) -> list[EpisodeRecord]:
    """Read ``episodes.jsonl``, ordered by index; a line that a crash truncated is skipped."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = [EpisodeRecord(**json.loads(line)) for line in lines if line.endswith("\n")]
    return sorted(rows, key=lambda row: row.index)


def append_episode(path: Path, row: EpisodeRecord) -> None:
    """Add one row to ``episodes.jsonl``, replacing a last line that a crash truncated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not (text := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def write_episodes(path: Path, rows: Iterable[EpisodeRecord]) -> None:
    """Rewrite ``episodes.jsonl``, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
