"""Two ways of doing the same work, timed in turns, so that whatever else the machine does falls on both."""

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from textwrap import fill
from time import perf_counter
from typing import NamedTuple, TypeVar

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")

COLUMNS = ("case", "ours", "theirs", "ratio", "quartiles", "pairs")


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
    columns: tuple[str, ...] = COLUMNS
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()  # paragraphs under the table


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes [s]."""
    began = perf_counter()
    work()
    return perf_counter() - began


def in_turns(ours: Callable[[], Ours], theirs: Callable[[], Theirs], pairs: int) -> tuple[list[Ours], list[Theirs]]:
    """Run both once unseen, then `pairs` times in turns; return what each gave."""
    ours(), theirs()
    results = [(ours(), theirs()) for _ in range(pairs)]
    return [ours for ours, _ in results], [theirs for _, theirs in results]


def compare(what: str, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare times of a unit of work [s], pair by pair.

    >>> compare("sleep", [1.0, 1.0, 2.0], [2.0, 3.0, 2.0])
    Comparison(what='sleep', ours=1.0, theirs=2.0, ratio=2.0, low=1.5, high=2.5, pairs=3)
    """
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return Comparison(what, median(ours), median(theirs), middle, low, high, len(ratios))


def milliseconds(time: float) -> str:
    """Write a time [s] in milliseconds.

    >>> milliseconds(0.0123)
    '12.3 ms'
    """
    return f"{1e3 * time:.3g} ms" if time < 1 else f"{1e3 * time:.0f} ms"


def per_second(time: float) -> str:
    """Write the time of a unit of work [s] as a rate.

    >>> per_second(0.004)
    '250 /s'
    """
    return f"{1 / time:.3g} /s" if time > 1e-3 else f"{1 / time:.0f} /s"


def cells(comparisons: Sequence[Comparison], show: Callable[[float], str]) -> list[tuple[str, ...]]:
    """Return what stands under `COLUMNS`; `show` writes a time [s]."""
    return [
        (what, show(ours), show(theirs), f"**{ratio:.2f}**", f"{low:.2f} to {high:.2f}", str(pairs))
        for what, ours, theirs, ratio, low, high, pairs in comparisons
    ]


def markdown(section: Section) -> str:
    """Write a section as Markdown."""
    lines = [f"## {section.title}", "", _wrapped(section.how)]
    if section.rows:
        lines += ["", f"| {' | '.join(section.columns)} |", f"|{'---|' * len(section.columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in section.rows]
    for note in section.notes:
        lines += ["", _wrapped(note)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    """Break lines of prose at 100 characters; rows of tables stay."""
    return "\n".join(line if line.startswith("|") else _fill(line) for line in text.splitlines())


def _fill(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return fill(line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
