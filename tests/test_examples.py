"""The example trains, and the guides' commands, keys and manifests are what the package takes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
import yaml

import pixio_robot
from pixio_robot.cli import compose
from pixio_robot.pretrain.parallel import World, micro_batches
from pixio_robot.pretrain.runs import check_settings
from pixio_robot.pretrain_schemas import Pretrain
from pixio_robot.schemas import RenderFrames

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "slurm_pretrain.py"
GUIDES = [ROOT / "docs" / name for name in ("pretraining.md", "launching.md")]
TINY = ["images=procedural:100", "batch=8", "encoder=32x2x2", "decoder=32x2x2", "held_out=16", "device=cpu", "out=run"]

pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="runs in a checkout")


class Command(NamedTuple):
    """A command line of a guide that starts this package."""

    name: str
    overrides: list[str]
    processes: int


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


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(), re.DOTALL)


def command_lines(guide: Path) -> list[str]:
    """Return the lines of shell blocks, commands in running text, and what containers run."""
    text = guide.read_text()
    shell = "\n".join(blocks(guide, "sh")).replace("\\\n", " ").replace("$SLURM_NNODES", "2")
    containers = [
        container
        for block in blocks(guide, "yaml")
        for manifest in yaml.safe_load_all(block)
        for container in found(manifest, "containers")
    ]
    return [
        *shell.splitlines(),
        *re.findall(r"`(pixio-robot [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " ")),
        *(shlex.join(each["command"] + each["args"]) for each in containers),
    ]


def found(tree: object, key: str) -> list[dict[str, list[str]]]:
    """Return the items of all lists of that name in a manifest."""
    if isinstance(tree, dict):
        return [item for name, value in tree.items() for item in (value if name == key else found(value, key))]
    return [item for each in tree for item in found(each, key)] if isinstance(tree, list) else []


def commands(guide: Path) -> list[Command]:
    result = []
    for line in command_lines(guide):
        words = shlex.split(line, comments=True)
        for start, name in (("pixio-robot", None), ("pixio_robot", None), ("--", "pretrain")):
            if start in words:
                before, rest = words[: words.index(start)], words[words.index(start) + 1 :]
                given = [word for word in rest if re.match(r"[\w.]+=", word)]
                result.append(Command(name or rest[0], given, processes(before)))
                break
    return result


def processes(words: list[str]) -> int:
    """Return how many processes a launcher's options ask for."""
    numbers = [int(words[words.index(option) + 1]) for option in LAUNCH if option in words]
    return numbers[0] * (numbers[1] if len(numbers) == 2 else 1) if numbers else 1


LAUNCH = ("--nnodes", "--nproc-per-node", "--nodes", "--gpus")


def test_the_example_trains_and_the_guide_explains_its_numbers() -> None:
    process = submit("--cluster", "debug", "--gpus", "0", "--", *TINY, "steps=2", "workers=0")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and Path("run/encoder.safetensors").is_file(), output
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row if "/" in name}
    assert names and names == set(re.findall(r"`((?:train|valid|features|time|data|\w+s)/\w+)`", GUIDES[0].read_text()))


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
    assert stopped and f"going on from run/checkpoints/step-{int(stopped[1]):08d}" in logs, logs
    assert Path("run/checkpoints/step-00000150").is_dir()


def test_the_example_names_a_run_that_fails() -> None:
    process = submit("--cluster", "local", "--gpus", "0", "--", *TINY, "bacth=8")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "ended with status 1" in output, output


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guides_commands_are_accepted(guide: Path) -> None:
    every = commands(guide)
    assert len(every) >= 5
    for name, overrides, count in every:
        settings = compose(name, overrides, complete=bool(overrides))
        if isinstance(settings, Pretrain):
            check_settings(settings)
            assert micro_batches(settings, World(torch.device("cpu"), size=count)) >= 1
    assert {count for _, _, count in every} >= ({1} if guide.stem == "pretraining" else {8, 16})


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_guides_shell_can_be_parsed(guide: Path) -> None:
    for block in blocks(guide, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_guide_lists_what_may_change() -> None:
    said = re.search(r"\*\*May change\*\*: (.*?), and the number", GUIDES[0].read_text(), re.DOTALL)
    assert said
    assert set(re.findall(r"`(\w+)`", said[1])) == {each.name for each in fields(Pretrain) if each.metadata["free"]}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_keys_and_files_that_the_guides_name_exist(guide: Path) -> None:
    text = guide.read_text()
    for name in re.findall(r"\]\(([\w./]+)\)", text):
        assert (guide.parent / name).is_file(), name
    known = {each.name for command in (Pretrain, RenderFrames) for each in fields(command)}
    known |= {"recipe", "encoder", "demos"}
    for name in re.findall(r"`([a-z_]+)=[^`]*`", text):
        assert name in known, name
