"""Clocks of a control loop: wall time or simulated time, and a fixed rate that does not catch up missed ticks."""

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that can wait."""

    def now(self) -> float:
        """Return the time [s]."""

    def sleep_until(self, when: float) -> None:
        """Return at `when` [s], or at once if that has passed."""


class WallClock:
    """`time.monotonic`, which also gives the arrival times of frames."""

    def now(self) -> float:
        """Return the time [s]."""
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        """Return at `when` [s], or at once if that has passed."""
        if (wait := when - time.monotonic()) > 0:
            time.sleep(wait)


class SteppedClock:
    """A clock that advances only when something waits: computation takes no time."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the time [s]."""
        return self._now

    def sleep_until(self, when: float) -> None:
        """Set the time to `when` [s], unless that has passed."""
        self._now = max(self._now, when)


class Rate:
    """A fixed rate. A tick that is late by a period or more restarts the schedule; missed ticks are not caught up.

    Args:
        period: time between two ticks [s].
        tolerance: lateness from which a tick counts as a missed deadline [s]; None is a tenth of the period.
    """

    def __init__(self, clock: Clock, period: float, tolerance: float | None = None) -> None:
        self._clock, self.period = clock, period
        self._tolerance = period / 10 if tolerance is None else tolerance
        self._due = clock.now()
        self.ticks = self.misses = self.resyncs = 0  # ticks so far; too late; schedule restarted

    def restart(self) -> None:
        """Restart the schedule: the next tick is now."""
        self._due = self._clock.now()

    @property
    def due(self) -> float:
        """When the next tick is [s]."""
        return self._due

    def tick(self) -> float:
        """Wait for the next tick and return how late it is [s]."""
        self._clock.sleep_until(self._due)
        late = max(0.0, self._clock.now() - self._due)
        self.ticks += 1
        self.misses += late > self._tolerance
        if late >= self.period:
            self.resyncs += 1
            self._due = self._clock.now()
        self._due += self.period
        return late
