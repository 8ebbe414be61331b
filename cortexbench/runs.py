"""``pixio-robot benchmark``: from what was asked to cells, from finished cells to tables and a report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..files import replacing
from ..jobs.launch import JobSpec, ResourceBudget, run_jobs
from ..progress import console
from ..report.page import write_report
from ..run_folder import environment, write_json
from .cell import EXPERT, describe, folder_of
from .commands import Benchmark
from .grid import Grid, grouped, make_grid
from .plan import Plan, make_plan, memory_of, rough_costs, work_of
from .protocol import TASKS
from .published import CAVEATS
from .results import Results, read_outcome
from .tables import (
    comparison_table,
    cost_table,
    main_table,
    setting_table,
    strips,
    task_table,
    token_table,
    write_tables,
)


@dataclass
class BenchmarkReport:
    """What a benchmark came to."""

    out: Path
    result: dict[str, Any]  # also in result.json
    failures: dict[str, str]  # by the cell's folder


def folder(command: Benchmark) -> Path:
    """Return the benchmark's folder."""
    return Path(command.out or f"runs/benchmark-{command.budget}")


def run_plan(command: Benchmark) -> Plan:
    """Say what a benchmark would cost, from short measurements."""
    root = folder(command)
    jobs = command.jobs or ResourceBudget.of(replace(command, engine="local").launch()).jobs
    return make_plan(make_grid(command, root), jobs, command.threads, root)


def run_benchmark(command: Benchmark) -> BenchmarkReport:
    """Run the cells that are not finished and write tables and report of all that are.

    Raises:
        Stopped: after SIGTERM or Ctrl-C; the report has what was finished.
    """
    launch = command.launch()
    ResourceBudget.of(launch)  # which refuses wrong settings before any work
    root = folder(command)
    grid = make_grid(command, root)
    with replacing(root / "config.yaml") as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.structured(command)))
    write_json(root / "environment.json", environment())
    for each in grouped(grid.skipped):
        console().print(f"not run: {each.task}, {each.policy}: {each.why}", soft_wrap=True, markup=False)
    work = work_of(grid.cells, lambda cell: rough_costs(cell, grid.visions.get(cell.encoder)))
    specs = []
    for (cell, places), seconds in zip(grid.cells, work, strict=True):
        if not (folder_of(cell, root) / "result.json").is_file():
            need = memory_of(cell, grid.visions.get(cell.encoder), command.threads)
            specs.append(JobSpec(describe(cell, places), need, seconds))
    if len(specs) < len(grid.cells):
        console().print(f"{len(grid.cells) - len(specs)} of {len(grid.cells)} cells are finished already")
    failures: dict[str, str] = {}
    try:
        failures = run_jobs(specs, launch, "pixio_robot.cortexbench", root, console())
    finally:
        result = _write(command, grid, root, failures)
    return BenchmarkReport(root, result, failures)


def _write(command: Benchmark, grid: Grid, root: Path, failures: dict[str, str]) -> dict[str, Any]:
    """Write ``result.json``, the tables and ``report.html``."""
    outcomes = [outcome for cell, _ in grid.cells if (outcome := read_outcome(cell, root)) is not None]
    results = Results(outcomes)
    exported = {
        "cortexbench": main_table(results, command.protocol),
        "tasks": task_table(results),
        "comparisons": comparison_table(results),
        "tokens": token_table(results),
        "settings": setting_table(results),
        "cost": cost_table(results),
    }
    missing = [{"task": each.task, "policy": each.policy, "why": each.why} for each in grouped(grid.skipped)]
    missing += [{"task": "", "policy": name, "why": f"failed: {why}"} for name, why in failures.items()]
    result: dict[str, Any] = {
        "title": f"CortexBench · {command.budget}",
        "facts": {
            "protocol": command.protocol,
            "budget": command.budget,
            "cells": f"{len(outcomes)} of {len(grid.cells)} finished",
            "seeds": ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell, _ in grid.cells)),
        },
        "notes": notes(command, results, len(grid.cells) - len(outcomes)),
        "tables": {
            "CortexBench": exported["cortexbench"],
            "Not run": missing,
            "Policies against each other, on common episodes": exported["comparisons"],
            "Tasks": exported["tasks"],
            "Class tokens: rise of the held-out action error without each [%]": exported["tokens"],
            "How it was seen and learned": exported["settings"],
            "What it cost": exported["cost"],
        },
        "strips": strips(results),
        "films": _films(results, root),
    }
    write_json(root / "result.json", result)
    write_tables(root, exported)
    write_report(root)
    return result


def notes(command: Benchmark, results: Results, unfinished: int) -> list[str]:
    """Return what a reader must know before trusting the numbers, in plain sentences."""
    cells = [each for task in results.tasks for policy in results.policies for each in results.cells(task, policy)]
    lines = []
    if unfinished:
        lines.append(f"{unfinished} cells are not finished. A suite's score covers the tasks that have run.")
    if command.budget != "full":
        purpose = "It says whether everything runs, not how good anything is."
        if command.budget != "smoke":
            purpose = "Compare its rows with each other only."
        lines.append(
            f"The budget {command.budget!r} has fewer demonstrations, epochs, evaluations and episodes than the "
            f"protocol, and other images. {purpose}"
        )
    lines.append(
        "honest: the policy after the last epoch, on starts that neither training nor any choice has seen, the same "
        "for all. as released: the best of a run's evaluations on the same starts, biased upwards; ± is over seeds."
    )
    lines.append(
        "Intervals are 95 %: Wilson's for a task's successes over all seeds, else bootstrap over seeds and starts. "
        "With one seed they know nothing of training's chance. p values are not corrected for their number."
    )
    if any(each.about["scale"] != 1 for each in cells):
        lines.append("Episodes of the Control Suite are cut; its score is then the mean reward of a step, in percent.")
    if any(each.cell.encoder == EXPERT for each in cells):
        lines.append(
            "The expert is the task's own for demonstrations; it knows the state: an upper bound, as is 'state'."
        )
    if any(each.about["weights"] == "random" for each in cells):
        lines.append("Encoders called random have learned nothing: their rows say what a task gives away.")
    if any(each.about.get("tokens") for each in cells):
        lines.append(
            "Class tokens: in the trained policy a token is replaced by its mean over training frames. The rise of the "
            "action error on held-out demonstrations says what this policy leans on, not what one trained without the "
            "token would lose, and not how success changes."
        )
    if set(TASKS) & set(results.tasks):
        lines += CAVEATS
    return lines


def _films(results: Results, root: Path) -> list[dict[str, str]]:
    """Return a video a task: the first policy's that sees, a success where there is one."""
    found = []
    for task in results.tasks:
        seen = [
            (not row.success_last, row, each)
            for policy in results.policies
            for each in results.cells(task, policy)
            for row in each.rows
            if row.video
        ]
        mine = [entry for entry in seen if entry[2].policy == seen[0][2].policy]
        if mine:
            _, row, each = min(mine, key=lambda entry: entry[0])
            score = each.scores[row.seed, row.start]
            path = each.folder / "honest" / row.video
            found.append(
                {
                    "title": f"{task}: {each.policy}",
                    "file": str(path.relative_to(root)),
                    "caption": f"Seed {row.seed}, {row.length} steps, score {score:.0f} of 100.",
                }
            )
    return found
