"""What worker processes do that time one thing each, in turns: only the one whose turn it is computes."""

import logging
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from .contenders import Spec, import_library, opened
from .floor import Products, Rates

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
    """Return the most memory this process has held [bytes], 0 where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return 0
