"""The benchmark's tables: rows of words and numbers, from finished runs."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..metrics import Mean
from .protocol import BEST_CHECKPOINT, BOTH, COLUMNS, HELD_OUT, NAMES, SUITES
from .published import ROWS
from .results import Results
from .run import EXPERT, Method

Table = list[dict[str, Any]]
NONE = "–"  # noqa: RUF001
_USED = 0.01  # a token counts as used if the action error rises by more without it, as a share


def main_table(results: Results, protocol: str) -> Table:
    """Return the table of suites: every method in each column of the protocol, then the published rows.

    A suite has a number when all of its requested tasks have run. The mean, and published numbers of a suite,
    stand where all tasks of CortexBench have run.
    """
    rows = []
    suites = _suites(results)
    for method in results.methods:
        for column in (HELD_OUT, BEST_CHECKPOINT):
            if protocol not in (column, BOTH) or (method.encoder == EXPERT and column != HELD_OUT):
                continue
            row = {"policy": str(method), "protocol": COLUMNS[column]}
            row |= {_headed(suite, tasks): _suite(results, tasks, method, column) for suite, tasks in suites.items()}
            if set(SUITES) <= set(suites):
                row["mean"] = _overall(results, method, column)
            rows.append(row)
    headings = {suite: _headed(suite, tasks) for suite, tasks in suites.items()}
    comparable = [suite for suite in SUITES if suite in suites and headings[suite] == NAMES[suite]]
    if rows and comparable:
        for each in ROWS:
            row = {"policy": f"{each.name} {each.backbone}", "protocol": "published"}
            for suite, heading in headings.items():
                row[heading] = f"{getattr(each, suite):.1f}" if suite in comparable else NONE
            if set(SUITES) <= set(suites):
                row["mean"] = f"{each.mean:.1f}"
            rows.append(row)
    return rows


def _suites(results: Results) -> dict[str, list[str]]:
    """Return the tasks of each suite that have run, in CortexBench's order."""
    found: dict[str, list[str]] = {}
    for suite in NAMES:
        if tasks := [task for task in results.tasks if task.startswith(f"{suite}/")]:
            found[suite] = tasks
    return found


def _headed(suite: str, tasks: Sequence[str]) -> str:
    """Return a suite's heading; it names the tasks where they are not exactly CortexBench's."""
    whole = {f"{suite}/{name}" for name in SUITES.get(suite, ())}
    if not whole or set(tasks) == whole:
        return NAMES[suite]
    return f"{NAMES[suite]} ({', '.join(task.split('/')[1] for task in tasks)})"


def _suite(results: Results, tasks: Sequence[str], method: Method, column: str) -> str:
    if column == HELD_OUT:
        score = results.suite_score(tasks, method)
        return NONE if score is None else str(score)
    best = results.best_checkpoint(tasks, method)
    return NONE if best is None else _spread(*best)


def _overall(results: Results, method: Method, column: str) -> str:
    if column == HELD_OUT:
        score = results.overall(method)
        return NONE if score is None else str(score)
    means = [results.best_checkpoint([f"{suite}/{name}" for name in names], method) for suite, names in SUITES.items()]
    whole = [each[0] for each in means if each is not None]
    return f"{sum(whole) / len(whole):.1f}" if len(whole) == len(means) else NONE


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.1f} ± {deviation:.1f}" if deviation else f"{mean:.1f}"


def task_table(results: Results) -> Table:
    """Return a row for each task and method: both columns, and how many seeds and episodes they rest on."""
    rows = []
    for task in results.tasks:
        for method in results.methods:
            runs = results.runs(task, method)
            score = results.task_score(task, method)
            if not runs:
                continue
            rate, best = results.rate(task, method), results.best_checkpoint([task], method)
            final = [each.eval_scores[-1] for each in runs if each.eval_scores]
            rows.append(
                {
                    "task": task,
                    "policy": str(method),
                    "held out": NONE if score is None else str(rate or score),
                    "per seed": ", ".join(f"{each.mean:.0f}" for each in runs if each.scores) or NONE,
                    "best checkpoint": NONE if best is None else _spread(*best),
                    "final checkpoint, same episodes": f"{sum(final) / len(final):.1f}" if final else NONE,
                    "seeds": len(runs),
                    "episodes": sum(len(each.scores) for each in runs),
                    "demonstrations": runs[0].about["demos"],
                    "weights": runs[0].about["weights"],
                }
            )
    return rows


def comparison_table(results: Results) -> Table:
    """Return a row for every two methods and suite."""
    return [
        {
            "first": str(each.first),
            "second": str(each.second),
            "on": "all tasks both ran" if each.suite == "all" else NAMES[each.suite],
            "tasks": each.tasks,
            "first minus second": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*each.difference),
            "wins, losses": f"{each.wins}, {each.losses}",
            "p": f"{each.p:.2g}",
            "verdict": each.verdict,
        }
        for each in results.comparisons()
    ]


