"""What a benchmark leaves behind: ``result.json``, the tables and ``report.html``, about all runs that are finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report.page import write_report
from ..run_folder import write_json
from .grid import BenchmarkRequest, Grid
from .protocol import HELD_OUT, TASKS
from .published import CAVEATS
from .results import Results, read_result
from .run import EXPERT
from .sources import group_skipped
from .table_files import write_tables
from .tables import comparison_table, cost_table, main_table, setting_table, strips, task_table, token_table


def write_summary(request: BenchmarkRequest, grid: Grid, root: Path, failures: Mapping[str, str]) -> dict[str, Any]:
    """Write ``result.json``, the tables and ``report.html``; return what ``result.json`` holds.

    Args:
        root: folder of the benchmark.
        failures: why runs failed, by their folder's name.
    """
    finished = [found for spec, _ in grid.runs if (found := read_result(spec, root)) is not None]
    results = Results(finished)
    tables = {
        "cortexbench": main_table(results, request.protocol),
        "tasks": task_table(results),
        "comparisons": comparison_table(results),
        "tokens": token_table(results),
        "settings": setting_table(results),
        "cost": cost_table(results),
    }
    not_run = [{"task": each.task, "policy": each.policy, "why": each.why} for each in group_skipped(grid.skipped)]
    not_run += [{"task": "", "policy": name, "why": f"failed: {why}"} for name, why in failures.items()]
    result: dict[str, Any] = {
        "title": f"CortexBench · {request.budget}",
        "facts": {
            "protocol": request.protocol,
            "budget": request.budget,
            "runs": f"{len(finished)} of {len(grid.runs)} finished",
            "seeds": ", ".join(str(seed) for seed in dict.fromkeys(spec.seed for spec, _ in grid.runs)),
        },
        "notes": notes(request.budget, results, len(grid.runs) - len(finished)),
        "tables": {
            "CortexBench": tables["cortexbench"],
            "Not run": not_run,
            "Pairwise comparison on common episodes": tables["comparisons"],
            "Tasks": tables["tasks"],
            "Class tokens: rise of the validation action error without each [%]": tables["tokens"],
            "Training setup": tables["settings"],
            "Cost": tables["cost"],
        },
        "strips": strips(results),
        "films": _videos(results, root),
    }
    write_json(root / "result.json", result)
    write_tables(root, tables)
    write_report(root)
    return result


def notes(budget: str, results: Results, unfinished: int) -> list[str]:
    """Return what a reader must know before using the numbers.

    Args:
        unfinished: number of runs.
    """
    runs = results.every_run()
    lines = []
    if unfinished:
        lines.append(f"{unfinished} runs are not finished. A suite's score covers the tasks that have run.")
    if budget != "full":
        purpose = "It shows whether everything runs, not how good a policy is."
        if budget != "smoke":
            purpose = "Compare its rows with each other only."
        lines.append(
            f"The budget {budget!r} has fewer demonstrations, epochs, evaluations and episodes than the protocol, and "
            f"other images. {purpose}"
        )
    lines.append(
        "Final checkpoint, held out: the policy after the last epoch, on episodes that were used neither for training "
        "nor for any choice, the same for all policies. Best checkpoint (as published): the best of a run's "
        "evaluations on the same episodes, which is biased upwards; ± is over seeds."
    )
    lines.append(
        "Intervals are 95 %: Wilson's for a task's successes over all seeds, else bootstrap over seeds and episodes. "
        "With one seed they do not include the variance of training. p values are not corrected for multiple tests."
    )
    if any(each.about["scale"] != 1 for each in runs):
        lines.append(
            "Episodes of the Control Suite are shorter than the task's own; the score is the mean reward of a step, in "
            "percent."
        )
    if any(each.spec.encoder == EXPERT for each in runs):
        lines.append(
            "The expert is the task's own, which records the demonstrations. It uses the privileged state, as 'state' "
            "does: both are upper bounds."
        )
    if any(each.about["weights"] == "random" for each in runs):
        lines.append("Encoders called random are untrained: their rows show what a task needs no training for.")
    if any(each.about.get("tokens") for each in runs):
        lines.append(
            "Class tokens: in the trained policy a token is replaced by its mean over training frames. The rise of the "
            "action error on validation demonstrations shows what this policy relies on. It does not show what a "
            "policy trained without the token would lose, nor how success changes."
        )
    if set(TASKS) & set(results.tasks):
        lines += CAVEATS
    return lines


def _videos(results: Results, root: Path) -> list[dict[str, str]]:
    """Return a video for each task: of the first method with videos, a success where there is one."""
    found = []
    for task in results.tasks:
        filmed = [
            (not row.success_last, row, each)
            for method in results.methods
            for each in results.runs(task, method)
            for row in each.rows
            if row.video
        ]
        of_first = [entry for entry in filmed if entry[2].spec.method == filmed[0][2].spec.method]
        if of_first:
            _, row, each = min(of_first, key=lambda entry: entry[0])
            path, score = each.folder / HELD_OUT / row.video, each.scores[row.seed, row.start]
            found.append(
                {
                    "title": f"{task}: {each.spec.method}",
                    "file": str(path.relative_to(root)),
                    "caption": f"Seed {row.seed}, {row.length} steps, score {score:.0f} of 100.",
                }
            )
    return found
