"""What a benchmark refuses before anything runs, and what it plans."""

import shlex
import shutil
from pathlib import Path

import pytest

import pixio_robot
from pixio_robot.cli import compose, run
from pixio_robot.cortexbench import grid as grids
from pixio_robot.cortexbench.commands import Benchmark
from pixio_robot.cortexbench.grid import _absolute, make_grid, task_names
from pixio_robot.cortexbench.plan import Costs, make_plan, work_of
from pixio_robot.cortexbench.protocol import BUDGETS, TASKS, protocol_of
from pixio_robot.errors import BadInput, MissingExtra


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=metaword"], "did you mean 'metaworld'"),
        (["tasks=dmc/walker_wlak"], "did you mean 'dmc/walker_walk'"),
        (["tasks=[toy/reach,atari/pong]"], "there are: all, adroit, dmc, metaworld, trifinger"),
        (["tasks=[]"], "tasks= names nothing"),
        (["tasks=toy/reach", "encoders=[randmo:ti]"], "no encoder 'randmo:ti'"),
        (["tasks=toy/reach", "encoders=[random:ti:0]", "fusions=[maen]"], "did you mean 'mean'"),
        (["tasks=toy/reach", "budget=medium"], "smoke, small, full"),
        (["tasks=toy/reach", "protocol=best"], "both, cortexbench, honest"),
        (["tasks=toy/reach", "encoders=[]"], "encoders= and fusions= each need"),
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
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["benchmark", *words, "out=b"]) == 1
    assert said in capsys.readouterr().err and not Path("b").exists()


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: ["toy/reach"])
    with pytest.raises(MissingExtra, match=r"pip install 'pixio-robot\[dmc\]'"):
        make_grid(Benchmark(encoders=["state"], tasks="dmc"), Path("b"))
    found = make_grid(Benchmark(encoders=["state"], tasks=["dmc/walker_walk", "toy/reach"]), Path("b"))
    assert [cell.task for cell, _ in found.cells] == ["toy/reach"] and "pixio-robot[dmc]" in found.skipped[0].why


def test_adroit_without_experts_is_said_and_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: list(TASKS))
    found = make_grid(Benchmark(encoders=["none", "state"], tasks="all"), Path("b"))
    assert {each.task for each in found.skipped} >= {"adroit/pen", "adroit/relocate"}
    why = next(each.why for each in found.skipped if each.task == "adroit/pen")
    assert "experts=FOLDER with pen-v0.pickle" in why and "experts={adroit/pen: FILE" in why
    blind = [each for each in found.skipped if each.policy == "none"]
    assert {each.task.split("/")[0] for each in blind} == {"dmc"} and "no proprioception" in blind[0].why
    assert len(found.cells) == 7 + 12


def test_adroits_experts_are_found_in_a_clone_of_their_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: list(TASKS))
    monkeypatch.setattr(grids, "load_dapg", lambda path: None)
    file = Path("hand_dapg/dapg/policies/pen-v0.pickle")
    file.parent.mkdir(parents=True)
    file.touch()
    found = make_grid(Benchmark(encoders=["state"], tasks="adroit", experts="hand_dapg"), Path("b"))
    assert [(cell.task, places.expert) for cell, places in found.cells] == [("adroit/pen", str(file.absolute()))]


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
        assert f"| {seeds} | {demos} |" in row and f"| {budget.honest_episodes} |" in row


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
        make_grid(Benchmark(encoders=["none"], tasks="toy/reach", demos="mine"), Path("b"))


def test_neighbouring_cells_are_of_different_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "installed", lambda: list(TASKS))
    found = make_grid(Benchmark(encoders=["state", "cnn"], tasks=["dmc", "trifinger"], seeds=[1, 2]), Path("b"))
    order = [cell.task for cell, _ in found.cells]
    assert len(order) == 28 and all(len(set(order[at : at + 7])) == 7 for at in range(0, 28, 7))
    assert task_names("all") == list(TASKS)


def test_a_plan_measures_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    found = make_grid(Benchmark(encoders=[str(tiny_file), "none", "expert"], tasks="toy/reach"), Path("b"))
    plan = make_plan(found, 2, 1, Path("b"))
    rows = dict(plan.rows)
    assert rows["cells"] == "3" and "all, 2 jobs of 1 threads" in rows and plan.assumptions and not Path("b").exists()
    costly = make_grid(Benchmark(encoders=[str(tiny_file), "none"], tasks="toy/reach", budget="full"), Path("b"))
    assert sum(work_of(costly.cells, lambda _: Costs())) > 10 * sum(work_of(found.cells[:2], lambda _: Costs()))
