"""CortexBench's runner: the protocol as released, cells that are independent, numbers that say how sure they are."""

import csv
import doctest
import errno
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

import pixio_robot
from pixio_robot.cli import compose, run
from pixio_robot.embedding import TokenShape
from pixio_robot.envs import registry
from pixio_robot.envs.registry import EnvRequest
from pixio_robot.envs.rollout import BatchRollout, in_workers, plan_episodes
from pixio_robot.errors import BadInput, MissingExtra, Stopped, UnknownName, WorkerLost
from pixio_robot.metrics import Mean, read_episodes, resampled
from pixio_robot.policies.bc import new_policy
from pixio_robot.policies.benchmark import cell as cells
from pixio_robot.policies.benchmark import grid as grids
from pixio_robot.policies.benchmark import process, runner
from pixio_robot.policies.benchmark.cell import Cell, Places, folder_of, run_cell
from pixio_robot.policies.benchmark.engines import Job, Resources, engine, outcome, run_process
from pixio_robot.policies.benchmark.grid import _absolute, make_grid, task_names
from pixio_robot.policies.benchmark.plan import Costs, make_plan, work_of
from pixio_robot.policies.benchmark.protocol import BUDGETS, FEELING, TASKS, end_to_end, protocol_of, within
from pixio_robot.policies.benchmark.results import Outcome, Policy, Results
from pixio_robot.policies.benchmark.runner import Room, Task, run_tasks
from pixio_robot.policies.benchmark.runs import BenchmarkReport, run_benchmark
from pixio_robot.policies.benchmark.tables import as_csv, as_latex, as_markdown, main_table
from pixio_robot.policies.demos import DemoSet
from pixio_robot.progress import Progress
from pixio_robot.schemas import HELD_OUT_SEED, Benchmark

TINY = replace(BUDGETS["smoke"], horizon={"toy": 25}, share=0.02)
SILENT = Progress.silent()


# ---- the protocol, as released ----


@pytest.mark.parametrize("task", TASKS)
def test_evaluations_are_the_released_ones(task: str) -> None:
    protocol = protocol_of(task)
    every, epochs = (25, 1000) if task == "trifinger/move_cube" else (5, 100)
    counted_from_zero = [moment - 1 for moment in protocol.moments]
    assert counted_from_zero == [*range(every, epochs, every), epochs - 1]
    assert protocol.policy.epochs == epochs and len(counted_from_zero) == (40 if every == 25 else 20)
    assert protocol.episodes == (10 if task.startswith("dmc/") else 25)
    assert protocol.demos == (25 if task.startswith("metaworld/") else 100)


@pytest.mark.parametrize(
    ("task", "proprio", "mean", "concat"),
    [
        ("adroit/pen", 24, 3 * 192 + 24, 3 * 8 * 192 + 24),
        ("metaworld/hammer", 4, 3 * 192 + 4, 3 * 8 * 192 + 4),
        ("dmc/walker_walk", 0, 3 * 192, 3 * 8 * 192),
        ("trifinger/reach_cube", 9, 192 + 9, 8 * 192 + 9),
        ("trifinger/move_cube", 9, 2 * 192 + 9, 2 * 8 * 192 + 9),
    ],
)
def test_the_head_sees_and_is_what_was_released(task: str, proprio: int, mean: int, concat: int) -> None:
    for fusion, width in (("mean", mean), ("concat", concat)):
        protocol = Cell(task, "random:ti:0", fusion, 100, "full", "both", "fp32").learning
        widths = {"actions": 3, **({"proprio": proprio} if proprio else {})}
        pictures = ("rgb", "rgb_goal")[: max(1, len(protocol.cameras))]
        tokens = TokenShape(8, (16, 16), 192)
        policy = new_policy(tokens, protocol.embedding, widths, protocol.policy, 0, "bc", pictures)
        assert policy.embedder.dim == width
    settings = protocol.policy
    if task.startswith("trifinger"):
        found = (settings.layers, settings.batch_norm, settings.optimizer, settings.lr, settings.batch, policy.history)
        assert found == ([2000, 2000], False, "adamw", 1e-4, 32, 1)
    else:
        found = (settings.layers, settings.batch_norm, settings.optimizer, settings.lr, settings.batch, policy.history)
        assert found == ([256, 256, 256], True, "adam", 1e-3, 256, 3) and settings.last_scale == 0.01
    assert settings.loss == "mse" and settings.weight_decay == 0 and settings.dropout == 0


