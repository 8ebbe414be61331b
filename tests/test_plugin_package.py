"""A package with one plug-in of each kind: the guide shows its files, and the ordinary commands use it."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

import pixio_robot
from pixio_robot.datasets.dataset import open_dataset

PACKAGE = Path(__file__).with_name("plugin_package")
GUIDE = Path(pixio_robot.__file__).resolve().parent.parent / "docs" / "extend.md"
PLUGINS = {
    "policies": "attention",
    "datasets": "npz",
    "suites": "point",
    "encoders": "patches",
    "cameras": "pattern",
    "robots": "stage",
    "targets": "pt2",
}
SCREEN = 50  # lines of a section
COMMANDS = """\
collect task=point/reach demos=6 valid=1 image_size=32 out=point.hdf5
train_bc demos=point.hdf5 encoder=patches:16 policy=attention horizon=4 training.epochs=3 out=point
evaluate checkpoint=point/checkpoints/attention/last.safetensors episodes=2
train_bc demos=episodes encoder=patches:16 policy=attention training.epochs=3 out=npz
export checkpoint=npz/checkpoints/attention/last.safetensors target=pt2 demos=episodes episodes=0 out=bundle
stream checkpoint=npz/checkpoints/attention/last.safetensors camera=pattern zeros=true frames=5
run robot=stage camera=pattern bundle=bundle steps=5
"""


def install(folder: Path) -> None:
    """Install the package as pip does, without pip: its modules, and metadata with the entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    for file in PACKAGE.glob("*/*.py"):
        target = folder / file.parent.name / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(file.read_text())
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in names.items()))]
    (about / "entry_points.txt").write_text("\n".join(lines))


def processes(site: Path) -> dict[str, str]:
    """Return the environment of processes that see the installed package."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(site: Path, folder: Path, *words: str) -> str:
    """Run a command in a process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pixio_robot", *words],
        cwd=folder,
        env=processes(site),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_episodes(file: Path, folder: Path) -> None:
    """Write recorded demonstrations in the format of the package."""
    folder.mkdir()
    demos = open_dataset(file)
    for first in np.unique(demos.episode_starts):
        rows = np.flatnonzero(demos.episode_starts == first)
        values = {key: demos.read(key, rows) for key in ("rgb", "proprio", "action")}
        np.savez(folder / f"episode_{first:06d}.npz", **values)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the package in it."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    return folder


@pytest.fixture(scope="module")
def ran(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder in which the commands of the guide ran, and what each printed, by the command's first words."""
    folder = tmp_path_factory.mktemp("commands")
    printed = {}
    for line in COMMANDS.splitlines():
        printed[" ".join(line.split()[:2])] = run(site, folder, *line.split())
        if line.startswith("collect"):
            write_episodes(folder / "point.hdf5", folder / "episodes")
    return folder, printed


def test_the_ordinary_commands_use_every_plug_in(ran: tuple[Path, dict[str, str]]) -> None:
    folder, printed = ran
    assert "6 + 1 demonstrations of point/reach" in printed["collect task=point/reach"]
    assert (folder / "point/checkpoints/attention/last.safetensors").is_file()
    assert (folder / "npz/checkpoints/attention/last.safetensors").is_file()
    evaluated = printed["evaluate checkpoint=point/checkpoints/attention/last.safetensors"]
    assert "point/reach · attention" in evaluated and "patches:16" in evaluated
    exported = printed["export checkpoint=npz/checkpoints/attention/last.safetensors"]
    assert "verification, fp32: passed" in exported and "bundle: pt2 fp32" in exported
    assert "pattern: 5 actions" in printed["stream checkpoint=npz/checkpoints/attention/last.safetensors"]
    assert re.search(r"episodes ended by\W+1 end", printed["run robot=stage"])


def test_the_plug_ins_work_with_built_in_ones(site: Path, ran: tuple[Path, dict[str, str]]) -> None:
    folder, _ = ran
    checkpoint = "checkpoint=point/checkpoints/attention/last.safetensors"
    run(site, folder, "run", "robot=task:point/reach", checkpoint, "time=stepped", "depth=false", "out=simulated")
    assert open_dataset(folder / "simulated" / "demos.hdf5").features["rgb"].shape == (32, 32, 3)
    checkpoint_of_npz = "checkpoint=npz/checkpoints/attention/last.safetensors"
    run(site, folder, "evaluate", checkpoint_of_npz, "task=point/reach", "episodes=1", "envs=1", "out=evaluated")
    (video,) = (folder / "evaluated" / "videos").glob("*.mp4")
    assert cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_HEIGHT) == 32  # as in the data, not the task's default
    if not (importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime")):
        pytest.skip("needs the extra export")
    printed = run(site, folder, "export", checkpoint, "demos=point.hdf5", "episodes=0", "frames=16", "out=onnx")
    assert "verification, fp32: passed" in printed


def test_an_unknown_name_lists_the_plug_in(site: Path) -> None:
    code = (
        "from pixio_robot.plugins import GROUPS, find_plugin\n"
        "from pixio_robot.errors import UnknownName\n"
        "for group in GROUPS:\n"
        "    try:\n        find_plugin(group, 'nothing')\n"
        "    except UnknownName as error:\n        print(group, error)\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=processes(site), capture_output=True, text=True, check=True)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(lines) == set(PLUGINS)
    for group, name in PLUGINS.items():
        assert name in lines[group].partition("there are: ")[2].split(", "), lines[group]


def test_the_suite_fulfils_the_contract(site: Path) -> None:
    code = "from pixio_robot.envs.contract import check_contract; check_contract('point/reach')"
    subprocess.run([sys.executable, "-c", code], env=processes(site), check=True)


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_the_guide_shows_the_files_and_commands() -> None:
    text = GUIDE.read_text()
    shown = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)
    files = [*PACKAGE.glob("*.toml"), *(each for each in PACKAGE.glob("*/*.py") if each.name != "__init__.py")]
    assert sorted(shown) == sorted(file.read_text() for file in files)
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = re.sub(r" \\\n +", " ", block).splitlines()
    assert [line.removeprefix("pixio-robot ") for line in lines[1:]] == COMMANDS.splitlines()


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_each_section_of_the_guide_fits_on_a_screen() -> None:
    _, *sections = GUIDE.read_text().split("\n## ")
    assert len(sections) == len(PLUGINS)
    for section in sections:
        assert len(section.splitlines()) <= SCREEN, section.splitlines()[0]
