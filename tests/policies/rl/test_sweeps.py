"""Sweeps of train_rl: jobs in separate processes, the same files from every engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from pixio_robot import cli
from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.config import sweep_jobs
from pixio_robot.metrics import read_episodes

TINY = ["task=toy/reach", "obs=state", "steps=60", "episode_steps=10", "eval_every=60", "eval_episodes=1", "episodes=1"]
TINY += ["algorithm.layers=[8]", "algorithm.batch=8", "algorithm.buffer=100", "algorithm.warmup=20"]
LAST = "checkpoints/sac/last.safetensors"


def test_each_job_is_a_separate_run(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = [
        "train_rl",
        "-m",
        *TINY,
        "jobs=2",
        "algorithm.gamma=0.9,2.0",
        "out='r/${seed}-${algorithm.gamma}'",
        "seed=0,1",
    ]
    assert cli.run(sweep) == 1 and "gamma=2.0 must lie from 0 to 1" in capsys.readouterr().err
    assert not Path("r").exists(), "what cannot run is refused before anything is started"
    sweep[sweep.index("algorithm.gamma=0.9,2.0")] = "algorithm.gamma=0.9"
    (broken := Path("r/0-0.9/checkpoints")).parent.mkdir(parents=True)
    broken.touch()
    assert cli.run(sweep) == 1, "one could not run, the other one did"
    said = capsys.readouterr()
    assert "2/2 runs" in said.err and "r/1-0.9: trained" in said.out and "checkpoints" in said.out
    assert cli.run([*sweep[:-1], "seed=1"]) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().err
    assert cli.run(["train_rl", *TINY, "algorithm.gamma=0.9", "seed=1", "out=alone"]) == 0
    one, other = (load_checkpoint(Path(run) / LAST, "policy").tensors for run in ("r/1-0.9", "alone"))
    assert all(one[key].equal(other[key]) for key in one), "a job ends where the command alone ends"


def test_jobs_are_all_combinations() -> None:
    jobs = sweep_jobs(["task=toy/reach", "seed=0,1", "algorithm.gamma=0.8,0.9", "algorithm.layers=[8,8]"])
    assert [job[1:3] for job in jobs] == [
        [f"seed={seed}", f"algorithm.gamma={gamma}"] for seed in (0, 1) for gamma in (0.8, 0.9)
    ]
    assert all(job[0] == "task=toy/reach" and job[3] == "algorithm.layers=[8,8]" for job in jobs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=0,1", "out=same"], "two jobs would write to same"),
        (["-m", "seed=0,1", "engine=slrum"], "did you mean 'slurm'"),
        (["-m", "seed=0,1", "hydra/launcher=joblib"], "engine=local, ray or slurm"),
        (["-m", "sed=0,1"], "did you mean 'seed'"),
        (["engine=ray"], "add -m"),
        (["jobs=2"], "jobs=2 is for the jobs of a sweep; add -m"),
        (["-m", "seed=0,1", "jobs=0"], "jobs=0 is too small"),
    ],
)
def test_a_sweep_that_cannot_run_says_so(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train_rl", *TINY, *words]) == 1
    assert message in capsys.readouterr().err and not Path("runs").exists() and not Path("same").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_engines_run_the_same_jobs(engine: str, package: str) -> None:
    pytest.importorskip(package)
    more = ["slurm={cluster:local,timeout_min:10}"] if engine == "slurm" else []
    command = [sys.executable, "-m", "pixio_robot", "train_rl", "-m", *TINY, "seed=0,1", "jobs=2"]
    for name, options in (("local", []), (engine, [f"engine={engine}", *more])):
        words = [*command, *options, f"out='{name}/${{seed}}'"]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    for seed in "01":
        rows = [read_episodes(Path(name) / seed / "episodes.jsonl") for name in ("local", engine)]
        assert [row.episode_return for row in rows[0]] == [row.episode_return for row in rows[1]]
