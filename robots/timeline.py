"""Summaries of a run's ticks: numbers, handled faults, and a plot of latency, frame age and events over time."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from .faults import HANDLING, Fault
from .step_record import COUNTED

_EPISODES = 12  # shown in an image, at most
_COLOURS = {
    "hold": "#e0a800",
    "stop": "#b00020",
    "fault": "#7a3fb0",
    "limit": "#0b6a72",
}
_STOPS = ("watchdog", "estop", "out_of_control")
_HOLDS = ("no_action", "nan", "expired")


def read_ticks(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``ticks.jsonl``; a line cut short by a crash is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary_of(ticks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers of a run: ticks, missed deadlines, holds, percentiles of times [ms]."""
    late = np.array([tick["late"] for tick in ticks] or [0.0]) * 1000
    numbers = {
        "ticks": float(len(ticks)),
        "ticks in which the robot held": float(sum(tick["state"] == "hold" for tick in ticks)),
        "ticks in which limits changed the action": float(sum(bool(_changed(tick)) for tick in ticks)),
        "lateness of a tick, 50 % [ms]": float(np.percentile(late, 50)),
        "lateness of a tick, 99 % [ms]": float(np.percentile(late, 99)),
        "lateness of a tick, worst [ms]": float(late.max()),
    }
    numbers |= {what: float(sum(tick.get("counts", {}).get(what, 0) for tick in ticks)) for what in COUNTED}
    for key, name in (("seconds", "inference"), ("age", "age of the frames behind an action")):
        values = np.array([tick[key] for tick in ticks if tick[key] is not None]) * 1000
        for at in (50, 95, 99) if values.size else ():
            numbers[f"{name}, {at} % [ms]"] = float(np.percentile(values, at))
    return numbers


def _changed(tick: dict[str, Any]) -> set[str]:
    return set(tick["reasons"]) & {"range", "position", "step", "velocity", "workspace", "robot"}


def fault_table(faults: Sequence[Fault], ticks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per planned fault: what it must lead to, and what followed it in its episode."""
    rows = []
    for fault in faults:
        mine = [tick for tick in ticks if tick["episode"] == fault.episode]
        started = [tick for tick in mine if f"fault {fault.kind}" in tick["events"] and tick["at"] >= fault.at]
        after = [tick for tick in mine if started and tick["at"] >= started[0]["at"]]
        held = _first_hold(after)
        rows.append(
            {
                "fault": fault.kind,
                "episode": fault.episode,
                "at [s]": fault.at,
                "lasts [s]": fault.seconds,
                "must lead to": HANDLING[fault.kind].partition(": ")[2],
                "led to": _led_to(fault, after, held) if started else "it never happened",
            }
        )
    return rows


def _first_hold(ticks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first ticks in a row in which the robot held."""
    waiting = dropwhile(lambda tick: tick["state"] != "hold", ticks)
    return list(takewhile(lambda tick: tick["state"] == "hold", waiting))


def _led_to(fault: Fault, after: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]]) -> str:
    seen = Counter(word for tick in held for word in (*tick["reasons"], *tick["events"]) if word in (*_HOLDS, *_STOPS))
    words = [f"{word} in {count} ticks" for word, count in seen.items()]
    if seen.keys() & set(_STOPS):
        words.append("the episode was stopped")
    elif held and held[-1] is not after[-1]:
        back = after[after.index(held[-1]) + 1]
        words.append(f"the policy resumed after {back['at'] - held[0]['at']:.2f} s")
    return "; ".join(words) or "nothing: the fault had no effect"


def write_timelines(out: Path, ticks: Sequence[dict[str, Any]], max_age: float) -> list[dict[str, str]]:
    """Draw the episodes of a run, several in an image; return captions and files for the report."""
    episodes = sorted({tick["episode"] for tick in ticks})
    marked = [number for number in episodes if any(_notable(tick) for tick in ticks if tick["episode"] == number)]
    rest = [number for number in episodes if number not in marked]
    shown = sorted([*marked, *rest][:_EPISODES])
    if not shown:
        return []
    path = out / "timeline.png"
    _draw(path, [tick for tick in ticks if tick["episode"] in shown], shown, max_age)
    left = len(episodes) - len(shown)
    caption = "Inference, ages of frames, actions and events over time, episode by episode"
    return [{"caption": caption + (f" ({left} uneventful episodes left out)" if left else ""), "file": path.name}]


