"""The README's code runs, it begins with the demo and the tests, and its files are there."""

import re
from pathlib import Path

import pytest

import pixio_robot

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="runs in a checkout")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_its_python_runs(toy_file: Path, toy_checkpoint: Path) -> None:
    Path("hammer.hdf5").symlink_to(toy_file)
    checkpoint = Path("hammer-bc/checkpoints/mlp/last.safetensors")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(toy_checkpoint)
    for block in _blocks("python"):
        exec(block, {})


def test_it_begins_with_the_demo_and_the_tests() -> None:
    assert _blocks("sh")[0].split("\n")[:2] == ["make demo", "make test"]
    targets = (ROOT / "Makefile").read_text()
    assert all(f"\n{name}: " in targets for name in ("setup", "demo", "test", "check", "format", "wheel", "bench"))


def test_the_files_it_names_are_there() -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.\w+)`|\]\(([\w/.]+)\)", README.read_text()):
        file = name[0] or name[1]
        if not file.startswith("hammer"):
            assert (ROOT / file).is_file(), file
