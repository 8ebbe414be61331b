"""The commands benchmark and convert.

``run_<command>`` does a command and prints the result; the function of the command's name returns it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import Command
from ..engine_schemas import EngineSettings
from ..policies.settings import FUSIONS
from ..settings import MISSING, Hardware, key

if TYPE_CHECKING:
    from .grid import BenchmarkRequest
    from .released.convert import ConvertReport


@dataclass
class Benchmark(Hardware, EngineSettings):
    """Run CortexBench: every task, encoder and seed is an independent run, and all of them give one table."""

    encoders: list[str] = key(
        ["pixio-robot-ti", "random:ti:0", "none", "cnn", "state", "expert"],
        "rows of the table: encoders, as load_encoder takes them, and the baselines none (proprioception only), cnn "
        "(small CNN trained end to end), state (privileged simulator state), expert",
    )
    tasks: Any = key("all", "all (14 tasks), a suite (adroit, dmc, metaworld, trifinger), SUITE/TASK, or a list")
    seeds: list[int] | None = key(None, "seeds of training; null is the budget's: 100, of full 100, 200 and 300")
    policies: list[str] = key(["mlp"], "installed policies, each a row; mlp has CortexBench's architecture")
    fusions: list[str] = key(["mean"], f"fusions of an encoder's tokens, each a row: {', '.join(FUSIONS)}")
    horizon: int = key(1, "actions predicted at once: of this step and of those that follow", least=1)
    protocol: str = key(
        "both",
        "columns: best_checkpoint (best of all evaluations, as published), held_out (final checkpoint on held-out "
        "episodes), or both",
    )
    budget: str = key("smoke", "share of the protocol: smoke (does it run), small (two cores, hours), full")
    precision: str = key("fp32", "auto, fp32, bf16 (autocast)")
    plan: bool = key(False, "only print a rough estimate of time, memory and disk", free=True)
    experts: Any = key(None, "Adroit's experts: folder of DAPG policies, or {adroit/pen: FILE, ...}", free=True)
    demos: str | None = key(None, "folder of demonstrations (*.hdf5), used for the tasks that it has", free=True)
    out: str | None = key(None, "folder; null means runs/benchmark-<budget>", free=True)


@dataclass
class Convert:
    """Convert CortexBench's released demonstrations of a task to our format, without loss."""

    source: str = key(MISSING, "released archive, its unpacked folder, or the task's pickle in it", free=True)
    task: str = key(MISSING, "task, e.g. metaworld/hammer, dmc/walker_walk, adroit/pen or trifinger/reach_cube")
    demos: int | None = key(
        None, "demonstrations to train on, the first ones; null means CortexBench's number", least=1
    )
    valid: int | None = key(
        None, "validation demonstrations, the next ones; null is the rest, for TriFinger 25", least=0
    )
    splits: str | None = key(None, "TriFinger's JSON of splits, instead of demos and valid")
    out: str | None = key(None, "file to write; null means runs/demos/<task>-released.hdf5", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class BenchmarkReport:
    """What a benchmark came to."""

    out: Path
    result: dict[str, Any]  # also in result.json
    failures: dict[str, str]  # by the run's folder


def _request(settings: Benchmark) -> "BenchmarkRequest":
    from .grid import BenchmarkRequest

    return BenchmarkRequest(
        tasks=settings.tasks,
        encoders=settings.encoders,
        policies=settings.policies,
        fusions=settings.fusions,
        seeds=settings.seeds,
        budget=settings.budget,
        protocol=settings.protocol,
        precision=settings.precision,
        horizon=settings.horizon,
        demos=settings.demos,
        experts=settings.experts,
        device=settings.device,
    )


def _folder(settings: Benchmark) -> Path:
    return Path(settings.out or f"runs/benchmark-{settings.budget}")


def benchmark(settings: Benchmark) -> BenchmarkReport:
    """Do the runs that are not finished, and write tables and a report of all that are.

    Raises:
        Stopped: after SIGTERM or Ctrl-C; the report has what was finished.
    """
    from omegaconf import OmegaConf

    from ..files import replacing
    from ..jobs.launch import JobSpec, ResourceBudget, run_jobs
    from ..progress import console
    from ..run_folder import environment, write_json
    from .grid import make_grid
    from .plan import memory_of, seconds_of
    from .run import is_finished, write_run
    from .sources import group_skipped
    from .summary import write_summary

    launch, root, request = settings.launch(), _folder(settings), _request(settings)
    ResourceBudget.of(launch)  # refuses wrong settings before any work
    grid = make_grid(request, root)
    with replacing(root / "config.yaml") as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(settings)))
    write_json(root / "environment.json", environment())
    for each in group_skipped(grid.skipped):
        console().print(f"not run: {each.task}, {each.policy}: {each.why}", soft_wrap=True, markup=False)
    specs = []
    for (spec, paths), seconds in zip(grid.runs, seconds_of(grid.runs, grid.encoders), strict=True):
        if not is_finished(spec, root):
            memory = memory_of(spec, grid.encoders.get(spec.encoder), settings.threads)
            specs.append(JobSpec(write_run(spec, paths), memory, seconds))
    if len(specs) < len(grid.runs):
        console().print(f"{len(grid.runs) - len(specs)} of {len(grid.runs)} runs are finished already")
    failures: dict[str, str] = {}
    try:
        failures = run_jobs(specs, launch, "pixio_robot.cortexbench", root, console())
    finally:
        result = write_summary(request, grid, root, failures)
    return BenchmarkReport(root, result, failures)


def plan(settings: Benchmark) -> list[tuple[str, str]]:
    """Return a rough estimate of what a benchmark takes."""
    from ..jobs.launch import ResourceBudget
    from .grid import make_grid
    from .plan import estimate

    root = _folder(settings)
    jobs = settings.jobs or ResourceBudget.of(replace(settings.launch(), engine="local")).jobs
    return estimate(make_grid(_request(settings), root), jobs, settings.threads, root)


def run_benchmark(settings: Benchmark) -> int:
    """Do a benchmark and print its table, or print an estimate of it."""
    from ..report.tables import print_benchmark, print_plan

    if settings.plan:
        from .plan import ASSUMPTIONS

        print_plan(plan(settings), ASSUMPTIONS)
        return 0
    report = benchmark(settings)
    print_benchmark(report.out, report.result, report.failures)
    return 1 if report.failures else 0


def convert(settings: Convert) -> "ConvertReport":
    """Convert one task's released demonstrations."""
    from .released.convert import SplitRequest
    from .released.convert import convert as convert_released

    out = Path(settings.out or f"runs/demos/{settings.task.replace('/', '-')}-released.hdf5")
    splits = SplitRequest(settings.demos, settings.valid, settings.splits)
    return convert_released(settings.task, Path(settings.source), out, splits)


def run_convert(settings: Convert) -> int:
    """Convert one task's released demonstrations, and print how many."""
    report = convert(settings)
    counts = report.demos
    state = "reused" if report.reused else f"{counts['all']} in all"
    print(f"{report.path}: {counts['train']} + {counts['valid']} demonstrations of {settings.task}, {state}")
    return 0


COMMANDS = {
    "convert": Command(Convert, run_convert),
    "benchmark": Command(Benchmark, run_benchmark),
}
