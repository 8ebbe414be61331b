"""Every command that README and guides show is one the package takes, as a shell would pass it on."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

import pixio_robot
from pixio_robot.cli import compose
from pixio_robot.composition import sweep_jobs

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
HISTORY = ("log.md", "decisions.md")  # say what was run once
GUIDES = [ROOT / "README.md", *sorted(each for each in ROOT.glob("docs/*.md") if each.name not in HISTORY)]

pytestmark = [
    pytest.mark.skipif(not GUIDES[0].is_file(), reason="runs in a checkout"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]


def shown(guide: Path) -> list[str]:
    """Return commands, and variables they use, of shell blocks and running text; none with a pipe or a placeholder."""
    text = guide.read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    inline = re.findall(r"`(pixio-robot [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " "))
    lines = [line.strip() for line in blocks.splitlines()] + inline
    kept = [line for line in lines if re.match(r'pixio-robot |\w+="', line)]
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
