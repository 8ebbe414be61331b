"""What finished cells come to: scores by task, policy and seed, their intervals, and policies against each other.

Shapes: S seeds, E episodes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..metrics import EpisodeRecord, Mean, Rate, mcnemar, read_episodes, resampled, success_rate
from ..run_folder import read_json
from .cell import RunSpec, folder_of
from .protocol import SUCCESS, SUITES


class Policy(NamedTuple):
    """A row of the table: what is compared."""

    encoder: str
    fusion: str

    def __str__(self) -> str:
        return f"{self.encoder}, {self.fusion}" if self.fusion else self.encoder


@dataclass(frozen=True)
class Outcome:
    """What one finished cell came to."""

    cell: RunSpec
    folder: Path
    rows: list[EpisodeRecord]  # of the honest column; `scores` has them rescaled where episodes are cut
    scores: dict[tuple[int, str], float]  # by an episode's seed and start
    released: list[float]  # mean score at each evaluation, in order
    about: dict[str, Any]  # its result.json

    @property
    def policy(self) -> Policy:
        """The row it belongs to."""
        return Policy(self.cell.encoder, self.cell.fusion)

    @property
    def mean(self) -> float:
        """The mean of its honest scores."""
        return sum(self.scores.values()) / len(self.scores)


def read_outcome(cell: RunSpec, root: Path) -> Outcome | None:
    """Return what a cell came to, or None if it is not finished."""
    folder = folder_of(cell, root)
    about = read_json(folder / "result.json")
    if not about:
        return None
    rows = read_episodes(folder / "honest" / "episodes.jsonl")
    scores = {(row.seed, row.start): about["scale"] * row.score for row in rows}
    return Outcome(cell, folder, rows, scores, [about["scale"] * score for score in about.get("released", [])], about)


class Comparison(NamedTuple):
    """Two policies on episodes that both ran."""

    first: Policy
    second: Policy
    suite: str  # or "all"
    tasks: int
    difference: Mean  # of scores, first minus second
    wins: int  # episodes in which the first scores higher
    losses: int
    p: float  # two-sided exact sign test, which for successes is McNemar's

    @property
    def verdict(self) -> str:
        """Say in words what the episodes allow to say."""
        if self.difference.low <= 0 <= self.difference.high or self.p > 0.05:
            return "not enough episodes to tell"
        return f"the {'first' if self.difference.value > 0 else 'second'} does better"


class Results:
    """All finished cells of a benchmark."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._cells: dict[tuple[str, Policy], dict[int, Outcome]] = {}
        for each in outcomes:
            self._cells.setdefault((each.cell.task, each.policy), {})[each.cell.seed] = each

    @property
    def policies(self) -> list[Policy]:
        """Return the rows, in the order they were asked for."""
        return list(dict.fromkeys(policy for _, policy in self._cells))

    @property
    def tasks(self) -> list[str]:
        """Return the tasks with at least one finished cell."""
        return list(dict.fromkeys(task for task, _ in self._cells))

    def cells(self, task: str, policy: Policy) -> list[Outcome]:
        """Return a task's finished cells of a policy, in the order of their seeds."""
        found = self._cells.get((task, policy), {})
        return [found[seed] for seed in sorted(found)]

    def scores(self, task: str, policy: Policy) -> np.ndarray | None:
        """Return honest scores (S, E), or None where there are none."""
        grid = [list(each.scores.values()) for each in self.cells(task, policy)]
        return np.array(grid) if grid and grid[0] else None

    def rate(self, task: str, policy: Policy) -> Rate | None:
        """Return successes over all seeds' episodes with Wilson's interval; None where a suite has no success."""
        scores = self.scores(task, policy)
        if scores is None or task.split("/")[0] not in SUCCESS:
            return None
        return success_rate((scores.ravel() > 50).tolist())

    def task_score(self, task: str, policy: Policy) -> Mean | None:
        """Return the honest score of a task with its interval: Wilson's for successes, else resampled."""
        if (rate := self.rate(task, policy)) is not None:
            return _in_percent(rate)
        scores = self.scores(task, policy)
        return None if scores is None else resampled([scores])

    def suite_score(self, tasks: Sequence[str], policy: Policy) -> Mean | None:
        """Return the mean over tasks, seeds and starts drawn anew for its interval; None unless all tasks are there.

        Where all episodes succeed or all fail there is nothing to draw from; the interval is Wilson's then.
        """
        grids = [grid for task in tasks if (grid := self.scores(task, policy)) is not None]
        if not grids or len(grids) < len(tasks):
            return None
        score = resampled(grids)
        if score.low == score.high and all(task.split("/")[0] in SUCCESS for task in tasks):
            return _in_percent(success_rate((np.concatenate([grid.ravel() for grid in grids]) > 50).tolist()))
        return score

    def released(self, tasks: Sequence[str], policy: Policy) -> tuple[float, float] | None:
        """Return mean and deviation over seeds of the best of each run's evaluations; None unless all tasks are there.

        The deviation is that of the seeds' means over the tasks, 0 for one seed.
        """
        by_seed: dict[int, list[float]] = {}
        for task in tasks:
            for each in self.cells(task, policy):
                if each.released:
                    by_seed.setdefault(each.cell.seed, []).append(max(each.released))
        whole = [float(np.mean(best)) for best in by_seed.values() if len(best) == len(tasks)]
        if not tasks or not whole:
            return None
        return float(np.mean(whole)), float(np.std(whole, ddof=1)) if len(whole) > 1 else 0.0

    def overall(self, policy: Policy) -> Mean | None:
        """Return the plain mean of the four suites' honest scores, as published tables have it."""
        grids, weights = [], []
        for suite, names in SUITES.items():
            for name in names:
                scores = self.scores(f"{suite}/{name}", policy)
                if scores is None:
                    return None
                grids.append(scores)
                weights.append(1 / len(names) / len(SUITES))
        return resampled(grids, weights)

    def comparisons(self) -> list[Comparison]:
        """Return every two policies on the episodes that both ran, over all tasks and in each suite."""
        found = []
        for place, first in enumerate(self.policies):
            for second in self.policies[place + 1 :]:
                suites = list(dict.fromkeys(task.split("/")[0] for task in self.tasks))
                for suite in ("all", *suites):
                    tasks = [task for task in self.tasks if suite in ("all", task.split("/")[0])]
                    gaps = [gap for task in tasks if (gap := self._gap(task, first, second)) is not None]
                    if gaps and (suite != "all" or len(suites) > 1):
                        found.append(_compared(first, second, suite, gaps))
        return found

    def _gap(self, task: str, first: Policy, second: Policy) -> np.ndarray | None:
        """Return the differences of scores (S, E) on common seeds and starts."""
        ours, theirs = ({each.cell.seed: each.scores for each in self.cells(task, who)} for who in (first, second))
        seeds = sorted(ours.keys() & theirs.keys())
        starts = [start for start in ours[seeds[0]] if start in theirs[seeds[0]]] if seeds else []
        if not starts:
            return None
        return np.array([[ours[seed][start] - theirs[seed][start] for start in starts] for seed in seeds])


def _in_percent(rate: Rate) -> Mean:
    return Mean(100 * rate.value, 100 * rate.low, 100 * rate.high)


def _compared(first: Policy, second: Policy, suite: str, gaps: Sequence[np.ndarray]) -> Comparison:
    every = np.concatenate([gap.ravel() for gap in gaps])
    test = mcnemar((every > 0).tolist(), (every < 0).tolist())
    return Comparison(first, second, suite, len(gaps), resampled(gaps), test.only_first, test.only_second, test.p)
