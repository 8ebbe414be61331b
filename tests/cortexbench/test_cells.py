"""Cells of a benchmark: independent, judged alike, resumed, and what several share is made once."""

import csv
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixio_robot.cli import run
from pixio_robot.cortexbench import cell as cells
from pixio_robot.cortexbench.cell import Paths, RunSpec, folder_of, run_cell
from pixio_robot.cortexbench.commands import Benchmark
from pixio_robot.cortexbench.protocol import BUDGETS
from pixio_robot.cortexbench.runs import BenchmarkReport, run_benchmark
from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.jobs import launch
from pixio_robot.jobs.launch import Job, Starter, why_failed
from pixio_robot.metrics import read_episodes
from pixio_robot.policies.settings import HELD_OUT_SEED

TINY = replace(BUDGETS["smoke"], horizon={"toy": 25}, share=0.02)


def _cell(**changes: Any) -> RunSpec:
    return replace(RunSpec("toy/reach", "none", "", 100, "smoke", "both", "fp32"), **changes)


def test_a_cell_is_named_after_all_that_matters() -> None:
    first = _cell()
    others = [
        _cell(task="metaworld/hammer"),
        _cell(encoder="state"),
        _cell(fusion="concat"),
        _cell(seed=200),
        _cell(budget="small"),
        _cell(protocol="honest"),
        _cell(precision="bf16"),
        _cell(weights="other"),
        _cell(source="other"),
    ]
    assert len({each.name for each in (first, *others)}) == 10 and first.name == _cell().name
    assert folder_of(_cell(encoder="/a/b/enc.safetensors"), Path("r")).name.startswith("toy-reach-enc-100-")


