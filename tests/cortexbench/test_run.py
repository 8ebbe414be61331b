"""Runs of the benchmark: independent, evaluated alike, resumed; what several runs share is made once."""

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
from pixio_robot.cortexbench import run as runs
from pixio_robot.cortexbench.commands import Benchmark, BenchmarkReport, benchmark
from pixio_robot.cortexbench.protocol import BUDGETS
from pixio_robot.cortexbench.run import Paths, RunSpec, folder_of
from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.jobs import launch
from pixio_robot.jobs.launch import Job, Starter, why_failed
from pixio_robot.metrics import read_episodes
from pixio_robot.policies import evaluate as evaluations
from pixio_robot.policies.evaluate import task_of
from pixio_robot.policies.settings import HELD_OUT_SEED

TINY = replace(BUDGETS["smoke"], horizon={"toy": 25}, epoch_share=0.02)


def _spec(**changes: Any) -> RunSpec:
    return replace(RunSpec("toy/reach", "none", "", 100, "smoke", "both", "fp32"), **changes)


def test_a_run_is_named_after_all_that_matters() -> None:
    first = _spec()
    others = [
        _spec(task="metaworld/hammer"),
        _spec(encoder="state"),
        _spec(fusion="concat"),
        _spec(seed=200),
        _spec(budget="small"),
        _spec(protocol="held_out"),
        _spec(precision="bf16"),
        _spec(horizon=4),
        _spec(weights="other"),
        _spec(source="other"),
    ]
    assert len({each.name for each in (first, *others)}) == 11 and first.name == _spec().name
    assert folder_of(_spec(encoder="/a/b/enc.safetensors"), Path("r")).name.startswith("toy-reach-enc-100-")


class Inline:
    """Does runs in this process, which saves starting one for each."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, folder: Path, memory: float) -> Job:
        self.started.append(folder.name)
        status = runs.main(folder, os.getppid())
        return Job(lambda: why_failed(folder, status), lambda: None)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """Let `benchmark` do tiny runs in this process."""
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
    """A finished benchmark of the toy: two fusions, two seeds, two baselines."""
    with pytest.MonkeyPatch.context() as patch:
        _make_inline(patch)
        settings = Benchmark(
            encoders=[str(tiny_file), "none", "expert"],
            tasks="toy/reach",
            seeds=[100, 200],
            fusions=["mean", "first"],
            out=str(tmp_path_factory.mktemp("benchmark")),
        )
        report = benchmark(settings)
    return report


def _result(report: BenchmarkReport, words: str) -> tuple[Path, dict[str, Any]]:
    (folder,) = (report.out / "runs").glob(f"toy-reach-{words}-*/")
    return folder, json.loads((folder / "result.json").read_text())


def test_all_evaluations_of_a_run_share_their_initial_states(done: BenchmarkReport) -> None:
    """Episode k starts from the run's seed + k; demonstrations and held-out episodes have other initial states."""
    folder, result = _result(done, "tiny-mean-200")
    evaluated = [read_episodes(path) for path in sorted(folder.glob("best_checkpoint/*/episodes.jsonl"))]
    assert len(evaluated) == len(result["eval_epochs"]) == len(result["best_checkpoint"]) == 2
    assert [[row.seed for row in rows] for rows in evaluated] == [[200]] * 2
    held_out_rows = read_episodes(folder / "held_out" / "episodes.jsonl")
    assert [row.seed for row in held_out_rows] == [HELD_OUT_SEED, HELD_OUT_SEED + 1]
    (file,) = (done.out / "demos").glob("*.hdf5")
    recorded = set(open_dataset(file).initial_states)
    states = [{row.start for row in held_out_rows}, {row.start for row in evaluated[0]}, recorded]
    assert sum(map(len, states)) == len(set.union(*states))


