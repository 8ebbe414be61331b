"""The commands benchmark and convert."""

from dataclasses import dataclass
from typing import Any

from ..command import Command
from ..engine_schemas import EngineSettings
from ..policies.settings import FUSIONS
from ..settings import MISSING, Hardware, key


@dataclass
class Benchmark(Hardware, EngineSettings):
    """Run CortexBench: tasks, encoders and seeds as independent cells, and the table they give."""

    encoders: list[str] = key(
        ["pixio-robot-ti", "random:ti:0", "none", "cnn", "state", "expert"],
        "policies to compare: encoders, as load_encoder takes them, and the references none (blind), cnn (learns to "
        "see), state (is told), expert",
    )
    tasks: Any = key("all", "all (14 tasks), a suite (adroit, dmc, metaworld, trifinger), SUITE/TASK, or a list")
    seeds: list[int] | None = key(None, "seeds of training; null is the budget's: 100, of full 100, 200 and 300")
    fusions: list[str] = key(["mean"], f"fusions of an encoder's tokens, each a row: {', '.join(FUSIONS)}")
    protocol: str = key("both", "columns: cortexbench (best of all evaluations), honest (last policy), or both")
    budget: str = key("smoke", "how much of it: smoke (does it run), small (two cores, hours), full (as published)")
    precision: str = key("fp32", "auto, fp32, bf16 (autocast)")
    plan: bool = key(False, "only measure and print what it would cost", free=True)
    experts: Any = key(None, "Adroit's experts: folder of DAPG policies, or {adroit/pen: FILE, ...}", free=True)
    demos: str | None = key(None, "folder of demonstrations (*.hdf5) to use where it has a task's", free=True)
    out: str | None = key(None, "folder; null means runs/benchmark-<budget>", free=True)


@dataclass
class Convert:
    """Turn CortexBench's released demonstrations of a task into ours, losing nothing."""

    source: str = key(MISSING, "released archive, its unpacked folder, or the task's pickle in it", free=True)
    task: str = key(MISSING, "task, e.g. metaworld/hammer, dmc/walker_walk, adroit/pen or trifinger/reach_cube")
    demos: int | None = key(
        None, "demonstrations to train on, the first ones; null means CortexBench's number", least=1
    )
    valid: int | None = key(None, "those after them to validate on; null means the rest, for TriFinger 25", least=0)
    splits: str | None = key(None, "TriFinger's JSON of splits, instead of demos and valid")
    out: str | None = key(None, "file to write; null means runs/demos/<task>-released.hdf5", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def _convert(command: Convert) -> int:
    from .released.convert import run_convert

    report = run_convert(command)
    counts = report.demos
    state = "reused" if report.reused else f"{counts['all']} in all"
    print(f"{report.path}: {counts['train']} + {counts['valid']} demonstrations of {command.task}, {state}")
    return 0


def _benchmark(command: Benchmark) -> int:
    from ..report.tables import print_benchmark, print_plan
    from .runs import run_benchmark, run_plan

    if command.plan:
        plan = run_plan(command)
        print_plan(plan.rows, plan.assumptions)
        return 0
    report = run_benchmark(command)
    print_benchmark(report.out, report.result, report.failures)
    return 1 if report.failures else 0


COMMANDS = {
    "convert": Command(Convert, _convert),
    "benchmark": Command(Benchmark, _benchmark),
}
