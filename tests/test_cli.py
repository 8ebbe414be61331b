"""The command line: help, typed keys, and one clear message with a non-zero exit for whatever goes wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pixio_robot import cli
from pixio_robot.command_table import NAMES
from pixio_robot.errors import Stopped
from pixio_robot.policies.commands import COMMANDS as policy_commands
from pixio_robot.pretrain.commands import COMMANDS as pretrain_commands

TOY = ["task=toy/reach", "demos=2", "valid=1", "episodes=2", "episode_steps=25", "envs=2", "training.epochs=2"]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.run(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "--help")
    assert status == 0 and all(f"\n  {name} " in out for name in NAMES)
    assert _run(capsys)[0] == 2
    assert _run(capsys, "--version")[1].count(".") == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_line_of_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, name, "--help")
    assert status == 0
    for line in out.split("Keys:\n")[1].split("\n\n")[0].splitlines():
        key, _, text = line.strip().partition("  ")
        assert "=" in key and len(text.strip()) > 5, f"{name}: {line}"


def test_help_follows_the_chosen_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert "policy.layers=[128]" in _run(capsys, "train_bc", "--help", "policy=small")[1]
    assert "policy.layers=[128]" not in _run(capsys, "train_bc", "--help")[1]
    status, _, err = _run(capsys, "train_bc", "--help", "policy=nothing")
    assert status == 1 and "no policy 'nothing'; there are: mlp" in err and "provider=" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikstart"], "did you mean 'quickstart'"),
        (["collect"], "collect needs task=...; e.g. task=metaworld/drawer-open"),
        (["collect", "task=metaworld/drawer-opne"], "did you mean 'metaworld/drawer-open'"),
        (["collect", "task=toy/reach", "demo=3"], "no key 'demo'; did you mean 'demos'"),
        (["collect", "task=toy/reach", "demos=many"], "demos: Value 'many' of type 'str' could not be converted"),
        (["collect", "task=toy/reach", "--demos", "3"], "'--demos' is not key=value"),
        (["collect", "task=toy/reach", "render=pretty"], "benchmark, balanced, fast"),
        (["train_bc", "demos=none.hdf5"], "no demonstrations at none.hdf5"),
        (["train_bc", "demos=x", "policy=smal"], "small"),
        (["train_bc", "demos=x", "training.lr=[1,2]"], "training.lr"),
        (["quickstart", "task=toy/reach", "encoder=random:tiny"], "did you mean 'ti'"),
        (["quickstart", "task=toy/reach", "device=cuda"], "device"),
        (["quickstart", "task=toy/reach", "policy.fusion=men"], "did you mean 'mean'"),
        (["quickstart", "task=toy/reach", "precision=int3"], "auto, fp32, bf16"),
        (["evaluate", "checkpoint=none.safetensors"], "no file none.safetensors"),
        (["report", "run=nowhere"], "nowhere"),
    ],
)
def test_wrong_input_gets_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "device=cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, out, err = _run(capsys, *arguments)
    assert status == 1 and message in err and "Traceback" not in err and not out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert not list(tmp_path.rglob("*.hdf5")) and not list(tmp_path.rglob("*.tmp"))


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="no file none"):
        cli.run(["evaluate", "checkpoint=none.safetensors", "debug=true"])


@pytest.mark.parametrize("number", [errno.ENOSPC, None])
def test_a_full_disk_gets_one_message(
    number: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 reports a full disk without a number, in its text."""
    error = OSError(number, "No space left", "demos.hdf5") if number else OSError("write failed: errno = 28, x")

    def full(command: Any) -> int:
        raise error

    monkeypatch.setitem(policy_commands, "collect", policy_commands["collect"]._replace(run=full))
    status, _, err = _run(capsys, "collect", "task=toy/reach")
    assert status == 1 and "no space left for" in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["collect", "embed"])
