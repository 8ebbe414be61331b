"""The table that ends `pixio-robot latency`."""

from pathlib import Path
from typing import Any


def lines(out: Path, result: dict[str, Any]) -> list[str]:
    """Return what is printed, Markdown that can be pasted into a log; times in milliseconds."""
    name, threads = result["encoder"], result["threads"]
    on = "GPU" if result["device"] == "cuda" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    tokens = f", {result['tokens']} tokens, {result['flops'] / 1e9:.1f} GFLOP" if "tokens" in result else ""
    measure = {"cpu": "CPU", "wall": "wall"}[result["measure"]]
    head = [
        f"{name}, batch 1, {on}{tokens}; {result['rounds']} rounds of {result['calls']} calls in turns. Times in ms.",
        "",
        f"| program | CPU p50 (p25, p75) | wall p50, p95, p99 | {measure} to load, first call | file MB | peak MB "
        "| times as fast | of its floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [_row(row, result["measure"]) for row in result["rows"]]
    floors = [
        f"Floor {precision}: {1000 * each['seconds']:.1f} ms at {each['rate'] / 1e9:.0f} GFLOP/s ({each['with']}"
        f"{'; ' + ', '.join(each['units']) if each['units'] else '' if precision == 'fp32' else '; no units for it'})."
        for precision, each in result["floor"].items()
    ]
    ends = []
    for what, each in result["targets"].items():
        if isinstance(each, dict):
            said = each.get("why") or ("reached" if each["met"] else "NOT reached")
            ends.append(f"{what.replace('_', ' ')}: {each['is']:.2f} of {each['aim']:g} aimed at, {said}.")
    if "best" in result["targets"]:
        ends.insert(0, f"Best bundle: {result['targets']['best']}.")
    return [*head, *rows, "", *floors, *ends, f"{out / 'result.json'}"]


def _row(row: dict[str, Any], measure: str) -> str:
    cpu, wall = ({at: 1000 * value for at, value in row[name].items()} for name in ("cpu", "wall"))
    fast = "-"
    if "times_as_fast" in row:
        low, middle, high = row["times_as_fast"]
        fast = f"{middle:.2f} ({low:.2f}, {high:.2f})"
    share = f"{row['share_of_floor']:.0%}" if "share_of_floor" in row else "-"
    return (
        f"| {row['label']} | {cpu['p50']:.1f} ({cpu['p25']:.1f}, {cpu['p75']:.1f}) "
        f"| {wall['p50']:.1f}, {wall['p95']:.1f}, {wall['p99']:.1f} "
        f"| {1000 * row['load'][measure]:.0f}, {1000 * row['first'][measure]:.0f} | {row['size'] / 1e6:.0f} "
        f"| {row['peak_memory'] / 1e6:.0f} | {fast} | {share} |"
    )