def test_episodes_have_the_settings_of_the_demonstrations(done: BenchmarkReport) -> None:
    """Other shadows or another size at evaluation would look like a bad encoder."""
    (file,) = (done.out / "demos").glob("*.hdf5")
    recorded = task_of(open_dataset(file).provenance, str(file))
    for folder in (done.out / "runs").glob("*mean*/"):
        request = json.loads((folder / "result.json").read_text())["request"]
        assert TaskSpec(**{**request, "observe": tuple(request["observe"]), "cameras": ()}) == recorded
        assert {row.render for row in read_episodes(folder / "held_out" / "episodes.jsonl")} == {"fast"}


def test_every_policy_runs_the_same_held_out_episodes(done: BenchmarkReport) -> None:
    found = {
        folder.name: [(row.seed, row.start) for row in read_episodes(folder / "held_out" / "episodes.jsonl")]
        for folder in (done.out / "runs").iterdir()
        if folder.is_dir()
    }
    assert len(found) == 2 * 3 + 1 and len({tuple(each) for each in found.values()}) == 1


def test_only_the_baseline_state_observes_the_privileged_state(
    done: BenchmarkReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def watched(act: object, request: TaskSpec, *arguments: Any, **more: Any) -> None:
        seen.append(request.observe)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "evaluate", watched)
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    for encoder in ("none", "state", "cnn"):
        with pytest.raises(KeyboardInterrupt):
            runs.run(_spec(encoder=encoder), Paths(str(tmp_path)))
    assert seen == [("proprio",), ("state",), ("rgb", "proprio")]


def test_only_the_final_checkpoint_stays(done: BenchmarkReport) -> None:
    folder, _ = _result(done, "tiny-mean-100")
    assert [path.name for path in folder.glob("checkpoints/*/*")] == ["last.safetensors"]


def test_tokens_that_a_fusion_does_not_read_are_not_used(done: BenchmarkReport) -> None:
    _, first = _result(done, "tiny-first-100")
    _, mean = _result(done, "tiny-mean-100")
    assert first["tokens"][0] != 0 and not any(first["tokens"][1:]) and len(mean["tokens"]) == 8 and any(mean["tokens"])
    assert _result(done, "none-100")[1]["tokens"] is None


def test_the_table_has_both_columns(done: BenchmarkReport) -> None:
    rows = list(csv.DictReader((done.out / "tables" / "cortexbench.csv").read_text().splitlines()))
    assert {row["protocol"] for row in rows} == {"final checkpoint, held out", "best checkpoint (as published)"}
    expert = [row for row in rows if row["policy"] == "expert"]
    assert [row["toy"] for row in expert] == ["100.0 [34.2, 100.0]"]
    page = (done.out / "report.html").read_text()
    for words in ("tiny.safetensors, first", "no significant difference", "Wilson", "best checkpoint", "<video"):
        assert words in page, words
    for name in ("tasks", "comparisons", "tokens", "settings", "cost"):
        for suffix in ("csv", "tex", "md"):
            assert (done.out / "tables" / f"{name}.{suffix}").stat().st_size


def test_finished_runs_are_not_repeated(done: BenchmarkReport, inline: Inline, tiny_file: Path) -> None:
    report = benchmark(Benchmark(encoders=["none"], tasks="toy/reach", seeds=[100], out=str(done.out)))
    assert not inline.started and "1 of 1 finished" in report.result["facts"]["runs"]