def _notable(tick: dict[str, Any]) -> bool:
    return tick["state"] != "run" or any(each.startswith("fault") or each in _STOPS for each in tick["events"])


def _draw(path: Path, ticks: Sequence[dict[str, Any]], episodes: Sequence[int], max_age: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shift, borders, begin = {}, [], 0.0
    for number in episodes:
        shift[number] = begin
        borders.append(begin)
        begin += max(tick["at"] for tick in ticks if tick["episode"] == number) + 0.3
    times = np.array([tick["at"] + shift[tick["episode"]] for tick in ticks])
    figure = Figure(figsize=(14, 8.4), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=[1.1, 1.1, 0.9, 1.1])
    timing, ages, sent, events = axes
    inference = [np.nan if tick["seconds"] is None else 1000 * tick["seconds"] for tick in ticks]  # not in every tick
    timing.plot(times, inference, ".", ms=4, color="#0b6a72", label="inference")
    _line(timing, times, ticks, "late", "tick later than due", "#888888")
    timing.set_ylabel("[ms]")
    _line(ages, times, ticks, "age", "frames behind the action", "#0b6a72")
    _line(ages, times, ticks, "latest_age", "latest frames", "#b06a2a")
    ages.axhline(1000 * max_age, color="#b00020", lw=1, ls="--", label="max_age")
    ages.set_ylabel("age [ms]")
    asked = np.array([np.abs(tick["asked"]).max() if tick["asked"] else np.nan for tick in ticks])
    sent.plot(times, asked, ".", ms=3, color="#b06a2a", label="asked by the policy")
    largest = [np.abs(tick["sent"]).max() if tick["sent"] else np.nan for tick in ticks]
    gaps = np.flatnonzero(np.diff([tick["episode"] for tick in ticks])) + 1
    sent.plot(np.insert(times, gaps, np.nan), np.insert(largest, gaps, np.nan), lw=1, color="#0b6a72", label="sent")
    sent.set_ylabel("largest\naction")
    for axis in (timing, ages, sent):
        axis.legend(loc="upper right", fontsize=8, ncols=3, framealpha=0.9)
        axis.grid(axis="y", alpha=0.25)
    rows = ["limits", "hold", "fault", "stop"]
    for row, name, colour, there in (
        (0, "limits", _COLOURS["limit"], lambda tick: bool(_changed(tick))),
        (1, "hold", _COLOURS["hold"], lambda tick: tick["state"] == "hold"),
        (2, "fault", _COLOURS["fault"], lambda tick: any(each.startswith("fault") for each in tick["events"])),
        (3, "stop", _COLOURS["stop"], lambda tick: bool({*tick["events"], *tick["reasons"]} & set(_STOPS))),
    ):
        hits = [time for time, tick in zip(times, ticks, strict=True) if there(tick)]
        events.plot(hits, [row] * len(hits), "|", ms=15, mew=2, color=colour, label=name)
    for time, tick in zip(times, ticks, strict=True):
        for word in tick["events"]:
            if word.startswith("fault"):
                events.annotate(word.removeprefix("fault "), (time, 2), (4, 5), textcoords="offset points", fontsize=8)
        if stop := {*tick["events"], *tick["reasons"]} & set(_STOPS):
            events.annotate(sorted(stop)[0], (time, 3), (4, 3), textcoords="offset points", fontsize=8)
    events.set_yticks(range(4), rows)
    events.set_ylim(-0.6, 3.8)
    events.set_xlabel("time, episodes side by side [s]")
    for number, at in zip(episodes, borders, strict=True):
        for axis in axes:
            axis.axvline(at - 0.15, color="#bbbbbb", lw=0.8)
        timing.annotate(
            f"episode {number}",
            (at, 1),
            (2, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
        )
    sent.set_ylim(-0.05, 1.3)
    events.set_xlim(-0.2, begin + 0.04 * (begin + 1))
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _line(axis: Any, times: np.ndarray, ticks: Sequence[dict[str, Any]], key: str, label: str, colour: str) -> None:
    values = [np.nan if tick[key] is None else 1000 * tick[key] for tick in ticks]
    gaps = np.flatnonzero(np.diff([tick["episode"] for tick in ticks])) + 1  # no line from one episode to the next
    axis.plot(np.insert(times, gaps, np.nan), np.insert(values, gaps, np.nan), "-", lw=1.2, color=colour, label=label)
