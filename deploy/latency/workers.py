"""Processes that time one thing each, in turns: only the one whose turn it is computes."""

import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType
from typing import Any, NamedTuple

from ...errors import PixioError, WorkerLost
from .contenders import Spec, import_library, opened
from .floor import Products, Rates

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WARM_UP = 2  # calls after the first


class Call(NamedTuple):
    """One call."""

    wall: float  # [s]
    cpu: float  # time of all threads of the process [s]


class Start(NamedTuple):
    """What a program cost before it ran at its own speed."""

    load: Call  # from its files to the first call; importing its library is not counted
    first: Call  # the first call
    size: int  # of its files or weights [bytes]


class Worker:
    """A process that holds one program; use as a context manager.

    Args:
        job: run in the process; gets a connection.
        argument: what it gets besides.
        threads: CPU threads of the process.
    """

    def __init__(self, job: Callable[[Connection, Any], None], argument: Any, threads: int) -> None:
        self._job, self._argument, self._threads = job, argument, threads

    def __enter__(self) -> "Worker":
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, str(self._threads)))
        try:
            self._process = context.Process(target=_guarded, args=(self._job, theirs, self._argument), daemon=True)
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()
        self.start = self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def turn(self, calls: int) -> Any:
        """Let it compute, and return what it says."""
        self._pipe.send(calls)
        return self._answer()

    def _answer(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerLost("a process that was timed ended, perhaps for want of memory") from error
        if isinstance(found, PixioError):
            raise found
        if isinstance(found, str):
            raise WorkerLost(f"a process that was timed failed:\n{found}")
        return found


def _guarded(job: Callable[[Connection, Any], None], pipe: Connection, argument: Any) -> None:
    try:
        job(pipe, argument)
    except (EOFError, KeyboardInterrupt, ConnectionError):
        pass
    except PixioError as error:
        pipe.send(error)
    except Exception:
        pipe.send(traceback.format_exc(limit=-4))


def time_contender(pipe: Connection, spec: Spec) -> None:
    """Load and warm up one contender, then run it as often as is said; answers (calls, peak memory [bytes])."""
    import_library(spec)
    logging.getLogger("pixio_robot").setLevel(logging.ERROR)  # what it says, the parent has said
    (call, size), load = timed(lambda: opened(spec))
    _, first = timed(call)
    pipe.send(Start(load, first, size))
    for _ in range(_WARM_UP):
        call()
    while True:
        times = [timed(call)[1] for _ in range(pipe.recv())]
        pipe.send((times, peak_memory()))


def timed(call: Callable[[], Any]) -> tuple[Any, Call]:
    """Return what a function returns, and what that took."""
    began, busy = perf_counter(), process_time()
    value = call()
    return value, Call(perf_counter() - began, process_time() - busy)


def time_products(pipe: Connection, argument: tuple[Products, tuple[str, ...], str]) -> None:
    """Measure rates of products; answers the best so far."""
    rates = Rates(*argument)
    pipe.send(None)
    while True:
        rates.turn(pipe.recv())
        pipe.send(rates.best)


def peak_memory() -> int:
    """Return the most memory this process has held [bytes], 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return 0
