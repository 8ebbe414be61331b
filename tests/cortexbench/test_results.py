"""Numbers of a benchmark and their uncertainty."""

import csv
import doctest
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pixio_robot.cortexbench.protocol import TASKS
from pixio_robot.cortexbench.results import Results, RunResult
from pixio_robot.cortexbench.run import Method, RunSpec
from pixio_robot.cortexbench.table_files import table_text, write_tables
from pixio_robot.cortexbench.tables import main_table, token_table
from pixio_robot.metrics import Mean, resampled
from pixio_robot.policies.settings import HELD_OUT_SEED


def _result(task: str, encoder: str, seed: int, scores: list[float], eval_scores: list[float]) -> RunResult:
    spec = RunSpec(task, encoder, "", seed, "full", "both", "fp32")
    found = {(HELD_OUT_SEED + place, "x"): score for place, score in enumerate(scores)}
    about = {"tokens": None, "scale": 1, "demos": 9}
    return RunResult(spec, Path("runs") / spec.name, [], found, eval_scores, about)


def test_one_column_is_the_best_evaluation_the_other_the_final_checkpoint() -> None:
    found = Results(
        [
            _result("adroit/pen", "a", 100, [100.0, 0.0, 0.0, 0.0], [10.0, 60.0, 20.0]),
            _result("adroit/pen", "a", 200, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 40.0]),
        ]
    )
    method = Method("a", "mlp", "")
    best = found.best_checkpoint(["adroit/pen"], method)
    assert best is not None and best[0] == 50 and best[1] == pytest.approx(np.std([60, 40], ddof=1))
    assert str(found.rate("adroit/pen", method)) == "1/8 = 12% [2%, 47%]"
    assert found.suite_score(["adroit/pen", "adroit/relocate"], method) is None
    assert found.overall(method) is None


def test_the_mean_is_the_plain_mean_of_suites() -> None:
    score = {"adroit": 10.0, "dmc": 20.0, "metaworld": 30.0, "trifinger": 60.0}
    found = Results([_result(task, "a", 100, [score[task.split("/")[0]]] * 3, []) for task in TASKS])
    assert found.overall(Method("a", "mlp", "")) == pytest.approx(Mean(30.0, 30.0, 30.0))
    row = main_table(found, "held_out")[0]
    assert (row["policy"], row["mean"], row["DMC"]) == ("a", "30.0 [30.0, 30.0]", "20.0 [20.0, 20.0]")
    pixio = main_table(found, "held_out")[-1]
    assert (pixio["policy"], pixio["mean"], pixio["Adroit"]) == ("Pixio ViT-H", "78.4", "70.7")


def test_a_token_counts_as_used_only_where_the_error_rises_without_it() -> None:
    used = {"adroit/pen": [0.0, 0.4, -0.1], "adroit/relocate": [0.004, 0.009, 0.0]}
    outcomes = [_result(task, "a", 100, [0.0], []) for task in used]
    found = Results([replace(each, about=each.about | {"tokens": used[each.spec.task]}) for each in outcomes])
    assert [(row["2"], row["most used"]) for row in token_table(found)] == [("+40.0", "token 2"), ("+0.9", "none")]


def test_differences_need_enough_common_episodes() -> None:
    few = [("a", [100.0] * 3 + [0.0]), ("b", [0.0] * 4)]
    many = [(name, scores * 8) for name, scores in few]
    verdicts = []
    for each in (few, many):
        found = Results([_result("adroit/pen", name, 100, scores, []) for name, scores in each])
        (comparison,) = found.comparisons()
        assert comparison.difference.value == 75 and comparison.losses == 0
        verdicts.append(comparison.verdict)
    assert verdicts == ["no significant difference", "the first is better"]


def test_methods_are_compared_on_common_episodes_only() -> None:
    found = Results(
        [
            _result("dmc/walker_walk", "a", 100, [50.0, 60.0, 1.0, 1.0], []),
            _result("dmc/walker_walk", "b", 100, [40.0, 50.0], []),
            _result("dmc/walker_walk", "c", 200, [40.0, 50.0], []),
        ]
    )
    (comparison,) = found.comparisons()
    assert (str(comparison.first), str(comparison.second), comparison.difference.value) == ("a", "b", 10.0)
    assert comparison.wins == 2


def test_resampling_covers_seeds_and_episodes() -> None:
    assert resampled([np.full((3, 5), 7.0)]) == Mean(7.0, 7.0, 7.0)
    between_seeds = resampled([np.repeat([[0.0], [100.0]], 50, axis=1)])
    between_episodes = resampled([np.repeat([[0.0, 100.0]], 50, axis=0)])
    assert between_seeds.low == between_episodes.low == 0 and between_seeds.high == 100
    rng = np.random.default_rng(0)
    narrow, wide = (resampled([rng.normal(size=(3, size))]) for size in (400, 4))
    assert narrow.high - narrow.low < wide.high - wide.low
    assert resampled([np.zeros((1, 2)), np.ones((1, 2))], [0.25, 0.75]).value == 0.75


def test_special_characters_are_escaped_in_every_format() -> None:
    rows = [{"policy": "a_b & c", "score": "50 % | x"}]
    assert list(csv.DictReader(table_text(rows, "csv").splitlines())) == rows
    assert r"a\_b \& c & 50 \% | x \\" in table_text(rows, "tex") and r"50 % \| x" in table_text(rows, "md")


def test_a_table_without_rows_removes_earlier_files() -> None:
    write_tables(Path("b"), {"tokens": [{"a": 1}], "cost": [{"a": 1}]})
    write_tables(Path("b"), {"tokens": [], "cost": [{"a": 2}]})
    assert sorted(file.name for file in Path("b/tables").iterdir()) == ["cost.csv", "cost.md", "cost.tex"]


@pytest.mark.parametrize("name", ["grid", "sources", "table_files"])
def test_doctests(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"pixio_robot.cortexbench.{name}"))
    assert outcome.failed == 0 and outcome.attempted