def test_full_is_the_protocol_and_smaller_budgets_are_shares_of_it() -> None:
    for task in TASKS:
        suite, whole = task.split("/")[0], protocol_of(task)
        assert within(whole, suite, BUDGETS["full"], released=True) == whole
        for name in ("smoke", "small"):
            part = within(whole, suite, BUDGETS[name], released=True)
            assert part.moments[-1] == part.policy.epochs < whole.policy.epochs
            assert len(part.moments) == len(set(part.moments)) <= (BUDGETS[name].moments or 0)
            assert part.demos <= whole.demos and part.episodes <= whole.episodes
        assert within(whole, suite, BUDGETS["full"], released=False).moments == (whole.policy.epochs,)


def test_learning_to_see_takes_about_as_many_steps() -> None:
    for task in TASKS:
        whole, seeing = protocol_of(task), end_to_end(protocol_of(task))
        steps = [each.policy.epochs * 10_000 / each.policy.batch for each in (whole, seeing)]
        assert steps[1] == pytest.approx(steps[0], rel=0.05) and seeing.policy.batch <= 64
        assert seeing.moments[-1] == seeing.policy.epochs


def test_only_suites_that_feel_have_a_blind_row() -> None:
    for task in TASKS:
        if task in registry.installed():
            assert bool(registry.new_task(task).proprio_dim) == (task.split("/")[0] in FEELING)


def test_cut_episodes_of_the_control_suite_stay_out_of_a_hundred() -> None:
    assert cells.score_scale("dmc", 500, 200) * 40 == 100
    assert cells.score_scale("metaworld", 500, 200) == 1


# ---- cells ----


def _cell(**changes: Any) -> Cell:
    return replace(Cell("toy/reach", "none", "", 100, "smoke", "both", "fp32"), **changes)


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
        return Ended(cells.main(folder, os.getppid()), folder)


class Ended:
    """A cell that has ended."""

    def __init__(self, status: int, folder: Path) -> None:
        self.status, self.folder = status, folder

    def poll(self) -> str | None:
        return outcome(self.folder, self.status)

    def stop(self) -> None:
        return


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """Let `run_benchmark` run tiny cells in this process."""
    return _make_inline(monkeypatch)


def _make_inline(patch: pytest.MonkeyPatch) -> Inline:
    inline = Inline()

    @contextmanager
    def here(*_: object) -> Iterator[Inline]:
        yield inline

    patch.setattr(runner, "engine", here)
    patch.setattr(process, "_end_with", lambda parent: None)
    patch.setattr(process.logging, "basicConfig", lambda **_: None)
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
        report = run_benchmark(command, SILENT)
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
        assert EnvRequest(**{**request, "observe": tuple(request["observe"]), "cameras": ()}) == DemoSet(file).request
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

    def watched(act: object, request: EnvRequest, *arguments: Any, **more: Any) -> None:
        seen.append(request.observe)
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_runs, "evaluate", watched)
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    for encoder in ("none", "state", "cnn"):
        with pytest.raises(KeyboardInterrupt):
            run_cell(_cell(encoder=encoder), Places(str(tmp_path)), SILENT)
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
    report = run_benchmark(command, SILENT)
    assert not inline.started and "1 of 1 finished" in report.result["facts"]["cells"]


def test_an_interrupted_cell_goes_on_to_the_same_result(
    done: BenchmarkReport, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGETS, "smoke", TINY)
    folder, whole = _result(done, "tiny-mean-100")
    cell = Cell(**whole["cell"])
    shutil.copytree(done.out / "demos", tmp_path / "demos")
    original, calls = cells.evaluate_policy, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(cells, "evaluate_policy", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, Places(str(tmp_path)), SILENT)
    assert not (folder_of(cell, tmp_path) / "result.json").exists()
    monkeypatch.setattr(cells, "evaluate_policy", original)
    again = run_cell(cell, Places(str(tmp_path)), SILENT)
    assert {key: again[key] for key in ("released", "tokens", "scale")} == {
        key: whole[key] for key in ("released", "tokens", "scale")
    }
    rows = [read_episodes(each / "honest" / "episodes.jsonl") for each in (folder, folder_of(cell, tmp_path))]
    assert [row.episode_return for row in rows[0]] == [row.episode_return for row in rows[1]]


