"""Jobs in other processes: budgets of jobs and memory, failures, signals, engines, ranks, workers."""

import doctest
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from rich.console import Console

from pixio_robot.cortexbench.commands import Benchmark
from pixio_robot.errors import BadInput, MissingExtra, Stopped, UnknownName, WorkerLost
from pixio_robot.jobs import launch as launching
from pixio_robot.jobs.launch import (
    Job,
    JobSpec,
    Launch,
    ResourceBudget,
    end_process,
    open_engine,
    run_jobs,
    run_process,
    schedule,
    why_failed,
)
from pixio_robot.jobs.workers import choose_engine, rank_of, run_shards


class FakeEngine:
    """An engine whose jobs end after some polls."""

    def __init__(self, polls: int = 2, failing: tuple[str, ...] = ()) -> None:
        self.polls, self.failing = polls, failing
        self.active: dict[str, float] = {}
        self.most, self.largest, self.stopped, self.order = 0, 0.0, 0, []  # type: ignore[var-annotated]

    def start(self, folder: Path, memory: float) -> Job:
        self.active[folder.name] = memory
        self.order.append(folder.name)
        self.most = max(self.most, len(self.active))
        self.largest = max(self.largest, sum(self.active.values()))
        left = self.polls

        def poll() -> str | None:
            nonlocal left
            left -= 1
            if left > 0:
                return None
            del self.active[folder.name]
            return "it broke" if folder.name in self.failing else ""

        return Job(poll, self._stop)

    def _stop(self) -> None:
        self.stopped += 1


QUIET = Console(quiet=True)


def test_jobs_and_memory_stay_within_their_budget() -> None:
    specs = [JobSpec(Path(f"c{number}"), memory, 1.0) for number, memory in enumerate((2.0, 3.0, 1.0, 9.0, 2.0))]
    engine = FakeEngine()
    assert schedule(specs, engine.start, ResourceBudget(2, 4.0), QUIET) == {}
    assert sorted(engine.order) == ["c0", "c1", "c2", "c3", "c4"] and engine.most == 2
    assert engine.largest == 9.0, "the job that fits nowhere ran alone"


def test_a_crashed_job_is_reported_and_the_rest_goes_on() -> None:
    specs = [JobSpec(Path(f"c{number}"), 1.0, 1.0) for number in range(4)]
    engine = FakeEngine(failing=("c1",))
    assert schedule(specs, engine.start, ResourceBudget(2, 10.0), QUIET) == {"c1": "it broke"}


def test_time_left_is_printed_and_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    specs = [JobSpec(Path(f"c{number}"), 1.0, 1.0) for number in range(2)]
    schedule(specs, FakeEngine(failing=("c1",)).start, ResourceBudget(1, 10.0), Console(stderr=True))
    printed = capsys.readouterr().err
    assert "1/2 runs, about 1 min left; c0: done" in printed and "2/2 runs; c1: FAILED: it broke" in printed
    assert doctest.testmod(launching).failed == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_running_jobs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(polls=10**9)
    monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="0 of 3 runs; the same command resumes") as stopped:
        specs = [JobSpec(Path(f"c{each}"), 1.0, 1.0) for each in range(3)]
        schedule(specs, engine.start, ResourceBudget(2, 10.0), QUIET)
    assert engine.stopped == 2 and stopped.value.signal == number


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [JobSpec(tmp_path / "job", 1.0, 1.0)]
    with pytest.raises(UnknownName, match="local, ray, slurm"):
        run_jobs(specs, Launch("condor"), "json", tmp_path, QUIET)
    with pytest.raises(UnknownName, match="did you mean 'slurm'"), open_engine(Launch("slrum"), "json", tmp_path):
        pass
    with pytest.raises(BadInput, match=r"memory=-1\.0 GB leaves nothing"):
        run_jobs([], Launch(memory=-1.0), "json", tmp_path, QUIET)
    for package, engine in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=rf"engine={engine} needs the extra '{engine}'"):
            run_jobs(specs, Launch(engine), "json", tmp_path, QUIET)
    assert not list(tmp_path.iterdir())


def test_wrong_slurm_settings_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    for slurm in ({"cluster": "local", "timeout": 3}, {"cluster": "nowhere"}):
        with pytest.raises(BadInput, match=r"slurm=\{.cluster"):
            run_jobs([JobSpec(tmp_path, 1.0, 1.0)], Launch("slurm", slurm=slurm), "json", tmp_path, QUIET)


def test_settings_of_commands_become_a_launch() -> None:
    command = Benchmark(engine="slurm", jobs=3, threads=2, gpus=0.5, slurm={"timeout_min": 5})
    assert command.launch() == Launch("slurm", 3, 2, None, 0.5, {"timeout_min": 5})
    assert Benchmark().launch() == Launch()
    assert ResourceBudget.of(command.launch()) == ResourceBudget(3, float("inf"))
    assert ResourceBudget.of(Launch(threads=10**6, memory=2.0)) == ResourceBudget(1, 2.0)
    for wrong in ([1], 5):
        with pytest.raises(BadInput, match=r"names no settings; give e\.g\."):
            Benchmark(slurm=wrong).launch()


