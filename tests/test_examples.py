"""The example trains, is requeued, and says what failed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import pixio_robot

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "slurm_pretrain.py"
GUIDE = ROOT / "docs" / "pretraining.md"
TINY = [
    "images=procedural:100",
    "batch=8",
    "encoder=32x2x2",
    "decoder=32x2x2",
    "val_images=16",
    "device=cpu",
    "out=run",
]

pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="runs in a checkout")


def submit(*words: str) -> "subprocess.Popen[str]":
    """Start the example in the present folder."""
    pytest.importorskip("submitit")
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_example_trains_and_the_guide_explains_its_numbers() -> None:
    process = submit("--cluster", "debug", "--gpus", "0", "--", *TINY, "steps=2", "workers=0")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and Path("run/encoder.safetensors").is_file(), output
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row if "/" in name}
    assert names and names == set(re.findall(r"`((?:train|valid|features|time|data|\w+s)/\w+)`", GUIDE.read_text()))


@pytest.mark.slow
def test_the_example_writes_a_checkpoint_before_it_is_requeued() -> None:
    job = submit("--cluster", "local", "--gpus", "2", "--", *TINY, "steps=150", "log_every=5", "save_every=1000")
    metrics, deadline = Path("run/metrics.jsonl"), time.monotonic() + 100
    while time.monotonic() < deadline and not (metrics.is_file() and '"step": 10,' in metrics.read_text()):
        time.sleep(0.1)
    for child in psutil.Process(job.pid).children(recursive=True):
        if "submitit.core._submit" in child.cmdline():  # those that read images too, as Slurm may
            child.send_signal(signal.SIGUSR2)
    output, _ = job.communicate(timeout=200)
    logs = "".join(path.read_text() for path in Path("runs/submitit").glob("*.err"))
    assert job.returncode == 0, output + logs
    stopped = re.search(r"stopped by SIGTERM after step (\d+) of 150", logs)
    assert stopped and f"resuming from run/checkpoints/step-{int(stopped[1]):08d}" in logs, logs
    assert Path("run/checkpoints/step-00000150").is_dir()


def test_the_example_names_a_run_that_fails() -> None:
    process = submit("--cluster", "local", "--gpus", "0", "--", *TINY, "bacth=8")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "ended with status 1" in output, output
