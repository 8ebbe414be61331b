"""Tables that commands print when they end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..metrics import EpisodeRecord, Mean, Rate, success_rate
from .curves import number
from .page import PROPRIO_ONLY


def print_quickstart(out: Path, result: dict[str, Any]) -> None:
    """Print ``result.json`` of quickstart as one table."""
    table = Table(title=result["title"], show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for name, policy in result["policies"].items():
        label = {result["headline"]: "success", PROPRIO_ONLY: "proprioception-only policy"}.get(name, name)
        table.add_row(f"{label}, last step", _rate(policy["last"]))
        table.add_row(f"{label}, any step", _rate(policy["any"]))
        table.add_row(f"{label}, suite's score", str(Mean(**policy["score"])))
    table.add_section()
    weights = " (RANDOM WEIGHTS, not pre-trained)" if result["weights"] == "random" else ""
    table.add_row("encoder", f"{result['encoder']}{weights}")
    tokens = "normed" if result["normed"] else "raw"
    table.add_row("fusion", f"{result['fusion']} of {tokens} tokens, {result['observation_steps']} observation steps")
    table.add_row("render quality", result["render"])
    table.add_section()
    for name, stage in result["stages"].items():
        shares = ", ".join(f"{what} {share:.0%}" for what, share in stage["shares"].items())
        reused = " (reused)" if stage["reused"] else ""
        table.add_row(f"time to {name}", f"{stage['seconds']:.0f} s{reused}  {shares}")
    table.add_row("peak memory", f"{result['peak_memory_mb']} MB")
    table.add_section()
    table.add_row("checkpoint", result["checkpoint"])
    table.add_row("report", str(out / "report.html"))
    _console().print(table)


def print_evaluation(out: Path, row: EpisodeRecord, summary: dict[str, Any]) -> None:
    """Print the success rates of one policy."""
    table = Table(title=f"{row.task} · {row.policy}", show_header=False)
    table.add_row("success, last step", _rate(summary["last"]))
    table.add_row("success, any step", _rate(summary["any"]))
    table.add_row("suite's score, mean of 0 to 100", str(Mean(**summary["score"])))
    table.add_row("encoder", f"{row.encoder}{' (RANDOM WEIGHTS)' if row.weights == 'random' else ''}")
    table.add_row("fusion", row.fusion)
    table.add_row("render quality", row.render)
    table.add_row("report", str(out / "report.html"))
    _console().print(table)


def print_verification(verification: dict[str, Any]) -> None:
    """Print the contents of ``verification.json``."""
    verdict = "passed" if verification["passed"] else "FAILED"
    if not verification.get("closed_loop_shown"):
        verdict += "; closed loop not evaluated"
    table = Table(title=f"verification, {verification['precision']}: {verdict}")
    for column in ("what", "value", "limit", ""):
        table.add_column(column)
    for check in verification["checks"]:
        value, limit = (f"{check[key]:.6g}" for key in ("value", "limit"))
        table.add_row(check["name"], value, limit, "ok" if check["passed"] else "FAILED")
    _console().print(table)
    for words in verification["words"]:
        _console().print(f"- {words}", highlight=False)


def print_plan(rows: Sequence[tuple[str, str]], assumptions: Sequence[str]) -> None:
    """Print the estimated cost of a run and its assumptions."""
    table = Table(title="estimated cost", show_header=False)
    for what, amount in rows:
        table.add_row(what, amount)
    console = _console()
    console.print(table)
    console.print("assumptions:")
    for each in assumptions:
        console.print(f"- {each}")


def print_curation(out: Path, result: dict[str, Any]) -> None:
    """Print the result of ``curate``: the numbers, then one row for each source."""
    table = Table(title="curation", show_header=False)
    for name, value in result["numbers"].items():
        table.add_row(escape(name), number(value))
    table.add_row("weights", str(out / "weights.parquet"))
    table.add_row("report", str(out / "report.html"))
    console = _console()
    console.print(table)
    rows = result["tables"]["Sources"]
    sources = Table(*map(escape, rows[0]), title="sources")
    for row in rows:
        sources.add_row(*(value if isinstance(value, str) else number(value) for value in row.values()))
    console.print(sources)


def print_benchmark(out: Path, result: dict[str, Any], failures: dict[str, str]) -> None:
    """Print the table of suites, what did not run, and the path of the report."""
    console = _console()
    for title in ("CortexBench", "Not run"):
        if rows := result["tables"][title]:
            _print_rows(console, title, rows)
    for note in result["notes"]:
        console.print(f"- {escape(note)}")
    for name, why in failures.items():
        console.print(f"FAILED {name}: {why}", soft_wrap=True, markup=False)
    if (out / "report.html").is_file():
        console.print(
            f"{out / 'report.html'}: tasks, comparisons, videos; as CSV, LaTeX and Markdown in {out / 'tables'}",
            soft_wrap=True,
        )
    if failures:
        console.print("run the same command again to retry what failed", soft_wrap=True)


def _print_rows(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*(escape(value) if isinstance(value, str) else number(value) for value in row.values()))
    console.print(table)


def print_probes(out: Path, result: dict[str, Any]) -> None:
    """Print the result of ``probe``: main numbers, and paired tests if there are several encoders."""
    console = _console()
    for title, rows in result["tables"].items():
        if rows and title != "All":
            _print_rows(console, title.lower(), rows)
    for note in result["notes"]:
        console.print(f"- {escape(note)}")
    console.print(f"{out / 'report.html'}: all tokens and layers; rows in {out / 'probe.jsonl'}", soft_wrap=True)


def _rate(values: dict[str, float]) -> str:
    return str(Rate(int(values["successes"]), int(values["trials"]), values["low"], values["high"]))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)


def print_run(report: Any) -> None:
    """Print the result of ``run``; `report` is a `robots.session.RunReport`."""
    table = Table(title="run", show_header=False)
    if report.rows:
        table.add_row("success, last step", str(success_rate(row.success_last for row in report.rows)))
    table.add_row("episodes ended by", ", ".join(f"{count} {why}" for why, count in report.endings.most_common()))
    for name, value in report.summary.items():
        table.add_row(name, number(value))
    if report.demos is not None:
        table.add_row("recording", str(report.demos))
    table.add_row("report", str(report.out / "report.html"))
    if report.stopped:
        table.add_section()
        table.add_row("EMERGENCY STOP", report.stopped)
    _console().print(table)