_MODULE = """
import json, os, sys
from pathlib import Path
folder, parent = Path(sys.argv[1]), int(sys.argv[2])
print("threads", os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"], os.environ["LP_NUM_THREADS"])
assert os.getsid(0) == os.getpid() and os.getppid() == parent
if folder.name == "good":
    (folder / "result.json").write_text("{}")
if folder.name == "killed":
    sys.stdout.flush()
    os.abort()
"""


def test_a_job_has_a_session_a_log_and_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_job.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    folders = [tmp_path / name for name in ("good", "empty", "killed")]
    for folder in folders:
        folder.mkdir()
    failures = run_jobs(
        [JobSpec(folder, 0.1, 1.0) for folder in folders], Launch(threads=3, memory=1.0), "a_job", tmp_path, QUIET
    )
    assert failures == {"empty": "threads 3 3 1", "killed": "killed by SIGABRT; before: threads 3 3 1"}
    assert run_process(str(folders[0]), "a_job", 1) == "" and "threads 1" in (folders[0] / "log.txt").read_text()
    assert "SIGKILL, often for lack of memory; before: threads" in why_failed(folders[2], -signal.SIGKILL)
    assert why_failed(tmp_path, 1) == "it said nothing"


_LEADER = """
import signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
def end(*_):
    time.sleep(0.3)
    print(worker.pid, worker.poll(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(300)
"""


def test_a_job_that_is_asked_to_end_still_has_its_workers() -> None:
    job = subprocess.Popen([sys.executable, "-c", _LEADER], stdout=subprocess.PIPE, start_new_session=True)
    assert job.stdout is not None and job.stdout.readline() == b"ready\n"
    end_process(job)
    worker, state = job.stdout.readline().split()
    job.stdout.close()
    assert state == b"None" and job.returncode == 0
    until = time.monotonic() + 10
    while psutil.pid_exists(int(worker)) and psutil.Process(int(worker)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "nothing stays"
        time.sleep(0.05)


def test_shards_are_dealt_to_ranks_once_each() -> None:
    array = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_MIN": "4",
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_COUNT": "3",
    }
    places = [
        rank_of("slurm", array | {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_NTASKS": "2", "SLURM_PROCID": str(task)})
        for job in (4, 6, 8)
        for task in range(2)
    ]
    assert places == [(rank, 6) for rank in range(6)]
    assert rank_of("torchrun", {"RANK": "1", "WORLD_SIZE": "3"}) == (1, 3) and rank_of("ray", {}) == (0, 1)
    assert choose_engine("auto", {}) == "local" and choose_engine("auto", {"WORLD_SIZE": "2"}) == "torchrun"
    assert choose_engine("auto", {"SLURM_ARRAY_TASK_ID": "0"}) == "slurm"
    for engine in ("torchrun", "slurm"):
        with pytest.raises(BadInput, match="did not start this"):
            rank_of(engine, {})
    with pytest.raises(UnknownName, match="did you mean 'local'"):
        choose_engine("locall", {})


class Doubler(NamedTuple):
    """Doubles numbers; some of them do worse."""

    factor: int

    def load(self, device: str) -> Callable[[int], tuple[int, int, str]]:
        return lambda item: (self.double(item), os.getpid(), device)

    def double(self, item: int) -> int:
        if item == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 13:
            raise ZeroDivisionError
        time.sleep(0.05)
        return item * self.factor


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_every_item_once(workers: int) -> None:
    results = list(run_shards(range(8), Doubler(2).load, "cpu", Launch(jobs=workers)))
    assert sorted(number for number, _, _ in results) == [2 * each for each in range(8)]
    processes = {process for _, process, _ in results}
    assert len(processes) == workers and (os.getpid() in processes) == (workers == 1)
    assert {device for _, _, device in results} == {"cpu"}
    assert list(run_shards([], Doubler(2).load, "cpu", Launch())) == []


def test_a_rank_works_in_its_own_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    results = list(run_shards(range(2), Doubler(2).load, "cpu", Launch("torchrun")))
    assert {process for _, process, _ in results} == {os.getpid()}


@pytest.mark.parametrize(("item", "message"), [(666, "ended, perhaps for lack of memory"), (13, "ZeroDivisionError")])
def test_a_worker_that_is_lost_is_reported(item: int, message: str) -> None:
    with pytest.raises(WorkerLost, match=message):
        list(run_shards([0, item, 1], Doubler(2).load, "cpu", Launch(jobs=2)))


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_workers_finish_what_they_have_started(workers: int) -> None:
    results: list[Any] = []
    with pytest.raises(Stopped, match=rf"stopped by SIGTERM after {workers} of 9 shards; the same command resumes"):
        for result in run_shards(range(9), Doubler(2).load, "cpu", Launch(jobs=workers)):
            if not results:
                os.kill(os.getpid(), signal.SIGTERM)
            results.append(result)
    assert len(results) == workers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_actors_do_every_item_once() -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    try:
        results = list(run_shards(range(5), powers_of_two, "cpu", Launch("ray", jobs=2)))
    finally:
        ray.shutdown()
    assert sorted(results) == [1, 2, 4, 8, 16]


def powers_of_two(device: str) -> Callable[[int], int]:
    return (2).__pow__