def test_each_column_can_be_had_alone(toy_file: Path, inline: Inline) -> None:
    Path("mine").mkdir()
    shutil.copy(toy_file, "mine")
    command = Benchmark(encoders=["none", "expert"], tasks="toy/reach", demos="mine", out="b", protocol="cortexbench")
    report = run_benchmark(command, SILENT)
    assert [row["protocol"] for row in report.result["tables"]["CortexBench"]] == ["as released"]
    assert not list(Path("b/cells").glob("*/honest")) and Path("b/report.html").is_file()
    assert [row["policy"] for row in report.result["tables"]["Not run"]] == ["expert"]


def test_given_demonstrations_are_used_as_they_are(toy_file: Path, tmp_path: Path, inline: Inline) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(toy_file, folder)
    command = Benchmark(encoders=["none"], tasks="toy/reach", demos=str(folder), out="b", protocol="honest")
    report = run_benchmark(command, SILENT)
    (found,) = Path("b/cells").glob("*/result.json")
    assert json.loads(found.read_text())["demos"] == 4 and not Path("b/demos").exists()
    assert not json.loads(found.read_text())["released"]
    assert {row["protocol"] for row in report.result["tables"]["CortexBench"]} == {"honest"}


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


# ---- running cells ----


class Pretended:
    """An engine whose cells end when told."""

    def __init__(self, polls: int = 2, failing: tuple[str, ...] = ()) -> None:
        self.polls, self.failing = polls, failing
        self.running: dict[str, float] = {}
        self.most, self.largest, self.stopped, self.order = 0, 0.0, 0, []  # type: ignore[var-annotated]

    def start(self, folder: Path, memory: float) -> Job:
        self.running[folder.name] = memory
        self.order.append(folder.name)
        self.most = max(self.most, len(self.running))
        self.largest = max(self.largest, sum(self.running.values()))
        return PretendedJob(self, folder.name)


class PretendedJob:
    def __init__(self, owner: Pretended, name: str) -> None:
        self.owner, self.name, self.left = owner, name, owner.polls

    def poll(self) -> str | None:
        self.left -= 1
        if self.left > 0:
            return None
        del self.owner.running[self.name]
        return "it broke" if self.name in self.owner.failing else ""

    def stop(self) -> None:
        self.owner.stopped += 1


QUIET = Console(quiet=True)


def test_jobs_and_memory_stay_within_their_budget() -> None:
    tasks = [Task(Path(f"c{number}"), memory, 1.0) for number, memory in enumerate((2.0, 3.0, 1.0, 9.0, 2.0))]
    runner = Pretended()
    assert run_tasks(tasks, runner, Room(2, 4.0), QUIET) == {}
    assert sorted(runner.order) == ["c0", "c1", "c2", "c3", "c4"] and runner.most == 2
    assert runner.largest == 9.0, "the cell that fits nowhere ran alone"


def test_a_crashed_cell_is_reported_and_the_rest_goes_on() -> None:
    tasks = [Task(Path(f"c{number}"), 1.0, 1.0) for number in range(4)]
    assert run_tasks(tasks, Pretended(failing=("c1",)), Room(2, 10.0), QUIET) == {"c1": "it broke"}


def test_time_left_is_said_and_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task(Path(f"c{number}"), 1.0, 1.0) for number in range(2)]
    run_tasks(tasks, Pretended(failing=("c1",)), Room(1, 10.0), Console(stderr=True))
    said = capsys.readouterr().err
    assert "1/2 cells, about 1 min left; c0: done" in said and "2/2 cells; c1: FAILED: it broke" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_cells_under_way(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Pretended(polls=10**9)
    monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="0 of 3 cells; the same command goes on") as stopped:
        run_tasks([Task(Path(f"c{each}"), 1.0, 1.0) for each in range(3)], runner, Room(2, 10.0), QUIET)
    assert runner.stopped == 2 and stopped.value.signal == number


def test_a_cells_process_says_why_it_failed(tmp_path: Path) -> None:
    folder = cells.describe(_cell(), Places(str(tmp_path / "r"), demos="nowhere.hdf5"))
    resources = Resources(1, "pixio_robot.policies.benchmark")
    assert run_process(str(folder), resources).startswith("error: no demonstrations at nowhere.hdf5")
    assert "killed by SIGKILL, often for lack of memory" in outcome(folder, -signal.SIGKILL)


