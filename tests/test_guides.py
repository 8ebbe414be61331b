"""Commands, keys and manifests of README and guides are what the package takes, as a shell would pass them on."""

import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import pixio_robot
from pixio_robot.cli import compose
from pixio_robot.config import sweep_jobs
from pixio_robot.envs.commands import RenderFrames
from pixio_robot.pretrain.commands import Pretrain, pretrain_values
from pixio_robot.training.distributed import micro_batches

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
HISTORY = ("log.md", "decisions.md")  # say what was run once
PLUGINS = ("extend.md",)  # uses plug-ins that are not installed here; test_plugin_package.py runs its commands
TRAINING = [ROOT / "docs" / name for name in ("pretraining.md", "launching.md")]
GUIDES = [ROOT / "README.md", *sorted(each for each in ROOT.glob("docs/*.md") if each.name not in HISTORY + PLUGINS)]

pytestmark = [
    pytest.mark.skipif(not GUIDES[0].is_file(), reason="runs in a checkout"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]


class Command(NamedTuple):
    """A command line of a guide that starts this package."""

    name: str
    overrides: list[str]
    processes: int


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(), re.DOTALL)


def shell_lines(guide: Path) -> list[str]:
    """Return the lines of shell blocks, continued ones as one, and the commands in running text."""
    shell = "\n".join(blocks(guide, "sh")).replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", guide.read_text(), flags=re.DOTALL).replace("\n", " ")
    return [line.strip() for line in shell.splitlines()] + re.findall(r"`(pixio-robot [^`]+)`", prose)


def command_lines(guide: Path) -> list[str]:
    """Return all that a guide runs: its shell lines and what its containers run."""
    containers = [
        container
        for block in blocks(guide, "yaml")
        for manifest in yaml.safe_load_all(block)
        for container in found(manifest, "containers")
    ]
    return [
        *(line.replace("$SLURM_NNODES", "2") for line in shell_lines(guide)),
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


def shown(guide: Path) -> list[str]:
    """Return commands, and variables they use, of shell blocks and running text; none with a pipe or a placeholder."""
    kept = [line for line in shell_lines(guide) if re.match(r"pixio-robot |[A-Z]=", line)]
    return [line for line in kept if not re.search(r"[|<>;&]|\bCOMMAND\b|--help", line)]


def as_passed(lines: list[str]) -> list[list[str]]:
    """Return the words of each line after the shell has expanded it."""
    echo = 'set -f; pixio-robot() { printf "%s\\0" "$@"; printf "\\n\\0"; }\n'
    done = subprocess.run(["bash", "-c", echo + "\n".join(lines)], capture_output=True, text=True, check=True)
    commands: list[list[str]] = [[]]
    for word in done.stdout.split("\0")[:-1]:
        if word == "\n":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands[:-1]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_its_commands_are_taken(guide: Path) -> None:
    for name, *words in as_passed(shown(guide)):
        overrides = [word for word in words if word not in ("-m", "...")]
        keys = [override.partition("=")[0] for override in overrides]
        assert all(first != second for first, second in pairwise(keys)), f"{overrides}: a brace needs quotes"
        for job in sweep_jobs(overrides) if "-m" in words else [overrides]:
            compose(name, job, complete=False)


def test_guides_show_commands() -> None:
    assert sum(len(as_passed(shown(guide))) for guide in GUIDES) > 100


@pytest.mark.parametrize("guide", TRAINING, ids=lambda guide: guide.stem)
def test_the_guides_commands_are_accepted(guide: Path) -> None:
    every = commands(guide)
    assert len(every) >= 5
    for name, overrides, count in every:
        settings = compose(name, overrides, complete=bool(overrides))
        if isinstance(settings, Pretrain):
            pretrain_values(settings)
            assert micro_batches(settings.batch, settings.micro_batch, count) >= 1
    assert {count for _, _, count in every} >= ({1} if guide.stem == "pretraining" else {8, 16})


@pytest.mark.parametrize("guide", TRAINING, ids=lambda guide: guide.stem)
def test_the_guides_shell_can_be_parsed(guide: Path) -> None:
    for block in blocks(guide, "sh"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_guide_lists_what_may_change() -> None:
    said = re.search(r"\*\*May change\*\*: (.*?), and the number", TRAINING[0].read_text(), re.DOTALL)
    assert said
    assert set(re.findall(r"`(\w+)`", said[1])) == {each.name for each in fields(Pretrain) if each.metadata["free"]}


@pytest.mark.parametrize("guide", TRAINING, ids=lambda guide: guide.stem)
def test_the_keys_and_files_that_the_guides_name_exist(guide: Path) -> None:
    text = guide.read_text()
    for name in re.findall(r"\]\(([\w./]+)\)", text):
        assert (guide.parent / name).is_file(), name
    known = {each.name for command in (Pretrain, RenderFrames) for each in fields(command)}
    known |= {"recipe", "encoder", "demos"}
    for name in re.findall(r"`([a-z_]+)=[^`]*`", text):
        assert name in known, name
