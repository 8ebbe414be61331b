"""Runs as processes: crashes, lost workers, signals, engines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pixio_robot.cli import run
from pixio_robot.cortexbench.run import Paths, RunSpec, write_run
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import BatchRollout, in_workers, plan_episodes
from pixio_robot.errors import WorkerLost
from pixio_robot.jobs.launch import run_process, why_failed
from pixio_robot.metrics import read_episodes


def test_a_runs_process_reports_why_it_failed(tmp_path: Path) -> None:
    spec = RunSpec("toy/reach", "none", "", 100, "smoke", "both", "fp32")
    folder = write_run(spec, Paths(str(tmp_path / "r"), demos="nowhere.hdf5"))
    assert run_process(str(folder), "pixio_robot.cortexbench", 1).startswith("error: no demonstrations at nowhere.hdf5")
    assert "killed by SIGKILL, often for lack of memory" in why_failed(folder, -signal.SIGKILL)


def test_unknown_engines_are_refused() -> None:
    assert run(["benchmark", "tasks=toy/reach", "encoders=[none]", "engine=slrum", "out=b"]) == 1
    assert not Path("b").exists()


def _kill_myself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_an_episode_is_reported() -> None:
    request = TaskSpec("toy/reach", observe=("proprio",), horizon=20)
    rollout = BatchRollout(request, plan_episodes(request, 2, 0), 2)
    steps: list[int] = []

    def act(seen: dict[str, np.ndarray], *_: object) -> np.ndarray:
        steps.append(1)
        if len(steps) == 3:
            assert rollout._envs is not None
            os.kill(rollout._envs.processes[0].pid, signal.SIGKILL)
        return np.zeros((len(seen["proprio"]), 3), np.float32)

    with pytest.raises(WorkerLost, match="toy/reach: a simulator's process was killed during an episode"), rollout:
        list(rollout.run(act))
    with pytest.raises(WorkerLost):
        list(in_workers(_kill_myself, [1, 2], 1))


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
def test_after_a_signal_the_same_command_resumes_and_no_process_stays(number: int) -> None:
    command = [sys.executable, "-m", "pixio_robot", "benchmark", "tasks=toy/reach", "encoders=[none,state]", "jobs=1"]
    first = subprocess.Popen([*command, "out=b"], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while "1/2 runs" not in (line := first.stderr.readline()):
        assert line
    time.sleep(3.0)
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(number)
    printed = first.communicate(timeout=100)[1]
    if number == signal.SIGTERM:
        assert first.returncode == 143 and "stopped by SIGTERM after 1 of 2 runs" in printed
    assert children and not psutil.wait_procs(children, timeout=60)[1]
    again = subprocess.run([*command, "out=b"], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "1 of 2 runs are finished already" in again.stderr, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_engines_do_the_same_runs(name: str, package: str) -> None:
    """The files are those of the local engine."""
    pytest.importorskip(package)
    words = ["tasks=toy/reach", "encoders=[none]", "jobs=1"]
    more = ["slurm={cluster:local,timeout_min:10}"] if name == "slurm" else []
    command = [sys.executable, "-m", "pixio_robot", "benchmark", *words]
    for out, options in (("a", []), ("b", [f"engine={name}", *more])):
        ended = subprocess.run([*command, *options, f"out={out}"], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    (one,), (other,) = (list(Path(out).glob("runs/*/held_out/episodes.jsonl")) for out in "ab")
    returns = [[(row.start, row.episode_return) for row in read_episodes(path)] for path in (one, other)]
    assert returns[0] == returns[1] and one.parts[1:] == other.parts[1:]
