"""The benchmark's tables: what is compared, as rows of words and numbers, and as CSV, LaTeX and Markdown."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from ..metrics import Mean
from .cell import EXPERT
from .protocol import COLUMNS, NAMES, SUITES
from .published import ROWS
from .results import Policy, Results

Table = list[dict[str, Any]]
NONE = "–"  # noqa: RUF001
_USED = 0.01  # a smaller rise of the action error is not called use


def main_table(results: Results, protocol: str) -> Table:
    """Return the table of suites: our policies in both columns of the protocol, then the published rows.

    A suite is given when all of its tasks asked for have run; the mean, and published rows beside a suite, when all of
    CortexBench's have.
    """
    rows = []
    suites = _suites(results)
    for policy in results.policies:
        for column in ("honest", "cortexbench"):
            if protocol not in (column, COLUMNS[0]) or (policy.encoder == EXPERT and column != "honest"):
                continue
            row = {"policy": str(policy), "protocol": "honest" if column == "honest" else "as released"}
            row |= {_headed(suite, tasks): _suite(results, tasks, policy, column) for suite, tasks in suites.items()}
            if set(SUITES) <= set(suites):
                row["mean"] = _overall(results, policy, column)
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
    """Return a suite's heading, which says so where fewer or other tasks than CortexBench's are meant."""
    whole = {f"{suite}/{name}" for name in SUITES.get(suite, ())}
    if not whole or set(tasks) == whole:
        return NAMES[suite]
    return f"{NAMES[suite]} ({', '.join(task.split('/')[1] for task in tasks)})"


def _suite(results: Results, tasks: Sequence[str], policy: Policy, column: str) -> str:
    if column == "honest":
        score = results.suite_score(tasks, policy)
        return NONE if score is None else str(score)
    best = results.released(tasks, policy)
    return NONE if best is None else _spread(*best)


def _overall(results: Results, policy: Policy, column: str) -> str:
    if column == "honest":
        score = results.overall(policy)
        return NONE if score is None else str(score)
    means = [results.released([f"{suite}/{name}" for name in names], policy) for suite, names in SUITES.items()]
    whole = [each[0] for each in means if each is not None]
    return f"{sum(whole) / len(whole):.1f}" if len(whole) == len(means) else NONE


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.1f} ± {deviation:.1f}" if deviation else f"{mean:.1f}"


def task_table(results: Results) -> Table:
    """Return a row a task and policy: both columns, how far apart they are, and what the number rests on."""
    rows = []
    for task in results.tasks:
        for policy in results.policies:
            cells = results.cells(task, policy)
            score = results.task_score(task, policy)
            if not cells:
                continue
            rate, best = results.rate(task, policy), results.released([task], policy)
            last = [each.released[-1] for each in cells if each.released]
            rows.append(
                {
                    "task": task,
                    "policy": str(policy),
                    "honest": NONE if score is None else str(rate or score),
                    "per seed": ", ".join(f"{each.mean:.0f}" for each in cells if each.scores) or NONE,
                    "released, best": NONE if best is None else _spread(*best),
                    "released, last": f"{sum(last) / len(last):.1f}" if last else NONE,
                    "seeds": len(cells),
                    "episodes": sum(len(each.scores) for each in cells),
                    "demonstrations": cells[0].about["demos"],
                    "weights": cells[0].about["weights"],
                }
            )
    return rows


def comparison_table(results: Results) -> Table:
    """Return a row for every two policies and suite."""
    return [
        {
            "first": str(each.first),
            "second": str(each.second),
            "on": "all tasks both ran" if each.suite == "all" else NAMES[each.suite],
            "tasks": each.tasks,
            "first minus second": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*each.difference),
            "wins, losses": f"{each.wins}, {each.losses}",
            "p": f"{each.p:.2g}",
            "in words": each.verdict,
        }
        for each in results.comparisons()
    ]


def token_table(results: Results) -> Table:
    """Return, for each task and policy with class tokens, by how much the action error rises without each [%].

    A policy whose error rises by less than 1 % without any of them leans on none.
    """
    rows = []
    for task in results.tasks:
        for policy in results.policies:
            found = [each.about["tokens"] for each in results.cells(task, policy) if each.about.get("tokens")]
            if found:
                means = [sum(values) / len(found) for values in zip(*found, strict=True)]
                most = max(range(len(means)), key=means.__getitem__)
                row: dict[str, Any] = {"task": task, "policy": str(policy)}
                row |= {f"{place + 1}": f"{100 * value:+.1f}" for place, value in enumerate(means)}
                rows.append(row | {"most used": f"token {most + 1}" if means[most] >= _USED else "none"})
    return rows


def cost_table(results: Results) -> Table:
    """Return what each policy took, summed over tasks and seeds [min], and how fast evaluation went."""
    rows = []
    for policy in results.policies:
        cells = [each for task in results.tasks for each in results.cells(task, policy)]
        row: dict[str, Any] = {"policy": str(policy), "cells": len(cells)}
        for stage in ("demonstrations", "encode", "train", "evaluate"):
            row[f"{stage} [min]"] = f"{sum(_spent(each.about, stage) for each in cells) / 60:.1f}"
        for part in ("physics", "rendering", "encoding", "policy"):
            spent = [each.about["stages"].get("evaluate", {}).get("spent", {}).get(part, 0.0) for each in cells]
            row[f"of it {part}"] = f"{sum(spent) / 60:.1f}" if policy.encoder != EXPERT else NONE
        row["peak memory of a cell [MB]"] = max(each.about["peak_memory_mb"] for each in cells)
        rows.append(row)
    return rows


def _spent(about: dict[str, Any], stage: str) -> float:
    """Return the seconds of a stage; 0 where another cell did it and this one waited."""
    entry = about["stages"].get(stage, {})
    return float(entry["seconds"]) if entry.get("spent") else 0.0


def setting_table(results: Results) -> Table:
    """Return how each policy of each task saw and learned, which must stand beside every number."""
    rows = []
    for policy in results.policies:
        for suite, tasks in _suites(results).items():
            cells = [each for task in tasks for each in results.cells(task, policy)]
            if not cells or policy.encoder == EXPERT:
                continue
            learning = cells[0].cell.learning
            pixels = cells[0].about.get("preprocessing")
            rows.append(
                {
                    "policy": str(policy),
                    "suite": NAMES[suite],
                    "tokens": f"{policy.fusion} of normed class tokens" if policy.fusion else NONE,
                    "frames": f"{learning.embedding.frames}"
                    + (f" of {learning.embedding.history}" if learning.embedding.frames != "single" else ""),
                    "image [px]": _each(each.about["request"]["image_size"] for each in cells),
                    "for the encoder": NONE
                    if pixels is None
                    else f"{pixels['resize']} to {pixels['size'][0]}x{pixels['size'][1]}, {pixels['interpolation']}",
                    "render": _each(each.about["request"]["render"] for each in cells),
                    "steps": _each(each.about["request"]["horizon"] for each in cells),
                    "head": "-".join(map(str, learning.policy.layers)),
                    "optimiser": f"{learning.policy.optimizer} {learning.policy.lr:g}, batch {learning.policy.batch}",
                    "epochs": _each(each.cell.learning.policy.epochs for each in cells),
                    "evaluations": _each(len(each.about["moments"]) for each in cells),
                }
            )
    return rows


def _each(values: Iterable[Any]) -> str:
    """Return the different values there are."""
    return ", ".join(dict.fromkeys(map(str, values)))


def write_tables(out: Path, tables: dict[str, Table]) -> None:
    """Write ``tables/NAME.csv``, ``.tex`` and ``.md`` of each table with rows; of one without, none stays."""
    for name, rows in tables.items():
        for suffix, text in (("csv", as_csv(rows)), ("tex", as_latex(rows)), ("md", as_markdown(rows))):
            file = out / "tables" / f"{name}.{suffix}"
            if rows:
                with replacing(file) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            else:
                file.unlink(missing_ok=True)


def as_csv(rows: Table) -> str:
    """Return rows as CSV.

    >>> as_csv([{"a": 1, "b": "x, y"}])
    'a,b\\n1,"x, y"\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(rows: Table) -> str:
    """Return rows as a Markdown table.

    >>> print(as_markdown([{"a": 1, "b": "x|y"}]), end="")
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    lines = [list(rows[0]) if rows else []] + [list(row.values()) for row in rows]
    text = ["| " + " | ".join(str(each).replace("|", "\\|") for each in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]]) + "\n"


_ESCAPED = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--"}  # noqa: RUF001


def as_latex(rows: Table) -> str:
    """Return rows as a LaTeX tabular for the package booktabs.

    >>> print(as_latex([{"a_b": "5 %", "c": 1}]), end="")
    \\begin{tabular}{lr}
    \\toprule
    a\\_b & c \\\\
    \\midrule
    5 \\% & 1 \\\\
    \\bottomrule
    \\end{tabular}
    """
    columns = "".join("l" if isinstance(value, str) else "r" for value in (rows[0] if rows else {}).values())
    lines = [list(rows[0]) if rows else []] + [list(row.values()) for row in rows]
    body = [" & ".join("".join(_ESCAPED.get(c, c) for c in str(each)) for each in line) + r" \\" for line in lines]
    top = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule"]
    return "\n".join([*top, *body[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def strips(results: Results) -> list[dict[str, Any]]:
    """Return, for each task and suite, scores with intervals and a dot a seed, as the report draws them."""
    groups = [(NAMES[suite], tasks) for suite, tasks in _suites(results).items() if len(tasks) > 1]
    found = []
    for title, tasks in [*groups, *((task, [task]) for task in results.tasks)]:
        rows = []
        for policy in results.policies:
            score = results.task_score(tasks[0], policy) if len(tasks) == 1 else results.suite_score(tasks, policy)
            if score is not None:
                rows.append(_strip(str(policy), score, _seed_means(results, tasks, policy)))
        if rows:
            found.append({"title": title, "rows": rows})
    return found


def _strip(name: str, score: Mean, seeds: list[float]) -> dict[str, Any]:
    return {"name": name, "value": score.value, "low": score.low, "high": score.high, "dots": seeds}


def _seed_means(results: Results, tasks: Sequence[str], policy: Policy) -> list[float]:
    by_seed: dict[int, list[float]] = {}
    for task in tasks:
        for each in results.cells(task, policy):
            by_seed.setdefault(each.cell.seed, []).append(each.mean)
    return [sum(values) / len(values) for values in by_seed.values() if len(values) == len(tasks)]
