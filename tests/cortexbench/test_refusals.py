"""What a benchmark refuses before anything runs, and what it estimates."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pixio_robot
from pixio_robot import plugins
from pixio_robot.cli import compose, run
from pixio_robot.cortexbench import grid, sources
from pixio_robot.cortexbench import run as run_module
from pixio_robot.cortexbench.grid import BenchmarkRequest, Grid, _absolute, make_grid, task_names
from pixio_robot.cortexbench.plan import estimate, seconds_of
from pixio_robot.cortexbench.protocol import BUDGETS, TASKS, protocol_of
from pixio_robot.errors import BadInput, MissingExtra
from pixio_robot.policies import build
from pixio_robot.policies.mlp import MlpConfig, MlpPolicy
from pixio_robot.policies.policy import PolicySpec


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tasks=metaword"], "did you mean 'metaworld'"),
        (["tasks=dmc/walker_wlak"], "did you mean 'dmc/walker_walk'"),
        (["tasks=[toy/reach,atari/pong]"], "there are: all, adroit, dmc, metaworld, trifinger"),
        (["tasks=[]"], "tasks= names nothing"),
        (["tasks=toy/reach", "encoders=[randmo:ti]"], "no encoder 'randmo:ti'"),
        (["tasks=toy/reach", "encoders=[random:ti:0]", "fusions=[maen]"], "did you mean 'mean'"),
        (["tasks=toy/reach", "budget=medium"], "smoke, small, full"),
        (["tasks=toy/reach", "protocol=best"], "both, best_checkpoint, held_out"),
        (["tasks=toy/reach", "encoders=[]"], "encoders=, policies= and fusions= each need"),
        (["tasks=toy/reach", "encoders=[none]", "policies=[mpl]"], "did you mean 'mlp'"),
        (["tasks=toy/reach", "encoders=[none]", "memory=0"], "memory=0.0 GB"),
        (["tasks=toy/reach", "encoders=[none]", "jobs=0"], "jobs=0 is too small"),
        (["tasks=toy/reach", "encoders=[none]", "demos=nowhere"], "no demonstrations (*.hdf5) in demos=nowhere"),
        (["tasks=adroit", "encoders=[none]", "experts=nowhere"], "experts=nowhere is no folder"),
        (["tasks=adroit", "encoders=[none]", "experts=."], "no DAPG policy anywhere in experts=."),
        (["tasks=adroit", "encoders=[none]", "experts={adroit/pen:pen.pickle}"], "no file pen.pickle"),
        (["tasks=dmc", "encoders=[none]", "experts={dmc/walker_walk:x}"], "takes no expert from a file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["benchmark", *words, "out=b"]) == 1
    assert message in capsys.readouterr().err and not Path("b").exists()


def _grid(**keys: Any) -> Grid:
    return make_grid(BenchmarkRequest(**keys), Path("b"))


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "installed", lambda: ["toy/reach"])
    with pytest.raises(MissingExtra, match=r"pip install 'pixio-robot\[dmc\]'"):
        _grid(encoders=["state"], tasks="dmc")
    found = _grid(encoders=["state"], tasks=["dmc/walker_walk", "toy/reach"])
    assert [spec.task for spec, _ in found.runs] == ["toy/reach"] and "pixio-robot[dmc]" in found.skipped[0].why


def test_adroit_without_experts_is_reported_and_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "installed", lambda: list(TASKS))
    found = _grid(encoders=["none", "state"], tasks="all")
    assert {each.task for each in found.skipped} >= {"adroit/pen", "adroit/relocate"}
    why = next(each.why for each in found.skipped if each.task == "adroit/pen")
    assert "experts=FOLDER with pen-v0.pickle" in why and "experts={adroit/pen: FILE" in why
    without = [each for each in found.skipped if each.policy == "none"]
    assert {each.task.split("/")[0] for each in without} == {"dmc"} and "no proprioception" in without[0].why
    assert len(found.runs) == 7 + 12


def test_adroits_experts_are_found_in_a_clone_of_their_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "installed", lambda: list(TASKS))
    monkeypatch.setattr(sources, "load_dapg", lambda path: None)
    file = Path("hand_dapg/dapg/policies/pen-v0.pickle")
    file.parent.mkdir(parents=True)
    file.touch()
    found = _grid(encoders=["state"], tasks="adroit", experts="hand_dapg")
    assert [(spec.task, paths.expert) for spec, paths in found.runs] == [("adroit/pen", str(file.absolute()))]


GUIDE = Path(pixio_robot.__file__).resolve().parent.parent / "docs" / "benchmark.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_the_guides_commands_and_budgets_are_true() -> None:
    text = GUIDE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("pixio-robot benchmark")]
    assert len(lines) >= 4
    for line in lines:
        command = compose("benchmark", shlex.split(line, comments=True)[2:])
        assert task_names(command.tasks) and command.budget in BUDGETS
    for name, budget in BUDGETS.items():
        suites = ("adroit", "dmc", "metaworld", "trifinger")
        wholes = [protocol_of(next(task for task in TASKS if task.startswith(suite))).demos for suite in suites]
        demos = ", ".join(str(budget.demos.get(suite, whole)) for suite, whole in zip(suites, wholes, strict=True))
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        seeds = ", ".join(str(seed) for seed in budget.seeds)
        assert f"| {seeds} | {demos} |" in row and f"| {budget.held_out_episodes} |" in row


def test_an_encoders_file_is_named_in_full_with_its_size(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_file.parent)
    for name in (tiny_file.name, "random:ti:0@128", "pixio-robot-ti"):
        assert _absolute(name) == (str(tiny_file) if name == tiny_file.name else name)
    assert _absolute(f"{tiny_file.name}@32") == f"{tiny_file}@32"


def test_two_files_of_a_task_are_refused(toy_file: Path) -> None:
    Path("mine").mkdir()
    for name in ("a", "b"):
        shutil.copy(toy_file, f"mine/{name}.hdf5")
    with pytest.raises(BadInput, match="are both of toy/reach"):
        _grid(encoders=["none"], tasks="toy/reach", demos="mine")


def test_neighbouring_runs_are_of_different_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "installed", lambda: list(TASKS))
    found = _grid(encoders=["state", "cnn"], tasks=["dmc", "trifinger"], seeds=[1, 2])
    order = [spec.task for spec, _ in found.runs]
    assert len(order) == 28 and all(len(set(order[at : at + 7])) == 7 for at in range(0, 28, 7))
    assert task_names("all") == list(TASKS)


def test_an_estimate_runs_and_writes_nothing(tiny_file: Path) -> None:
    found = _grid(encoders=[str(tiny_file), "none", "expert"], tasks="toy/reach")
    rows = dict(estimate(found, 2, 1, Path("b")))
    assert rows["runs"] == "3" and "all, 2 jobs of 1 threads" in rows and not Path("b").exists()
    costly = _grid(encoders=[str(tiny_file), "none"], tasks="toy/reach", budget="full")
    assert sum(seconds_of(costly.runs, costly.encoders)) > 10 * sum(seconds_of(found.runs[:2], found.encoders))


def test_the_command_prints_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "tasks=toy/reach", "encoders=[none]", "plan=true", "out=b"]) == 0
    assert "memory of the largest run" in capsys.readouterr().out and not Path("b").exists()


class OnlyImages(MlpPolicy):
    """A policy from another package that needs an encoder."""

    @dataclass
    class Config(MlpConfig):
        name: str = "only-images"

    def __init__(self, config: Any, spec: PolicySpec) -> None:
        if not spec.tokens:
            raise BadInput("only-images needs an encoder")
        super().__init__(config, spec)


def test_any_installed_policy_is_a_row(monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    found = plugins.find_plugin

    def installed(group: str, name: str) -> Any:
        return OnlyImages if name == "only-images" else found(group, name)

    for module in (grid, run_module, build):
        monkeypatch.setattr(module, "find_plugin", installed)
    policies = ["mlp", "only-images"]
    made = _grid(encoders=[str(tiny_file), "none", "expert"], tasks="toy/reach", policies=policies, horizon=4)
    methods = [str(spec.method).removeprefix(str(tiny_file)) for spec, _ in made.runs]
    assert methods == [", mean", ", only-images, mean", "none", "expert"]
    assert [(each.policy, each.why) for each in made.skipped] == [("none, only-images", "only-images needs an encoder")]
    design = made.runs[1][0].design("fp32")
    assert (design.label, design.config.fusion, design.horizon) == ("only-images", "mean", 4)
