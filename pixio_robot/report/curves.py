"""Learning curves as inline SVG in the colours of the page; the same rows give the same bytes."""

import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from ..errors import DataError

LOG_RANGE = 20  # a curve that spans more than this factor gets a logarithmic axis
CHART_SIZE = 420, 250  # [px] of a curve at 1:1: narrow, so that its labels stay readable on a phone
# matplotlib draws with the keys; the page replaces them by its light or dark colours.
COLOURS = {"#010101": "var(--accent)", "#020202": "var(--ink)", "#030303": "var(--muted)", "#040404": "var(--line)"}


class Curve(NamedTuple):
    """One logged value of one policy."""

    policy: str
    tag: str
    steps: list[float]
    values: list[float]
    colour: str  # a key of COLOURS
    dashed: bool
    band: tuple[list[float], list[float]] | None = None  # its interval, if ``<tag>_low`` and ``<tag>_high`` are logged

    @property
    def style(self) -> Markup:
        """CSS of the line in the legend."""
        return Markup(f"stroke:{COLOURS[self.colour]};stroke-dasharray:{'5 3' if self.dashed else 'none'}")


class Panel(NamedTuple):
    """The curves that share one pair of axes."""

    title: str
    svg: Markup
    curves: list[Curve]


def curve_panels(path: Path, headline: str) -> list[Panel]:
    """Draw the logged values; ``train/loss`` and ``valid/loss`` of all policies share a panel."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    logged: dict[tuple[str, str], dict[float, float]] = {}
    for place, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # truncated by a crash
            continue
        try:
            row = json.loads(line)
            step, policy = float(row["step"]), str(row.get("policy", headline))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} line {place} is not a JSON object with a step ({error!r})") from error
        for tag, value in row.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if tag not in ("step", "epoch", "policy") and numeric and math.isfinite(value):
                logged.setdefault((policy, tag), {})[step] = value  # a resumed run logs some steps twice
    names = sorted(dict.fromkeys(policy for policy, _ in logged), key=lambda name: name != headline)
    panels: dict[str, list[Curve]] = {}
    for (policy, tag), values in sorted(logged.items(), key=lambda item: names.index(item[0][0])):
        if tag.endswith(("_low", "_high")) and (policy, tag.rpartition("_")[0]) in logged:
            continue
        colour = list(COLOURS)[names.index(policy) % 3]
        steps = sorted(values)
        curve = Curve(policy, tag, steps, [values[step] for step in steps], colour, tag.startswith("train/"))
        bounds = [logged.get((policy, f"{tag}_{side}"), {}) for side in ("low", "high")]
        if all(bound.keys() == values.keys() for bound in bounds):
            curve = curve._replace(band=([bounds[0][step] for step in steps], [bounds[1][step] for step in steps]))
        panel = panels.setdefault(tag.rpartition("/")[2], [])
        if len(names) == 1 and not curve.dashed:  # only colour distinguishes the curves of one learner
            curve = curve._replace(colour=list(COLOURS)[sum(not each.dashed for each in panel) % 3])
        panel.append(curve)
    return [Panel(title, _draw(title, curves), curves) for title, curves in panels.items()]


def _draw(title: str, curves: list[Curve]) -> Markup:
    """Return the curves as an inline SVG in the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    _, ink, muted, line = COLOURS
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlib style must not change the page
        matplotlib.rc("svg", fonttype="none", hashsalt=title)
        matplotlib.rc("font", family="DejaVu Sans", size=12)
        figure = Figure((CHART_SIZE[0] / 72, CHART_SIZE[1] / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        values = [value for curve in curves for value in curve.values]
        if min(values) > 0 and max(values) > LOG_RANGE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for curve in reversed(curves):  # the headline is drawn last, on top
            dashes, marker = ((0, (4, 2.5)) if curve.dashed else "-"), ("o" if len(curve.steps) == 1 else "")
            if curve.band is not None:
                axes.fill_between(curve.steps, *curve.band, color=curve.colour, alpha=0.15, lw=0)
            axes.plot(curve.steps, curve.values, color=curve.colour, lw=1.8, ls=dashes, marker=marker)
        axes.set_xlabel("step", color=muted)
        axes.tick_params(color=line, labelcolor=ink, length=3)
        axes.grid(axis="y", color=line, lw=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(line)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' id="\w+_\d+"', "", svg[svg.index("<svg") :])  # ids such as "figure_1" would repeat in the page
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    label = escape(f"{title} over steps: " + "; ".join(map(_curve_words, curves)))
    opening = f'<svg viewBox="0 0 {CHART_SIZE[0]} {CHART_SIZE[1]}" role="img" aria-label="{label}">'
    return Markup(opening + svg[svg.index(">") + 1 :])


def _curve_words(curve: Curve) -> str:
    return f"{curve.policy} {curve.tag} from {number(curve.values[0])} to {number(curve.values[-1])}"


def number(value: float) -> str:
    """Format a number with three significant digits, or as an integer.

    >>> number(0.012345), number(12.345), number(4321.4), number(3.0)
    ('0.0123', '12.3', '4,321', '3')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
