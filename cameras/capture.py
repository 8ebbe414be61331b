"""A camera read by a thread of its own: one slot with the newest frame, counters for whatever goes wrong.

A control loop asks for the latest frame no older than it can bear; it never waits for the camera or gets an old one.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import CameraError, EndOfStream
from .camera import Camera, CameraSpec, check_age
from .counters import Counters, Gate
from .frame import Frame, metric

log = logging.getLogger(__name__)

_BACK_OFF = (0.05, 5.0)  # first and longest pause between attempts to reconnect [s]
_JOIN = 2.0  # longest wait for the thread to end [s]


class _Buffer:
    """Arrays of one frame, allocated once and used again."""

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self._arrays: dict[str, np.ndarray] = {}

    def fill(self, frame: Frame) -> None:
        """Copy a frame in."""
        rgb, depth, valid = (self._copy(name, getattr(frame, name)) for name in ("rgb", "depth", "valid"))
        self.frame = replace(frame, rgb=rgb, depth=depth, valid=valid)

    def _copy(self, name: str, values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        mine = self._arrays.get(name)
        if mine is None or mine.shape != values.shape or mine.dtype != values.dtype:
            mine = self._arrays[name] = np.empty_like(values, order="C")
        np.copyto(mine, values)
        return mine


class Capture(Camera):
    """Reads a camera in a thread and keeps the newest frame.

    The arrays of a frame stay as they are until the next `latest` or `read`; copy what must last longer. One thread
    asks. A camera that fails is closed and opened again, with growing pauses; a recording that ends is over.

    Args:
        camera: the source; open or not.
        max_skew: colour and depth further apart are rejected [s]; None is half a frame period, or 25 ms.
        timeout: longest wait of `read` [s].
        back_off: first and longest pause between attempts to reconnect [s].
    """

    def __init__(
        self,
        camera: Camera,
        max_skew: float | None = None,
        timeout: float = 2.0,
        back_off: tuple[float, float] = _BACK_OFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._camera, self._timeout, self._back_off, self._clock = camera, timeout, back_off, clock
        self._max_skew = max_skew
        self._buffers = [_Buffer() for _ in range(3)]  # newest, lent, being written
        self._newest: _Buffer | None = None
        self._lent: _Buffer | None = None
        self._seen = True  # whether the newest was handed out
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._over: Exception | None = None
        self._thread: threading.Thread | None = None
        self._counters = Counters()
        self._gate: Gate | None = None  # from `open` on

    def open(self) -> None:
        if self._thread is not None:
            return
        self._camera.open()
        self._spec = self._camera.spec
        self._gate = Gate(self._counters, self._spec, self._max_skew)
        self._closing.clear()
        self._over = self._newest = self._lent = None
        self._seen = True
        self._thread = threading.Thread(target=self._run, name=f"camera {self._spec.name}", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> CameraSpec:
        if self._spec is None:
            raise CameraError("the camera is not open")
        return replace(self._spec, live=True)

    def counters(self) -> Counters:
        """Return a copy of the counters."""
        with self._changed:
            counted = self._counters
            return replace(counted, skews=counted.skews.copy(), ages=counted.ages.copy())

    def latest(self, max_age: float) -> Frame:
        """Return the newest frame at once; before the first one has come, wait for it.

        Raises:
            StaleFrame: if it is older than `max_age` [s]; counted.
            EndOfStream: if a recording is over and its last frame was seen.
            CameraError: if no frame came within the timeout, or the camera's driver broke.
        """
        with self._changed:
            self._wait(lambda: self._newest is not None)
            if self._over is not None and self._seen:
                raise self._over
            assert self._newest is not None and self._newest.frame is not None
            now = self._clock()
            try:
                check_age(self._newest.frame, max_age, now)
            except CameraError:
                self._counters.stale += 1
                raise
            return self._hand_out(now)

    def read(self) -> Frame:
        """Return the next frame that was not handed out yet.

        Raises:
            EndOfStream: if a recording is over.
            CameraError: if none comes within the timeout, or the camera's driver broke.
        """
        with self._changed:
            self._wait(lambda: not self._seen)
            if self._seen and self._over is not None:
                raise self._over
            return self._hand_out(self._clock())

    def fresh(self, timeout: float) -> Frame | None:
        """Return the newest frame if it was not handed out yet, or None where none comes within `timeout` [s].

        Raises:
            EndOfStream: if a recording is over.
            CameraError: if the camera's driver broke.
        """
        with self._changed:
            if self._thread is None:
                raise CameraError("the camera is not open")
            self._changed.wait_for(lambda: not self._seen or self._over is not None, timeout)
            if not self._seen:
                return self._hand_out(self._clock())
            if self._over is not None:
                raise self._over
            return None

    def _wait(self, there: Callable[[], bool]) -> None:
        if self._thread is None:
            raise CameraError("the camera is not open")
        self._changed.wait_for(lambda: there() or self._over is not None, self._timeout)
        if not there() and self._over is None:
            raise CameraError(f"{self.spec.name} gave no frame for {self._timeout:.1f} s")

    def _hand_out(self, now: float) -> Frame:
        self._lent = self._newest
        self._seen = True
        assert self._lent is not None and self._lent.frame is not None
        self._counters.ages.append(self._lent.frame.age(now))
        return self._lent.frame

    def close(self) -> None:
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._camera.close()  # ends a read that waits
            thread.join(_JOIN)
            if thread.is_alive():
                log.warning("the driver of %s does not return; its thread is left behind", self.spec.name)
        else:
            self._camera.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                frame = self._camera.read()
            except EndOfStream as error:
                faults = self.counters().faults()
                self._end(EndOfStream(f"{error}; of them {faults}") if faults else error)
                return
            except CameraError as error:
                if self._closing.is_set():
                    return
                if not self._reconnect(error):
                    return
            except Exception as error:  # the driver broke; whoever asks next is told
                self._end(error)
                return
            else:
                self._take(frame)

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._over = error
            self._changed.notify_all()

    def _reconnect(self, error: CameraError) -> bool:
        """Open the camera again, with growing pauses; return False when closing."""
        log.warning("%s; connecting again", error)
        with self._changed:
            self._counters.failures += 1
        pause, longest = self._back_off
        self._close_quietly()
        while not self._closing.wait(pause):
            try:
                self._camera.open()
            except CameraError:
                self._close_quietly()
                pause = min(2 * pause, longest)
                continue
            except Exception as broken:
                self._end(broken)
                return False
            with self._changed:
                self._counters.reconnects += 1
                assert self._gate is not None
                self._gate.begin_anew()
            return True
        return False

    def _close_quietly(self) -> None:
        try:
            self._camera.close()
        except Exception as error:  # it is broken already
            log.info("closing a failed camera: %s", error)

    def _take(self, frame: Frame) -> None:
        """Count a frame, and publish it if it is good."""
        healed = _healed(frame)
        with self._changed:
            assert self._gate is not None
            if not self._gate.passes(frame, finite=healed is frame):
                return
            buffer = next(each for each in self._buffers if each is not self._newest and each is not self._lent)
        buffer.fill(healed)  # without the lock: nobody else has this one
        with self._changed:
            self._counters.published += 1
            self._counters.unseen += not self._seen
            self._newest, self._seen = buffer, False
            self._changed.notify_all()


def _healed(frame: Frame) -> Frame:
    """Return the frame itself, or one in which depth that is not finite is invalid."""
    if frame.depth is None or np.isfinite(frame.depth).all():
        return frame
    depth, valid = metric(frame.depth)
    return replace(frame, depth=depth, valid=valid)
