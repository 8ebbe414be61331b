"""What finished runs amount to: scores by task, method and seed with their intervals, and methods compared in pairs.

Shapes: S seeds, E episodes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..metrics import EpisodeRecord, Mean, Rate, mcnemar, read_episodes, resampled, success_rate
from ..run_folder import read_json
from .protocol import HELD_OUT, SUCCESS, SUITES
from .run import Method, RunSpec, folder_of


@dataclass(frozen=True)
class RunResult:
    """What one finished run came to."""

    spec: RunSpec
    folder: Path
    rows: list[EpisodeRecord]  # held-out episodes; `scores` are rescaled where episodes are shorter than the task's own
    scores: dict[tuple[int, str], float]  # held-out scores by the episode's seed and initial state
    eval_scores: list[float]  # mean score at each evaluation epoch, in order
    about: dict[str, Any]  # its result.json

    @property
    def mean(self) -> float:
        """The mean of the held-out scores."""
        return sum(self.scores.values()) / len(self.scores)


def read_result(spec: RunSpec, root: Path) -> RunResult | None:
    """Return the result of a run, or None if it is not finished."""
    folder = folder_of(spec, root)
    about = read_json(folder / "result.json")
    if not about:
        return None
    rows = read_episodes(folder / HELD_OUT / "episodes.jsonl")
    scores = {(row.seed, row.start): about["scale"] * row.score for row in rows}
    return RunResult(
        spec, folder, rows, scores, [about["scale"] * score for score in about.get("best_checkpoint", [])], about
    )


class Comparison(NamedTuple):
    """Two methods on episodes that both ran."""

    first: Method
    second: Method
    suite: str  # or "all"
    tasks: int
    difference: Mean  # of scores, first minus second
    wins: int  # episodes in which the first scores higher
    losses: int
    p: float  # two-sided exact sign test, which for successes is McNemar's

    @property
    def verdict(self) -> str:
        """What the episodes allow to conclude."""
        if self.difference.low <= 0 <= self.difference.high or self.p > 0.05:
            return "no significant difference"
        return f"the {'first' if self.difference.value > 0 else 'second'} is better"


class Results:
    """All finished runs of a benchmark."""

    def __init__(self, results: Iterable[RunResult]) -> None:
        self._runs: dict[tuple[str, Method], dict[int, RunResult]] = {}
        for each in results:
            self._runs.setdefault((each.spec.task, each.spec.method), {})[each.spec.seed] = each

    @property
    def methods(self) -> list[Method]:
        """Return the rows, in the order of the command."""
        return list(dict.fromkeys(method for _, method in self._runs))

    @property
    def tasks(self) -> list[str]:
        """Return the tasks with at least one finished run."""
        return list(dict.fromkeys(task for task, _ in self._runs))

    def runs(self, task: str, method: Method) -> list[RunResult]:
        """Return a task's finished runs of a method, in the order of their seeds."""
        found = self._runs.get((task, method), {})
        return [found[seed] for seed in sorted(found)]

    def every_run(self, method: Method | None = None) -> list[RunResult]:
        """Return the finished runs of a method, or of all, task by task."""
        methods = self.methods if method is None else [method]
        return [each for task in self.tasks for one in methods for each in self.runs(task, one)]

    def scores(self, task: str, method: Method) -> np.ndarray | None:
        """Return held-out scores (S, E), or None where there are none."""
        grid = [list(each.scores.values()) for each in self.runs(task, method)]
        return np.array(grid) if grid and grid[0] else None

    def rate(self, task: str, method: Method) -> Rate | None:
        """Return successes over all seeds' episodes with Wilson's interval; None where a suite has no success."""
        scores = self.scores(task, method)
        if scores is None or task.split("/")[0] not in SUCCESS:
            return None
        return success_rate((scores.ravel() > 50).tolist())

    def task_score(self, task: str, method: Method) -> Mean | None:
        """Return the held-out score of a task with its interval: Wilson's for successes, else bootstrap."""
        if (rate := self.rate(task, method)) is not None:
            return _in_percent(rate)
        scores = self.scores(task, method)
        return None if scores is None else resampled([scores])

    def suite_score(self, tasks: Sequence[str], method: Method) -> Mean | None:
        """Return the mean over tasks with a bootstrap interval over seeds and episodes; None unless all tasks ran.

        Where all episodes succeed or all fail, bootstrap has nothing to resample; the interval is Wilson's then.
        """
        grids = [grid for task in tasks if (grid := self.scores(task, method)) is not None]
        if not grids or len(grids) < len(tasks):
            return None
        score = resampled(grids)
        if score.low == score.high and all(task.split("/")[0] in SUCCESS for task in tasks):
            return _in_percent(success_rate((np.concatenate([grid.ravel() for grid in grids]) > 50).tolist()))
        return score

    def best_checkpoint(self, tasks: Sequence[str], method: Method) -> tuple[float, float] | None:
        """Return mean and deviation over seeds of each run's best evaluation; None unless all tasks ran.

        The deviation is that of the seeds' means over the tasks, 0 for one seed.
        """
        by_seed: dict[int, list[float]] = {}
        for task in tasks:
            for each in self.runs(task, method):
                if each.eval_scores:
                    by_seed.setdefault(each.spec.seed, []).append(max(each.eval_scores))
        whole = [float(np.mean(best)) for best in by_seed.values() if len(best) == len(tasks)]
        if not tasks or not whole:
            return None
        return float(np.mean(whole)), float(np.std(whole, ddof=1)) if len(whole) > 1 else 0.0

    def overall(self, method: Method) -> Mean | None:
        """Return the plain mean of the four suites' held-out scores, as in published tables."""
        grids, weights = [], []
        for suite, names in SUITES.items():
            for name in names:
                scores = self.scores(f"{suite}/{name}", method)
                if scores is None:
                    return None
                grids.append(scores)
                weights.append(1 / len(names) / len(SUITES))
        return resampled(grids, weights)

    def comparisons(self) -> list[Comparison]:
        """Return every two methods on the episodes that both ran, over all tasks and in each suite."""
        found = []
        for index, first in enumerate(self.methods):
            for second in self.methods[index + 1 :]:
                suites = list(dict.fromkeys(task.split("/")[0] for task in self.tasks))
                for suite in ("all", *suites):
                    tasks = [task for task in self.tasks if suite in ("all", task.split("/")[0])]
                    gaps = [gap for task in tasks if (gap := self._gap(task, first, second)) is not None]
                    if gaps and (suite != "all" or len(suites) > 1):
                        found.append(_compared(first, second, suite, gaps))
        return found

    def _gap(self, task: str, first: Method, second: Method) -> np.ndarray | None:
        """Return the differences of scores (S, E) on common seeds and episodes."""
        ours, theirs = ({each.spec.seed: each.scores for each in self.runs(task, who)} for who in (first, second))
        seeds = sorted(ours.keys() & theirs.keys())
        common = [episode for episode in ours[seeds[0]] if episode in theirs[seeds[0]]] if seeds else []
        if not common:
            return None
        return np.array([[ours[seed][episode] - theirs[seed][episode] for episode in common] for seed in seeds])


def _in_percent(rate: Rate) -> Mean:
    return Mean(100 * rate.value, 100 * rate.low, 100 * rate.high)


def _compared(first: Method, second: Method, suite: str, gaps: Sequence[np.ndarray]) -> Comparison:
    every = np.concatenate([gap.ravel() for gap in gaps])
    test = mcnemar((every > 0).tolist(), (every < 0).tolist())
    return Comparison(first, second, suite, len(gaps), resampled(gaps), test.only_first, test.only_second, test.p)