class Inline:
    """Runs cells in this process, which saves starting one for each."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, folder: Path, memory: float) -> Job:
        self.started.append(folder.name)
        status = cells.main(folder, os.getppid())
        return Job(lambda: why_failed(folder, status), lambda: None)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """Let `run_benchmark` run tiny cells in this process."""
    return _make_inline(monkeypatch)


def _make_inline(patch: pytest.MonkeyPatch) -> Inline:
    inline = Inline()

    @contextmanager
    def here(*_: object) -> Iterator[Starter]:
        yield inline.start

    patch.setattr(launch, "open_engine", here)
    patch.setattr(launch, "end_after", lambda wait: None)
    patch.setattr(launch.logging, "basicConfig", lambda **_: None)
    patch.setitem(BUDGETS, "smoke", TINY)
    return inline


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> BenchmarkReport:
    """A finished benchmark of the toy: two fusions, two seeds, two references."""
    with pytest.MonkeyPatch.context() as patch:
        _make_inline(patch)
        command = Benchmark(
            encoders=[str(tiny_file), "none", "expert"],
            tasks="toy/reach",
            seeds=[100, 200],
            fusions=["mean", "first"],
            out=str(tmp_path_factory.mktemp("benchmark")),
        )
        report = run_benchmark(command)
    return report


def _result(report: BenchmarkReport, words: str) -> tuple[Path, dict[str, Any]]:
    (folder,) = (report.out / "cells").glob(f"toy-reach-{words}-*/")
    return folder, json.loads((folder / "result.json").read_text())


def test_all_evaluations_of_a_run_share_its_seeds_starts(done: BenchmarkReport) -> None:
    """Episode k starts from seed base + k; demonstrations and the honest episodes start elsewhere."""
    folder, result = _result(done, "tiny-mean-200")
    evaluations = [read_episodes(path) for path in sorted(folder.glob("released/*/episodes.jsonl"))]
    assert len(evaluations) == len(result["moments"]) == len(result["released"]) == 2
    assert [[row.seed for row in rows] for rows in evaluations] == [[200]] * 2
    honest = read_episodes(folder / "honest" / "episodes.jsonl")
    assert [row.seed for row in honest] == [HELD_OUT_SEED, HELD_OUT_SEED + 1]
    (file,) = (done.out / "demos").glob("*.hdf5")
    starts = [{row.start for row in honest}, {row.start for row in evaluations[0]}, set(DemoSet(file).starts)]
    assert sum(map(len, starts)) == len(set.union(*starts))


def test_episodes_look_like_the_demonstrations(done: BenchmarkReport) -> None:
    """Other shadows or another size at evaluation would pass for a bad encoder."""
    (file,) = (done.out / "demos").glob("*.hdf5")
    for folder in (done.out / "cells").glob("*mean*/"):
        request = json.loads((folder / "result.json").read_text())["request"]
        assert TaskSpec(**{**request, "observe": tuple(request["observe"]), "cameras": ()}) == DemoSet(file).request
        assert {row.render for row in read_episodes(folder / "honest" / "episodes.jsonl")} == {"fast"}


def test_every_policy_meets_the_same_honest_episodes(done: BenchmarkReport) -> None:
    found = {
        folder.name: [(row.seed, row.start) for row in read_episodes(folder / "honest" / "episodes.jsonl")]
        for folder in (done.out / "cells").iterdir()
        if folder.is_dir()
    }
    assert len(found) == 2 * 3 + 1 and len({tuple(each) for each in found.values()}) == 1


def test_no_policy_but_state_is_told_the_goal(
    done: BenchmarkReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixio_robot.policies import runs as policy_runs

    seen: list[tuple[str, ...]] = []

    def watched(act: object, request: TaskSpec, *arguments: Any, **more: Any) -> None:
        seen.append(request.observe)
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_runs, "evaluate", watched)
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    for encoder in ("none", "state", "cnn"):
        with pytest.raises(KeyboardInterrupt):
            run_cell(_cell(encoder=encoder), Paths(str(tmp_path)))
    assert seen == [("proprio",), ("state",), ("rgb", "proprio")]


def test_what_was_needed_to_judge_is_cleared_away(done: BenchmarkReport) -> None:
    folder, _ = _result(done, "tiny-mean-100")
    assert [path.name for path in folder.glob("checkpoints/*/*")] == ["last.safetensors"]


def test_tokens_that_a_fusion_does_not_read_are_not_used(done: BenchmarkReport) -> None:
    _, first = _result(done, "tiny-first-100")
    _, mean = _result(done, "tiny-mean-100")
    assert first["tokens"][0] != 0 and not any(first["tokens"][1:]) and len(mean["tokens"]) == 8 and any(mean["tokens"])
    assert _result(done, "none-100")[1]["tokens"] is None


def test_the_table_has_both_columns_and_the_published_rows(done: BenchmarkReport) -> None:
    rows = list(csv.DictReader((done.out / "tables" / "cortexbench.csv").read_text().splitlines()))
    assert {row["protocol"] for row in rows} == {"honest", "as released"}
    expert = [row for row in rows if row["policy"] == "expert"]
    assert [row["toy"] for row in expert] == ["100.0 [34.2, 100.0]"]
    page = (done.out / "report.html").read_text()
    for words in ("tiny.safetensors, first", "not enough episodes to tell", "Wilson", "as released", "<video"):
        assert words in page, words
    for name in ("tasks", "comparisons", "tokens", "settings", "cost"):
        for suffix in ("csv", "tex", "md"):
            assert (done.out / "tables" / f"{name}.{suffix}").stat().st_size


def test_finished_cells_are_not_run_again(done: BenchmarkReport, inline: Inline, tiny_file: Path) -> None:
    command = Benchmark(encoders=["none"], tasks="toy/reach", seeds=[100], out=str(done.out))
    report = run_benchmark(command)
    assert not inline.started and "1 of 1 finished" in report.result["facts"]["cells"]


def test_an_interrupted_cell_goes_on_to_the_same_result(
    done: BenchmarkReport, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    folder, whole = _result(done, "tiny-mean-100")
    cell = RunSpec(**whole["cell"])
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    original, calls = cells.evaluate_policy, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(cells, "evaluate_policy", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, Paths(str(tmp_path)))
    assert not (folder_of(cell, tmp_path) / "result.json").exists()
    monkeypatch.setattr(cells, "evaluate_policy", original)
    again = run_cell(cell, Paths(str(tmp_path)))
    assert {key: again[key] for key in ("released", "tokens", "scale")} == {
        key: whole[key] for key in ("released", "tokens", "scale")
    }
    rows = [read_episodes(each / "honest" / "episodes.jsonl") for each in (folder, folder_of(cell, tmp_path))]
    assert [row.episode_return for row in rows[0]] == [row.episode_return for row in rows[1]]


def test_each_column_can_be_had_alone(toy_file: Path, inline: Inline) -> None:
    Path("mine").mkdir()
    shutil.copy(toy_file, "mine")
    command = Benchmark(encoders=["none", "expert"], tasks="toy/reach", demos="mine", out="b", protocol="cortexbench")
    report = run_benchmark(command)
    assert [row["protocol"] for row in report.result["tables"]["CortexBench"]] == ["as released"]
    assert not list(Path("b/cells").glob("*/honest")) and Path("b/report.html").is_file()
    assert [row["policy"] for row in report.result["tables"]["Not run"]] == ["expert"]


def test_given_demonstrations_are_used_as_they_are(toy_file: Path, tmp_path: Path, inline: Inline) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(toy_file, folder)
    command = Benchmark(encoders=["none"], tasks="toy/reach", demos=str(folder), out="b", protocol="honest")
    report = run_benchmark(command)
    (found,) = Path("b/cells").glob("*/result.json")
    assert json.loads(found.read_text())["demos"] == 4 and not Path("b/demos").exists()
    assert not json.loads(found.read_text())["released"]
    assert {row["protocol"] for row in report.result["tables"]["CortexBench"]} == {"honest"}


def test_what_cells_share_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells that begin together: one records, the other waits and finds all of it."""
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    together, places = threading.Barrier(2), Paths(str(tmp_path))
    inside, found = [0], list[tuple[int, bool]]()
    original = cells.collect

    def watched(request: TaskSpec, demos: int, valid: int, seed: int, path: Path, *more: Any) -> Any:
        inside[0] += 1
        found.append((inside[0], path.is_file()))
        time.sleep(0.2)
        recorded = original(request, demos, valid, seed, path, *more)
        inside[0] -= 1
        return recorded

    def begin(cell: RunSpec) -> DemoSet:
        together.wait()
        return cells.demonstrations(cell, cells.request_of(cell, places), places, cells.Stages(tmp_path / cell.encoder))

    monkeypatch.setattr(cells, "collect", watched)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(begin, (_cell(encoder="none"), _cell(encoder="state")))
    assert found == [(1, False), (1, True)] and one.sha256() == other.sha256()