def test_unknown_engines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="local, ray, slurm"), engine("condor", Resources(1, ""), tmp_path):
        pass
    assert run(["benchmark", "tasks=toy/reach", "encoders=[none]", "engine=slrum", "out=b"]) == 1
    assert not Path("b").exists()


def _kill_myself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_mid_episode_is_said() -> None:
    request = EnvRequest("toy/reach", observe=("proprio",), horizon=20)
    rollout = BatchRollout(request, plan_episodes(request, 2, 0), 2)
    steps: list[int] = []

    def act(seen: dict[str, np.ndarray], *_: object) -> np.ndarray:
        steps.append(1)
        if len(steps) == 3:
            assert rollout._envs is not None
            os.kill(rollout._envs.processes[0].pid, signal.SIGKILL)
        return np.zeros((len(seen["proprio"]), 3), np.float32)

    with pytest.raises(WorkerLost, match="toy/reach: a simulator's process ended"), rollout:
        list(rollout.run(act))
    with pytest.raises(WorkerLost):
        list(in_workers(_kill_myself, [1, 2], 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_the_same_command_goes_on_and_no_process_stays(number: int) -> None:
    command = [sys.executable, "-m", "pixio_robot", "benchmark", "tasks=toy/reach", "encoders=[none,state]", "jobs=1"]
    first = subprocess.Popen([*command, "out=b"], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while "1/2 cells" not in (line := first.stderr.readline()):
        assert line
    time.sleep(3.0)
    under_way = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(number)
    said = first.communicate(timeout=100)[1]
    if number == signal.SIGTERM:
        assert first.returncode == 143 and "stopped by SIGTERM after 1 of 2 cells" in said
    assert under_way and not psutil.wait_procs(under_way, timeout=60)[1]
    again = subprocess.run([*command, "out=b"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "1 of 2 cells are finished already" in again.stderr, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_engines_run_the_same_cells(name: str, package: str) -> None:
    """A cell that cannot run is named, the other one finishes; the files are those of the local engine."""
    pytest.importorskip(package)
    words = ["tasks=toy/reach", "encoders=[none]", "jobs=1"]
    more = ["slurm={cluster:local,timeout_min:10}"] if name == "slurm" else []
    command = [sys.executable, "-m", "pixio_robot", "benchmark", *words]
    for out, options in (("a", []), ("b", [f"engine={name}", *more])):
        ended = subprocess.run([*command, *options, f"out={out}"], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    (one,), (other,) = (list(Path(out).glob("cells/*/honest/episodes.jsonl")) for out in "ab")
    returns = [[(row.start, row.episode_return) for row in read_episodes(path)] for path in (one, other)]
    assert returns[0] == returns[1] and one.parts[1:] == other.parts[1:]


# ---- numbers ----


def _outcome(task: str, encoder: str, seed: int, scores: list[float], released: list[float]) -> Outcome:
    cell = Cell(task, encoder, "", seed, "full", "both", "fp32")
    found = {(HELD_OUT_SEED + place, "x"): score for place, score in enumerate(scores)}
    return Outcome(cell, Path("cells") / cell.name, [], found, released, {"tokens": None, "scale": 1, "demos": 9})


def test_released_is_the_best_evaluation_and_honest_the_last_policy() -> None:
    found = Results(
        [
            _outcome("adroit/pen", "a", 100, [100.0, 0.0, 0.0, 0.0], [10.0, 60.0, 20.0]),
            _outcome("adroit/pen", "a", 200, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 40.0]),
        ]
    )
    policy = Policy("a", "")
    best = found.released(["adroit/pen"], policy)
    assert best is not None and best[0] == 50 and best[1] == pytest.approx(np.std([60, 40], ddof=1))
    assert str(found.rate("adroit/pen", policy)) == "1/8 = 12% [2%, 47%]"
    assert found.suite_score(["adroit/pen", "adroit/relocate"], policy) is None
    assert found.overall(policy) is None


def test_the_mean_is_the_plain_mean_of_suites() -> None:
    score = {"adroit": 10.0, "dmc": 20.0, "metaworld": 30.0, "trifinger": 60.0}
    found = Results([_outcome(task, "a", 100, [score[task.split("/")[0]]] * 3, []) for task in TASKS])
    assert found.overall(Policy("a", "")) == pytest.approx(Mean(30.0, 30.0, 30.0))
    row = main_table(found, "honest")[0]
    assert (row["policy"], row["mean"], row["DMC"]) == ("a", "30.0 [30.0, 30.0]", "20.0 [20.0, 20.0]")
    pixio = main_table(found, "honest")[-1]
    assert (pixio["policy"], pixio["mean"], pixio["Adroit"]) == ("Pixio ViT-H", "78.4", "70.7")


def test_differences_need_enough_common_episodes() -> None:
    few = [("a", [100.0] * 3 + [0.0]), ("b", [0.0] * 4)]
    many = [(name, scores * 8) for name, scores in few]
    verdicts = []
    for each in (few, many):
        found = Results([_outcome("adroit/pen", name, 100, scores, []) for name, scores in each])
        (comparison,) = found.comparisons()
        assert comparison.difference.value == 75 and comparison.losses == 0
        verdicts.append(comparison.verdict)
    assert verdicts == ["not enough episodes to tell", "a does better"]


def test_policies_are_compared_on_common_episodes_only() -> None:
    found = Results(
        [
            _outcome("dmc/walker_walk", "a", 100, [50.0, 60.0, 1.0, 1.0], []),
            _outcome("dmc/walker_walk", "b", 100, [40.0, 50.0], []),
            _outcome("dmc/walker_walk", "c", 200, [40.0, 50.0], []),
        ]
    )
    (comparison,) = found.comparisons()
    assert (str(comparison.first), str(comparison.second), comparison.difference.value) == ("a", "b", 10.0)
    assert comparison.wins == 2


def test_resampling_knows_seeds_and_starts() -> None:
    assert resampled([np.full((3, 5), 7.0)]) == Mean(7.0, 7.0, 7.0)
    between_seeds = resampled([np.repeat([[0.0], [100.0]], 50, axis=1)])
    between_starts = resampled([np.repeat([[0.0, 100.0]], 50, axis=0)])
    assert between_seeds.low == between_starts.low == 0 and between_seeds.high == 100
    rng = np.random.default_rng(0)
    narrow, wide = (resampled([rng.normal(size=(3, size))]) for size in (400, 4))
    assert narrow.high - narrow.low < wide.high - wide.low
    assert resampled([np.zeros((1, 2)), np.ones((1, 2))], [0.25, 0.75]).value == 0.75


def test_tables_survive_their_formats() -> None:
    rows = [{"policy": "a_b & c", "score": "50 % | x"}]
    assert list(csv.DictReader(as_csv(rows).splitlines())) == rows
    assert r"a\_b \& c & 50 \% | x \\" in as_latex(rows) and r"50 % \| x" in as_markdown(rows)


@pytest.mark.parametrize("name", ["grid", "runner", "tables"])
def test_doctests(name: str) -> None:
    outcome_ = doctest.testmod(importlib.import_module(f"pixio_robot.policies.benchmark.{name}"))
    assert outcome_.failed == 0 and outcome_.attempted


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=metaword"], "did you mean 'metaworld'"),
        (["tasks=dmc/walker_wlak"], "did you mean 'dmc/walker_walk'"),
        (["tasks=[toy/reach,atari/pong]"], "there are: all, adroit, dmc, metaworld, trifinger"),
        (["tasks=[]"], "tasks= names nothing"),
        (["tasks=toy/reach", "encoders=[randmo:ti]"], "no encoder 'randmo:ti'"),
        (["tasks=toy/reach", "encoders=[random:ti:0]", "fusions=[maen]"], "did you mean 'mean'"),
        (["tasks=toy/reach", "budget=medium"], "smoke, small, full"),
        (["tasks=toy/reach", "protocol=best"], "both, cortexbench, honest"),
        (["tasks=toy/reach", "encoders=[]"], "encoders= and fusions= each need"),
        (["tasks=toy/reach", "encoders=[none]", "memory=0"], "memory=0.0 GB"),
        (["tasks=toy/reach", "encoders=[none]", "jobs=0"], "jobs=0 is too small"),
        (["tasks=toy/reach", "encoders=[none]", "demos=nowhere"], "no demonstrations (*.hdf5) in demos=nowhere"),
        (["tasks=adroit", "encoders=[none]", "experts=nowhere"], "experts=nowhere is no folder"),
        (["tasks=adroit", "encoders=[none]", "experts={adroit/pen:pen.pickle}"], "no file pen.pickle"),
        (["tasks=dmc", "encoders=[none]", "experts={dmc/walker_walk:x}"], "takes no expert from a file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["benchmark", *words, "out=b"]) == 1
    assert said in capsys.readouterr().err and not Path("b").exists()


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: ["toy/reach"])
    with pytest.raises(MissingExtra, match=r"pip install 'pixio-robot\[dmc\]'"):
        make_grid(Benchmark(encoders=["state"], tasks="dmc"), Path("b"))
    found = make_grid(Benchmark(encoders=["state"], tasks=["dmc/walker_walk", "toy/reach"]), Path("b"))
    assert [cell.task for cell, _ in found.cells] == ["toy/reach"] and "pixio-robot[dmc]" in found.skipped[0].why


def test_adroit_without_experts_is_said_and_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: list(TASKS))
    found = make_grid(Benchmark(encoders=["none", "state"], tasks="all"), Path("b"))
    assert {each.task for each in found.skipped} >= {"adroit/pen", "adroit/relocate"}
    why = next(each.why for each in found.skipped if each.task == "adroit/pen")
    assert "experts=FOLDER with pen-v0.pickle" in why and "experts={adroit/pen: FILE" in why
    blind = [each for each in found.skipped if each.policy == "none"]
    assert {each.task.split("/")[0] for each in blind} == {"dmc"} and "no proprioception" in blind[0].why
    assert len(found.cells) == 7 + 12


GUIDE = Path(pixio_robot.__file__).resolve().parent.parent / "docs" / "benchmark.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_the_guides_commands_and_budgets_are_true() -> None:
    text = GUIDE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("pixio-robot benchmark")]
    assert len(lines) >= 4
    for line in lines:
        command = compose("benchmark", shlex.split(line, comments=True)[2:])
        assert task_names(command.tasks) and command.budget in BUDGETS
    for name, budget in BUDGETS.items():
        suites = ("adroit", "dmc", "metaworld", "trifinger")
        wholes = [protocol_of(next(task for task in TASKS if task.startswith(suite))).demos for suite in suites]
        demos = ", ".join(str(budget.demos.get(suite, whole)) for suite, whole in zip(suites, wholes, strict=True))
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {demos} |" in row and f"| {budget.honest_episodes} |" in row


def test_an_encoders_file_is_named_in_full_with_its_size(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_file.parent)
    for name in (tiny_file.name, "random:ti:0@128", "pixio-robot-ti"):
        assert _absolute(name) == (str(tiny_file) if name == tiny_file.name else name)
    assert _absolute(f"{tiny_file.name}@32") == f"{tiny_file}@32"


def test_two_files_of_a_task_are_refused(toy_file: Path) -> None:
    Path("mine").mkdir()
    for name in ("a", "b"):
        shutil.copy(toy_file, f"mine/{name}.hdf5")
    with pytest.raises(BadInput, match="are both of toy/reach"):
        make_grid(Benchmark(encoders=["none"], tasks="toy/reach", demos="mine"), Path("b"))


def test_neighbouring_cells_are_of_different_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: list(TASKS))
    found = make_grid(Benchmark(encoders=["state", "cnn"], tasks=["dmc", "trifinger"], seeds=[1, 2]), Path("b"))
    order = [cell.task for cell, _ in found.cells]
    assert len(order) == 28 and all(len(set(order[at : at + 7])) == 7 for at in range(0, 28, 7))
    assert task_names("all") == list(TASKS)


def test_a_plan_measures_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    found = make_grid(Benchmark(encoders=[str(tiny_file), "none", "expert"], tasks="toy/reach"), Path("b"))
    plan = make_plan(found, 2, 1, Path("b"), SILENT)
    rows = dict(plan.rows)
    assert rows["cells"] == "3" and "all, 2 jobs of 1 threads" in rows and plan.assumptions and not Path("b").exists()
    costly = make_grid(Benchmark(encoders=[str(tiny_file), "none"], tasks="toy/reach", budget="full"), Path("b"))
    assert sum(work_of(costly.cells, lambda _: Costs())) > 10 * sum(work_of(found.cells[:2], lambda _: Costs()))