def test_an_interrupted_run_resumes_to_the_same_result(
    done: BenchmarkReport, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    folder, whole = _result(done, "tiny-mean-100")
    spec = RunSpec(**whole["run"])
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    original, calls = runs.evaluate_policy, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(runs, "evaluate_policy", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run(spec, Paths(str(tmp_path)))
    assert not (folder_of(spec, tmp_path) / "result.json").exists()
    monkeypatch.setattr(runs, "evaluate_policy", original)
    again = runs.run(spec, Paths(str(tmp_path)))
    assert {key: again[key] for key in ("best_checkpoint", "tokens", "scale")} == {
        key: whole[key] for key in ("best_checkpoint", "tokens", "scale")
    }
    rows = [read_episodes(each / "held_out" / "episodes.jsonl") for each in (folder, folder_of(spec, tmp_path))]
    assert [row.episode_return for row in rows[0]] == [row.episode_return for row in rows[1]]


def test_each_column_can_be_had_alone(toy_file: Path, inline: Inline) -> None:
    Path("mine").mkdir()
    shutil.copy(toy_file, "mine")
    settings = Benchmark(encoders=["none", "expert"], tasks="toy/reach", demos="mine", out="b")
    report = benchmark(replace(settings, protocol="best_checkpoint"))
    assert [row["protocol"] for row in report.result["tables"]["CortexBench"]] == ["best checkpoint (as published)"]
    assert not list(Path("b/runs").glob("*/held_out")) and Path("b/report.html").is_file()
    assert [row["policy"] for row in report.result["tables"]["Not run"]] == ["expert"]


def test_given_demonstrations_are_used_unchanged(toy_file: Path, tmp_path: Path, inline: Inline) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(toy_file, folder)
    settings = Benchmark(encoders=["none"], tasks="toy/reach", demos=str(folder), out="b", protocol="held_out")
    report = benchmark(settings)
    (found,) = Path("b/runs").glob("*/result.json")
    assert json.loads(found.read_text())["demos"] == 4 and not Path("b/demos").exists()
    assert not json.loads(found.read_text())["best_checkpoint"]
    assert {row["protocol"] for row in report.result["tables"]["CortexBench"]} == {"final checkpoint, held out"}


def test_shared_demonstrations_are_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start together: one records, the other waits and finds the file."""
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    together, paths = threading.Barrier(2), Paths(str(tmp_path))
    inside, found = [0], list[tuple[int, bool]]()
    original = runs.collect

    def watched(request: TaskSpec, demos: int, valid: int, seed: int, path: Path, *more: Any) -> Any:
        inside[0] += 1
        found.append((inside[0], path.is_file()))
        time.sleep(0.2)
        recorded = original(request, demos, valid, seed, path, *more)
        inside[0] -= 1
        return recorded

    def start(spec: RunSpec) -> EpisodeDataset:
        together.wait()
        return runs.demonstrations(spec, runs.request_of(spec, paths), paths, runs.Stages(tmp_path / spec.encoder))

    monkeypatch.setattr(runs, "collect", watched)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(start, (_spec(encoder="none"), _spec(encoder="state")))
    assert found == [(1, False), (1, True)] and one.fingerprint == other.fingerprint


def test_a_run_started_twice_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands on one folder, as from two machines: one works, the other waits and finds the result."""
    together, worked = threading.Barrier(2), list[str]()

    def slow(spec: RunSpec, *_: object) -> dict[str, Any]:
        worked.append(spec.encoder)
        time.sleep(0.2)
        return {"weights": "none", "demos": 0}

    def start(_: int) -> dict[str, Any]:
        together.wait()
        return runs.run(_spec(encoder="expert"), Paths(str(tmp_path)))

    monkeypatch.setattr(runs, "_run_expert", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(start, range(2))
    assert worked == ["expert"] and json.dumps(one) == json.dumps(other)
    assert folder_of(_spec(encoder="expert"), tmp_path).joinpath("result.json").is_file()


def test_a_full_disk_fails_one_run_and_the_others_continue(
    inline: Inline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "b/runs/x")

    monkeypatch.setattr(runs, "train_policy", full)
    command = ["benchmark", "encoders=[none,expert]", "tasks=toy/reach", "out=b"]
    assert run(command) == 1
    printed = capsys.readouterr().err
    assert "error: no space left for" in printed and "Traceback" not in printed
    report = json.loads(Path("b/result.json").read_text())
    assert report["facts"]["runs"] == "1 of 2 finished"
    assert any("failed" in row["why"] for row in report["tables"]["Not run"])
    monkeypatch.undo()
