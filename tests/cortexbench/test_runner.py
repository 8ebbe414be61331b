"""Cells side by side: budgets of jobs and memory, crashes, signals, engines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from pixio_robot.cli import run
from pixio_robot.cortexbench import cell as cells
from pixio_robot.cortexbench.cell import Paths, RunSpec
from pixio_robot.cortexbench.engines import Job, Resources, end_process, engine, outcome, run_process
from pixio_robot.cortexbench.runner import ResourceBudget, Task, run_tasks
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import BatchRollout, in_workers, plan_episodes
from pixio_robot.errors import Stopped, UnknownName, WorkerLost
from pixio_robot.metrics import read_episodes


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
    assert run_tasks(tasks, runner, ResourceBudget(2, 4.0), QUIET) == {}
    assert sorted(runner.order) == ["c0", "c1", "c2", "c3", "c4"] and runner.most == 2
    assert runner.largest == 9.0, "the cell that fits nowhere ran alone"


def test_a_crashed_cell_is_reported_and_the_rest_goes_on() -> None:
    tasks = [Task(Path(f"c{number}"), 1.0, 1.0) for number in range(4)]
    assert run_tasks(tasks, Pretended(failing=("c1",)), ResourceBudget(2, 10.0), QUIET) == {"c1": "it broke"}


def test_time_left_is_said_and_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task(Path(f"c{number}"), 1.0, 1.0) for number in range(2)]
    run_tasks(tasks, Pretended(failing=("c1",)), ResourceBudget(1, 10.0), Console(stderr=True))
    said = capsys.readouterr().err
    assert "1/2 cells, about 1 min left; c0: done" in said and "2/2 cells; c1: FAILED: it broke" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_cells_under_way(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Pretended(polls=10**9)
    monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="0 of 3 cells; the same command goes on") as stopped:
        run_tasks([Task(Path(f"c{each}"), 1.0, 1.0) for each in range(3)], runner, ResourceBudget(2, 10.0), QUIET)
    assert runner.stopped == 2 and stopped.value.signal == number


def test_a_cells_process_says_why_it_failed(tmp_path: Path) -> None:
    folder = cells.describe(
        RunSpec("toy/reach", "none", "", 100, "smoke", "both", "fp32"), Paths(str(tmp_path / "r"), demos="nowhere.hdf5")
    )
    resources = Resources(1, "pixio_robot.cortexbench")
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
    request = TaskSpec("toy/reach", observe=("proprio",), horizon=20)
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


def test_a_cell_that_is_asked_to_end_still_has_its_workers() -> None:
    cell = subprocess.Popen([sys.executable, "-c", _LEADER], stdout=subprocess.PIPE, start_new_session=True)
    assert cell.stdout is not None and cell.stdout.readline() == b"ready\n"
    end_process(cell)
    worker, state = cell.stdout.readline().split()
    cell.stdout.close()
    assert state == b"None" and cell.returncode == 0
    until = time.monotonic() + 10
    while psutil.pid_exists(int(worker)) and psutil.Process(int(worker)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "nothing stays"
        time.sleep(0.05)


def test_workers_end_with_what_started_them(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pixio_robot",
        "collect",
        "task=toy/reach",
        "render=fast",
        "demos=5000",
        "workers=2",
    ]
    parent = subprocess.Popen([*command, f"out={tmp_path / 'demos.hdf5'}"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("demos.hdf5.parts/*.hdf5")) and time.monotonic() < until:
        time.sleep(0.1)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=30)[1]


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