def token_table(results: Results) -> Table:
    """Return, for each task and method with class tokens, by how much the action error rises without each [%].

    A method whose error rises by less than 1 % without any one of them uses none.
    """
    rows = []
    for task in results.tasks:
        for method in results.methods:
            found = [each.about["tokens"] for each in results.runs(task, method) if each.about.get("tokens")]
            if found:
                means = [sum(values) / len(found) for values in zip(*found, strict=True)]
                most = max(range(len(means)), key=means.__getitem__)
                row: dict[str, Any] = {"task": task, "policy": str(method)}
                row |= {f"{place + 1}": f"{100 * value:+.1f}" for place, value in enumerate(means)}
                rows.append(row | {"most used": f"token {most + 1}" if means[most] >= _USED else "none"})
    return rows


def cost_table(results: Results) -> Table:
    """Return what each method took, summed over tasks and seeds [min], and the shares of evaluation."""
    rows = []
    for method in results.methods:
        runs = results.every_run(method)
        row: dict[str, Any] = {"policy": str(method), "runs": len(runs)}
        for stage in ("demonstrations", "encode", "train", "evaluate"):
            row[f"{stage} [min]"] = f"{sum(_spent(each.about, stage) for each in runs) / 60:.1f}"
        for part in ("physics", "rendering", "encoding", "policy"):
            spent = [each.about["stages"].get("evaluate", {}).get("spent", {}).get(part, 0.0) for each in runs]
            row[f"evaluate: {part}"] = f"{sum(spent) / 60:.1f}" if method.encoder != EXPERT else NONE
        row["peak memory of a run [MB]"] = max(each.about["peak_memory_mb"] for each in runs)
        rows.append(row)
    return rows


def _spent(about: dict[str, Any], stage: str) -> float:
    """Return the seconds of a stage; 0 where another run did it and this one waited."""
    entry = about["stages"].get(stage, {})
    return float(entry["seconds"]) if entry.get("spent") else 0.0


def setting_table(results: Results) -> Table:
    """Return how each method was trained in each suite, which must stand beside every number."""
    rows = []
    for method in results.methods:
        for suite, tasks in _suites(results).items():
            runs = [each for task in tasks for each in results.runs(task, method)]
            if not runs or method.encoder == EXPERT:
                continue
            learning, about = runs[0].spec.learning, [each.about for each in runs]
            training, steps, is_mlp = learning.training, learning.observation.steps, method.policy == "mlp"
            pixels = about[0].get("preprocessing")
            rows.append(
                {
                    "policy": str(method),
                    "suite": NAMES[suite],
                    "fusion": method.fusion or NONE,
                    "frames": f"{learning.policy.frames} of {steps}" if is_mlp and steps > 1 else str(steps),
                    "image [px]": _each(each["request"]["image_size"] for each in about),
                    "encoder input": NONE
                    if pixels is None
                    else f"{pixels['resize']} to {pixels['size'][0]}x{pixels['size'][1]}, {pixels['interpolation']}",
                    "render": _each(each["request"]["render"] for each in about),
                    "episode steps": _each(each["request"]["horizon"] for each in about),
                    "network": "mlp " + "-".join(map(str, learning.policy.layers)) if is_mlp else method.policy,
                    "horizon": learning.horizon,
                    "optimiser": f"{training.optimizer} {training.lr:g}, batch {training.batch}",
                    "epochs": _each(each.spec.learning.training.epochs for each in runs),
                    "evaluations": _each(len(each["eval_epochs"]) for each in about),
                }
            )
    return rows


def _each(values: Iterable[Any]) -> str:
    """Return the different values there are."""
    return ", ".join(dict.fromkeys(map(str, values)))


def strips(results: Results) -> list[dict[str, Any]]:
    """Return, for each task and suite, scores with intervals and a dot for each seed, as the report draws them."""
    groups = [(NAMES[suite], tasks) for suite, tasks in _suites(results).items() if len(tasks) > 1]
    found = []
    for title, tasks in [*groups, *((task, [task]) for task in results.tasks)]:
        rows = []
        for method in results.methods:
            score = results.task_score(tasks[0], method) if len(tasks) == 1 else results.suite_score(tasks, method)
            if score is not None:
                rows.append(_strip(str(method), score, _seed_means(results, tasks, method)))
        if rows:
            found.append({"title": title, "rows": rows})
    return found


def _strip(name: str, score: Mean, seeds: list[float]) -> dict[str, Any]:
    return {"name": name, "value": score.value, "low": score.low, "high": score.high, "dots": seeds}


def _seed_means(results: Results, tasks: Sequence[str], method: Method) -> list[float]:
    by_seed: dict[int, list[float]] = {}
    for task in tasks:
        for each in results.runs(task, method):
            by_seed.setdefault(each.spec.seed, []).append(each.mean)
    return [sum(values) / len(values) for values in by_seed.values() if len(values) == len(tasks)]
