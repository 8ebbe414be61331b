"""Progress: a rich bar for each stage on a terminal, plain lines elsewhere.

Code reports progress with `stage`. `showing` and `silent` choose where it is shown; the default is standard error. The
choice is a context variable. Threads start with an empty context, so a thread that makes no choice uses the main
thread's current one.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Bar:
    """The progress of one stage."""

    def __init__(self, name: str, total: int, console: Console, rich: RichProgress | None) -> None:
        self._name, self._total, self._console, self._rich = name, total, console, rich
        self._done, self._tenth = 0, 0
        self.task: TaskID | None = rich.add_task(name, total=total) if rich else None

    def advance(self, steps: int) -> None:
        """Report that `steps` more are done."""
        self._done += steps
        if self._rich is not None and self.task is not None:
            self._rich.advance(self.task, steps)
            return
        tenth = 10 * self._done // max(self._total, 1)
        if tenth > self._tenth and not self._console.quiet:  # at most ten lines for a stage
            self._tenth = tenth
            print(f"{self._name}: {self._done}/{self._total}", file=self._console.file, flush=True)


class Progress:
    """Shows stages on one console; any thread may open one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._rich: RichProgress | None = None  # shared by all open stages: a console has one live display
        self._open = 0

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Bar]:
        """Open a stage of `total` steps."""
        if self.console.is_terminal and not self.console.quiet:
            bar = self._add(name, total)
            try:
                yield bar
            finally:
                self._end(bar)
        else:
            yield Bar(name, total, self.console, None)

    def _add(self, name: str, total: int) -> Bar:
        with self._lock:
            if self._rich is None:
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                )
                self._rich = RichProgress(*columns, console=self.console)
                self._rich.start()
            self._open += 1
            return Bar(name, total, self.console, self._rich)

    def _end(self, bar: Bar) -> None:
        with self._lock:
            self._open -= 1
            if self._rich is None or bar.task is None:
                return
            if self._open:  # its line stays above the active ones
                [row] = [task for task in self._rich.tasks if task.id == bar.task]
                self.console.print(self._rich.make_tasks_table([row]))
                self._rich.remove_task(bar.task)
            else:
                self._rich.stop()
                self._rich = None


_chosen: ContextVar[Progress | None] = ContextVar("_chosen", default=None)
_of_main_thread: Progress | None = None  # what threads with an empty context use


@cache
def _standard_error() -> Progress:
    return Progress(Console(stderr=True))


def _current() -> Progress:
    return _chosen.get() or _of_main_thread or _standard_error()


def stage(name: str, total: int) -> AbstractContextManager[Bar]:
    """Open a stage of `total` steps on the current display; advance the bar that it returns."""
    return _current().stage(name, total)


def console() -> Console:
    """Return the console of the current display, for lines beside the bars."""
    return _current().console


@contextmanager
def showing(console: Console) -> Iterator[None]:
    """Show the stages opened inside the context on a console."""
    global _of_main_thread
    in_main = threading.current_thread() is threading.main_thread()
    before, display = _of_main_thread, Progress(console)
    token = _chosen.set(display)
    if in_main:
        _of_main_thread = display
    try:
        yield
    finally:
        _chosen.reset(token)
        if in_main:
            _of_main_thread = before


def silent() -> AbstractContextManager[None]:
    """Hide the stages opened inside the context, as in all but the first of several processes."""
    return showing(Console(quiet=True))