def test_a_disk_that_is_really_full(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, toy_file: Path, tiny_file: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        arguments = {
            "collect": ["task=toy/reach", "demos=3", "render=fast", f"out={small}/demos.hdf5"],
            "embed": [f"demos={toy_file}", f"encoder={tiny_file}", "patches=true", f"cache={small}"],
        }[command]
        status, _, err = _run(capsys, command, *arguments)
        assert status == 1 and "no space left for" in err and "Traceback" not in err
        assert not (small / "demos.hdf5").exists() and not list(small.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_collect_train_evaluate_and_sweep(capsys: pytest.CaptureFixture[str], tiny_file: Path, tmp_path: Path) -> None:
    """The commands one after another, and the training run's number again from its checkpoint."""
    assert (
        _run(
            capsys, "collect", "task=toy/reach", "demos=2", "valid=1", "episode_steps=25", "render=fast", "out=d.hdf5"
        )[0]
        == 0
    )
    encoder = f"encoder={tiny_file}"
    assert _run(capsys, "embed", "demos=d.hdf5", encoder)[0] == 0
    status, out, err = _run(capsys, "train_bc", "demos=d.hdf5", encoder, "policy=small", "out=run")
    assert status == 0 and "evaluate it with: pixio-robot evaluate" in out and "encode" not in err, "tokens were cached"
    checkpoint = "checkpoint=run/checkpoints/mlp/last.safetensors"
    rates = []
    for folder in ("a", "b"):
        status, out, _ = _run(capsys, "evaluate", checkpoint, "episodes=2", "envs=2", f"out={folder}")
        assert status == 0 and (tmp_path / folder / "report.html").is_file()
        rates.append([line for line in out.splitlines() if "step" in line])
    assert rates[0] == rates[1] and len(rates[0]) == 2
    status, _, err = _run(capsys, "evaluate", checkpoint, "episodes=1", "out=a")
    assert status == 1 and "episodes 2 instead of 1" in err
    sweep = ("train_bc", "-m", "demos=d.hdf5", encoder, "policy=small", "seed=0,1", "training.epochs=1")
    assert _run(capsys, *sweep)[0] == 0
    trained = sorted(tmp_path.glob("runs/train_bc/*/checkpoints/mlp/last.safetensors"))
    times = [path.stat().st_mtime_ns for path in trained]
    assert len(trained) == 2
    status, out, _ = _run(capsys, *sweep)
    assert status == 0 and out.count("reused") == 2, "a sweep resumes too"
    assert [path.stat().st_mtime_ns for path in trained] == times


def test_a_signal_ends_the_whole_sweep(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def stopped(command: object) -> int:
        jobs.append(command)
        raise Stopped("stopped by SIGTERM", 15)

    monkeypatch.setitem(pretrain_commands, "pretrain", pretrain_commands["pretrain"]._replace(run=stopped))
    status, _, err = _run(capsys, "pretrain", "-m", "images=procedural", "seed=0,1,2")
    assert status == 128 + 15 and len(jobs) == 1 and "the sweep ends here" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demos=d.hdf5", "sed=0,1"], "did you mean 'seed'"),
        (["seed=0,1"], "train_bc needs demos=..."),
        (["demos=none.hdf5", "seed=0,1"], "no demonstrations at none.hdf5"),
        (["demos=none.hdf5", "policy.layers=[3,4],[5"], "key=a,b,c"),
    ],
)
def test_a_sweep_that_cannot_run_says_so(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = _run(capsys, "train_bc", "-m", *arguments)
    assert status == 1 and message in err and "Traceback" not in err


def test_an_evaluation_belongs_to_the_weights_not_to_their_name(
    capsys: pytest.CaptureFixture[str], tiny_file: Path, toy_file: Path
) -> None:
    train = ["train_bc", f"demos={toy_file}", f"encoder={tiny_file}", "policy=small"]
    evaluate = ["evaluate", "checkpoint=b/checkpoints/mlp/last.safetensors", "episodes=1", "videos=false"]
    folders = []
    for epochs in (1, 2):
        assert _run(capsys, *train, f"training.epochs={epochs}", "out=b")[0] == 0
        assert _run(capsys, *evaluate)[0] == 0
        folders.append({path.name for path in Path("runs/evaluate").iterdir()})
        shutil.rmtree("b")
    assert len(folders[0]) == 1 and len(folders[1]) == 2


def test_a_refused_command_leaves_the_place_free(
    capsys: pytest.CaptureFixture[str], tiny_file: Path, toy_file: Path
) -> None:
    collect = ["collect", "task=toy/reach", "demos=1", "valid=0", "render=fast", "episode_steps=25", "out=d.hdf5"]
    assert _run(capsys, *collect, "cameras=[side]")[0] == 1
    assert _run(capsys, *collect, "cameras=[top]")[0] == 0
    train = ["train_bc", f"demos={toy_file}", f"encoder={tiny_file}", "policy=small", "training.epochs=1", "out=c"]
    assert _run(capsys, *train, "policy.activation=silu")[0] == 1
    assert not Path("runs/cache").exists(), "nothing was encoded for settings that cannot be trained"
    assert _run(capsys, *train, "policy.activation=gelu")[0] == 0
    evaluate = ["evaluate", "checkpoint=c/checkpoints/mlp/last.safetensors", "episodes=1", "out=e"]
    assert _run(capsys, *evaluate, "render=pretty")[0] == 1
    status, _, err = _run(capsys, *evaluate, "first_seed=0")
    assert status == 1 and "have initial states of demonstrations" in err
    assert _run(capsys, *evaluate)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "checkpoint=x", "episodes=0"],
        ["quickstart", "task=toy/reach", "episodes=0"],
        ["quickstart", "task=toy/reach", "observation.steps=0"],
        ["train_bc", "demos=x", "save_every=0"],
        ["embed", "demos=x", "batch=0"],
        ["collect", "task=toy/reach", "first_seed=-1"],
    ],
)
def test_numbers_that_make_no_sense_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = _run(capsys, *arguments)
    assert status == 1 and "is too small; it must be at least" in err and arguments[-1].split("=")[0] in err


