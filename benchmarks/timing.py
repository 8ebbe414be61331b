"""Two ways of doing the same work, timed in turns, so that whatever else the machine does falls on both."""

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import NamedTuple


class Comparison(NamedTuple):
    """Ours against theirs on the same work."""

    what: str
    ours: float  # median time of a unit of work [s]
    theirs: float  # the same [s]
    ratio: float  # median over pairs of theirs / ours; above 1 we are faster
    low: float  # quartiles of that ratio
    high: float
    pairs: int


class Section(NamedTuple):
    """What one benchmark has to say."""

    title: str
    how: str  # what is compared and how, one paragraph
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = []


COLUMNS = ("case", "ours", "theirs", "ratio", "quartiles", "pairs")


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes [s]."""
    began = perf_counter()
    work()
    return perf_counter() - began


def interleaved(what: str, ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> Comparison:
    """Time both once unseen, then in turns.

    Args:
        what: name of the case.
        ours: does its work and returns the time of a unit of it [s].
        theirs: the same.
        pairs: how many times each runs; at least 2.
    """
    ours(), theirs()
    times = [(ours(), theirs()) for _ in range(pairs)]
    ratios = [their / our for our, their in times]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return Comparison(
        what, median(our for our, _ in times), median(their for _, their in times), middle, low, high, pairs
    )


def milliseconds(time: float) -> str:
    """Write a time [s] in milliseconds.

    >>> milliseconds(0.0123)
    '12.3 ms'
    """
    return f"{1e3 * time:.3g} ms" if time < 1 else f"{1e3 * time:.0f} ms"


def per_second(time: float) -> str:
    """Write a time for one unit of work [s] as a rate.

    >>> per_second(0.004)
    '250 /s'
    """
    return f"{1 / time:.3g} /s" if time > 0.01 else f"{1 / time:.0f} /s"


def rows(comparisons: Sequence[Comparison], show: Callable[[float], str]) -> list[tuple[str, ...]]:
    """Return the cells under `COLUMNS`; `show` writes a time [s]."""
    return [
        (
            each.what,
            show(each.ours),
            show(each.theirs),
            f"**{each.ratio:.2f}**",
            f"{each.low:.2f} to {each.high:.2f}",
            str(each.pairs),
        )
        for each in comparisons
    ]


def markdown(section: Section) -> str:
    """Write a section as Markdown."""
    lines = [f"## {section.title}", "", section.how, ""]
    lines += [f"| {' | '.join(section.columns)} |", f"|{'---|' * len(section.columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in section.rows]
    for note in section.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"
