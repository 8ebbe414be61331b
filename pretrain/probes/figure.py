"""Figure of a probe run: headlines of all encoders, then tokens, then blocks."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import replacing
from .rows import Row, headlines, lower_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f5fa8", "#c26a1b", "#2f8a5b", "#8a4fa3", "#b23b3b", "#5b6b7b", "#a88a1f", "#3aa0a8")
_PIXELS = "#9aa5b1"  # for references without an encoder


def draw_probes(path: Path, rows: Sequence[Row]) -> None:
    """Write the image.

    Args:
        rows: of one run, each encoder's first row of a probe being its headline.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.encoder for row in rows))
    references = {row.encoder for row in rows if row.weights == "none"}
    names.sort(key=lambda name: name in references)  # last
    labels = dict(zip(names, short_names(sorted(rows, key=lambda row: row.encoder in references)), strict=True))
    encoders = [name for name in names if name not in references]
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(encoders)} | dict.fromkeys(
        references, _PIXELS
    )
    heads = headlines(rows)
    panels = list(dict.fromkeys((row.probe, row.metric) for row in heads if not row.probe.endswith("_baseline")))
    last = {(row.encoder, row.probe): row.layer for row in heads}
    per_token = [row for row in rows if row.probe == "linear" and row.layer == last[row.encoder, row.probe]]
    per_token = per_token if len({row.token for row in per_token if row.encoder != "pixels"}) > 1 else []
    means = {(row.encoder, row.probe): row.token for row in heads}
    per_layer = [row for row in rows if row.probe == "linear" and row.token == means[row.encoder, row.probe]]
    curved = {row.encoder for row in per_layer if row.layer != last[row.encoder, row.probe]}

    columns = min(3, len(panels))
    bands = -(-len(panels) // columns)
    heights = [0.9 + 0.34 * len(names)] * bands + [3.2] * (bool(per_token) + bool(curved))
    figure = Figure(figsize=(11, sum(heights) + 0.3), dpi=110, layout="constrained")
    parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for band in range(bands):
        grid = parts[band].subgridspec(1, columns)
        for column, (probe, metric) in enumerate(panels[band * columns : (band + 1) * columns]):
            axis = figure.add_subplot(grid[column])
            pair = (probe, f"{probe.split('_')[0]}_baseline")
            chosen = {row.encoder: row for row in heads if row.probe in pair and row.metric == metric}
            better = ", lower is better" if lower_is_better(metric) else ""
            _headline(axis, f"{probe}, {metric}{better}", chosen, names, colours)
            axis.set_yticks(range(len(names)), [labels[name] if column == 0 else "" for name in names])
    if per_token:
        axis = figure.add_subplot(parts[bands])
        _tokens(axis, per_token, encoders, colours, labels)
    if curved:
        axis = figure.add_subplot(parts[len(heights) - 1])
        _layers(axis, [row for row in per_layer if row.encoder in curved], colours, labels)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def short_names(rows: Iterable[Row]) -> list[str]:
    """Return a short name of each encoder: the end of its path, or the whole path where ends are equal."""
    weights = {row.encoder: row.weights for row in rows}
    ends = ["/".join(Path(name).parts[-2:]) for name in weights]
    short = [end if ends.count(end) == 1 else name for name, end in zip(weights, ends, strict=True)]
    untrained = [kind == "random" and not name.startswith("random:") for name, kind in weights.items()]
    return [f"{name} (random)" if random else name for name, random in zip(short, untrained, strict=True)]


def _headline(axis: "Axes", title: str, chosen: dict[str, Row], names: Sequence[str], colours: dict[str, str]) -> None:
    for place, name in enumerate(names):
        if (row := chosen.get(name)) is None:
            continue
        axis.plot([row.low, row.high], [place, place], color=colours[name], linewidth=3, alpha=0.45)
        axis.plot(row.value, place, "o", color=colours[name], markersize=7)
        axis.annotate(
            f"{row.value:.3f}", (row.value, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axis.set_ylim(len(names) - 0.5, -0.7)
    axis.margins(x=0.12)
    axis.set_title(title, fontsize=10, loc="left")
    _clean(axis, "x")


def _tokens(
    axis: "Axes", rows: Sequence[Row], encoders: Sequence[str], colours: dict[str, str], labels: dict[str, str]
) -> None:
    tokens = list(dict.fromkeys(row.token for row in rows if row.encoder != "pixels"))
    width = 0.8 / len(encoders)
    for number, name in enumerate(encoders):
        mine = [row for row in rows if row.encoder == name]
        places = [tokens.index(row.token) + (number - (len(encoders) - 1) / 2) * width for row in mine]
        values = [row.value for row in mine]
        lengths = [
            [max(0.0, row.value - row.low) for row in mine],
            [max(0.0, row.high - row.value) for row in mine],
        ]
        axis.bar(places, values, width * 0.9, color=colours[name], alpha=0.75, label=labels[name])
        axis.errorbar(places, values, lengths, fmt="none", ecolor="#333333", elinewidth=1)
    for row in rows:
        if row.encoder == "pixels":
            axis.axhline(row.value, color=_PIXELS, linestyle="--", label="pixels")
    axis.set_xticks(range(len(tokens)), [f"token {token}" if token.isdecimal() else token for token in tokens])
    axis.set_title("linear, accuracy by token", fontsize=10, loc="left")
    _clean(axis, "y")
    _legend(axis)


def _layers(axis: "Axes", rows: Sequence[Row], colours: dict[str, str], labels: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name in dict.fromkeys(row.encoder for row in rows):
        mine = sorted((row for row in rows if row.encoder == name), key=lambda row: row.layer)
        layers = [row.layer for row in mine]
        axis.fill_between(
            layers, [row.low for row in mine], [row.high for row in mine], color=colours[name], alpha=0.15, linewidth=0
        )
        axis.plot(layers, [row.value for row in mine], "o-", color=colours[name], markersize=4, label=labels[name])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("block, counted from 0")
    axis.set_title("linear, accuracy on the mean class token of each block", fontsize=10, loc="left")
    _clean(axis, "y")
    _legend(axis)


def _clean(axis: "Axes", grid: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(axis=grid, color="#e4e8ec")  # type: ignore[arg-type]
    axis.set_axisbelow(True)


def _legend(axis: "Axes") -> None:
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
