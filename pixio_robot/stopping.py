"""Graceful stopping: SIGTERM (schedulers), SIGHUP (lost terminal) and Ctrl-C set a flag that a loop checks."""

import signal
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from .errors import Stopped

ECHO = 1.0  # [s] a repeated signal within it is the same request: launchers and schedulers both send it


class Stopping:
    """Context in which the first SIGTERM, SIGINT or SIGHUP only sets `signal`; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal = 0  # the signal received; 0 for none
        self._at = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self.signal != 0

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if number in self._before or signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup ignores a lost terminal
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._at = number, monotonic()
        elif monotonic() - self._at > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def stopped(self, step: int, steps: int) -> Stopped:
        """Return the exception that ends a run after `step` of `steps`."""
        number = self.signal or signal.SIGTERM  # another process received it
        name = signal.Signals(number).name
        return Stopped(f"stopped by {name} after step {step} of {steps}; the same command resumes there", number)