def test_a_cell_begun_twice_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands on one folder, as from two machines: one works, the other waits and finds the result."""
    together, worked = threading.Barrier(2), list[str]()

    def slow(cell: RunSpec, *_: object) -> dict[str, Any]:
        worked.append(cell.encoder)
        time.sleep(0.2)
        return {"weights": "none", "demos": 0}

    def begin(_: int) -> dict[str, Any]:
        together.wait()
        return run_cell(_cell(encoder="expert"), Paths(str(tmp_path)))

    monkeypatch.setattr(cells, "_expert", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(begin, range(2))
    assert worked == ["expert"] and json.dumps(one) == json.dumps(other)
    assert folder_of(_cell(encoder="expert"), tmp_path).joinpath("result.json").is_file()


def test_a_full_disk_fails_a_cell_in_words_and_the_rest_goes_on(
    inline: Inline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "b/cells/x")

    monkeypatch.setattr(cells, "train_bc", full)
    command = ["benchmark", "encoders=[none,expert]", "tasks=toy/reach", "out=b"]
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "error: no space left for" in said and "Traceback" not in said
    report = json.loads(Path("b/result.json").read_text())
    assert report["facts"]["cells"] == "1 of 2 finished"
    assert any("failed" in row["why"] for row in report["tables"]["Not run"])
    monkeypatch.undo()
