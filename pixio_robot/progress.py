"""Progress for people: a rich bar a stage on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Bar:
    """One stage under way."""

    def __init__(self, name: str, total: int, rich: RichProgress | None, quiet: bool = False) -> None:
        self._quiet = quiet
        self._name, self._total, self._rich = name, total, rich
        self._done, self._tenth = 0, 0
        self._task: TaskID | None = rich.add_task(name, total=total) if rich else None

    def advance(self, steps: int) -> None:
        """Say that `steps` more are done."""
        self._done += steps
        if self._rich is not None and self._task is not None:
            self._rich.advance(self._task, steps)
            return
        tenth = 10 * self._done // max(self._total, 1)
        if tenth > self._tenth and not self._quiet:  # at most ten lines a stage
            self._tenth = tenth
            print(f"{self._name}: {self._done}/{self._total}", file=sys.stderr, flush=True)


class Progress:
    """Where stages report."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @classmethod
    def silent(cls) -> "Progress":
        """Return one that shows nothing, for all but the first of several processes."""
        return cls(Console(quiet=True))

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Bar]:
        """Open a stage of `total` steps."""
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            with RichProgress(*columns, console=self.console) as rich:
                yield Bar(name, total, rich)
        else:
            yield Bar(name, total, None, self.console.quiet)