def test_a_full_disk_while_a_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from pixio_robot import checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save_checkpoint(tmp_path / "a.safetensors", checkpoint.Checkpoint("policy", {}, {}))
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_quickstart_reuses_what_exists(capsys: pytest.CaptureFixture[str], tiny_file: Path, tmp_path: Path) -> None:
    arguments = ["quickstart", *TOY, f"encoder={tiny_file}", "out=run"]
    status, out, _ = _run(capsys, *arguments)
    assert status == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert set(result["policies"]) == {"mlp", "none", "expert"} and result["policies"]["expert"]["last"]["rate"] == 1
    for stage in ("collect", "encode", "train", "evaluate"):
        assert result["stages"][stage]["seconds"] > 0 and not result["stages"][stage]["reused"]
        assert f"time to {stage}" in out
    for said in ("proprioception-only policy", "expert", "fusion", "render quality", "report.html", "peak memory"):
        assert said in out
    for name in ("config.yaml", "environment.json", "episodes.jsonl", "metrics.jsonl", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert list((tmp_path / "run/tensorboard/mlp").iterdir())
    status, again, _ = _run(capsys, *arguments)
    assert status == 0 and again.count("(reused)") == 4
    second = json.loads((tmp_path / "run/result.json").read_text())
    assert second["policies"] == result["policies"]
    assert _run(capsys, "evaluate", f"checkpoint={result['checkpoint']}", "episodes=2", "envs=2", "out=again")[0] == 0
    once_more = json.loads((tmp_path / "again/result.json").read_text())
    assert once_more["policies"]["mlp"] == result["policies"]["mlp"], "evaluate reproduces the training run's number"
    rows = (tmp_path / "run/episodes.jsonl").read_text().splitlines()
    assert len(rows) == 6 and all(json.loads(row)["weights"] in ("trained", "none") for row in rows)


def test_a_random_encoder_is_named_everywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = _run(
        capsys, "quickstart", *TOY, "encoder=random:ti:0", "episodes=1", "demos=1", "valid=0", "out=r"
    )
    assert status == 0 and "RANDOM WEIGHTS" in out
    assert "random weights" in (tmp_path / "r/report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "r/episodes.jsonl").read_text().splitlines()]
    assert {row["weights"] for row in rows if row["policy"] == "mlp"} == {"random"}


def test_a_quickstart_without_images_renders_no_evaluation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, _ = _run(capsys, "quickstart", *TOY, "encoder=none", "out=run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert status == 0 and set(result["policies"]) == {"none", "expert"} and result["weights"] == "none"
    assert result["class_token_cosine"] is None


@pytest.mark.parametrize("kept_parts", [0, 3])
def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_resumes(kept_parts: int, tmp_path: Path) -> None:
    """At once, while workers still import, and later, while they record."""
    command = [sys.executable, "-m", "pixio_robot", "collect", "task=toy/reach", "out=d.hdf5", "render=fast"]
    command += ["demos=12" if kept_parts else "demos=3", "episode_steps=25"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    parts = tmp_path / "d.hdf5.parts"
    deadline = time.time() + 60
    while not (parts.is_dir() and len(list(parts.glob("seed_*.hdf5"))) >= kept_parts) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to workers too
    interrupted = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; run the same command again" in err and "Traceback" not in err
    assert time.time() - interrupted < 5 and not (tmp_path / "d.hdf5").exists()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and (tmp_path / "d.hdf5").is_file() and not parts.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_doctor_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "doctor")
    assert status == 0, out
    for what in ("python", "torch", "rendering", "extra metaworld", "extra robomimic"):
        assert what in out
    for line in out.splitlines():
        assert "missing" not in line or "pixio-robot[" in line, "the fix names the extra"


def test_doctor_says_how_to_fix_rendering(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pixio_robot import doctor
    from pixio_robot.errors import RenderingUnavailable

    def broken() -> None:
        raise RenderingUnavailable("no OpenGL context; apt-get install libegl1")

    monkeypatch.setattr(doctor, "check_rendering", broken)
    status, out, _ = _run(capsys, "doctor", "system_only=true")
    assert status == 1 and "apt-get install libegl1" in out
