"""Capture: reads a camera in a separate thread, keeps its latest frame and counts faults.

A control loop requests the latest frame up to a maximum age. It never waits for the camera and never gets an old frame.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import CameraError, EndOfStream
from .camera import Camera, CameraSpec, check_age
from .counters import Counters, FrameFilter
from .frame import Frame, metric

log = logging.getLogger(__name__)

_BACK_OFF = (0.05, 5.0)  # first and longest pause between attempts to reconnect [s]
_JOIN = 2.0  # longest wait for the thread to end [s]


class _Buffer:
    """The arrays of one frame, allocated once and reused."""

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self._arrays: dict[str, np.ndarray] = {}

    def fill(self, frame: Frame) -> None:
        """Copy a frame into the buffer."""
        rgb, depth, valid = (self._copy(name, getattr(frame, name)) for name in ("rgb", "depth", "valid"))
        self.frame = replace(frame, rgb=rgb, depth=depth, valid=valid)

    def _copy(self, name: str, values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        array = self._arrays.get(name)
        if array is None or array.shape != values.shape or array.dtype != values.dtype:
            array = self._arrays[name] = np.empty_like(values, order="C")
        np.copyto(array, values)
        return array


class Capture(Camera):
    """Reads a camera in a thread and keeps the latest frame.

    The arrays of a returned frame are valid until the next `latest` or `read`; copy what must last longer. One thread
    requests frames. A camera that fails is closed and opened again, with growing pauses. A recording ends.

    Args:
        camera: the source, open or not.
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
        self._buffers = [_Buffer() for _ in range(3)]  # latest, returned, being written
        self._latest: _Buffer | None = None
        self._returned: _Buffer | None = None
        self._seen = True  # whether the latest was returned
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._counters = Counters()
        self._filter: FrameFilter | None = None  # from `open` on

    def open(self) -> None:
        if self._thread is not None:
            return
        self._camera.open()
        self._spec = self._camera.spec
        self._filter = FrameFilter(self._counters, self._spec, self._max_skew)
        self._closing.clear()
        self._error = self._latest = self._returned = None
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
        """Return the latest frame immediately; before the first frame, wait for it.

        Raises:
            StaleFrame: if it is older than `max_age` [s]; counted.
            EndOfStream: if a recording has ended and its last frame was returned.
            CameraError: if no frame came within the timeout, or the camera's driver failed.
        """
        with self._changed:
            self._wait(lambda: self._latest is not None)
            if self._error is not None and self._seen:
                raise self._error
            now = self._clock()
            try:
                check_age(self._latest_frame(), max_age, now)
            except CameraError:
                self._counters.stale += 1
                raise
            return self._return_latest(now)

    def read(self) -> Frame:
        """Return the next frame that was not returned yet.

        Raises:
            EndOfStream: if a recording has ended.
            CameraError: if none comes within the timeout, or the camera's driver failed.
        """
        with self._changed:
            self._wait(lambda: not self._seen)
            if self._seen and self._error is not None:
                raise self._error
            return self._return_latest(self._clock())

    def fresh(self, timeout: float) -> Frame | None:
        """Return the latest frame if it was not returned yet; None if no new frame comes within `timeout` [s].

        Raises:
            EndOfStream: if a recording has ended.
            CameraError: if the camera's driver failed.
        """
        with self._changed:
            if self._thread is None:
                raise CameraError("the camera is not open")
            self._changed.wait_for(lambda: not self._seen or self._error is not None, timeout)
            if not self._seen:
                return self._return_latest(self._clock())
            if self._error is not None:
                raise self._error
            return None

    def _wait(self, ready: Callable[[], bool]) -> None:
        if self._thread is None:
            raise CameraError("the camera is not open")
        self._changed.wait_for(lambda: ready() or self._error is not None, self._timeout)
        if not ready() and self._error is None:
            raise CameraError(f"{self.spec.name} sent no frame for {self._timeout:.1f} s")

    def _return_latest(self, now: float) -> Frame:
        self._returned = self._latest
        self._seen = True
        frame = self._latest_frame()
        self._counters.ages.append(frame.age(now))
        return frame

    def _latest_frame(self) -> Frame:
        if self._latest is None or self._latest.frame is None:
            raise CameraError(f"{self.spec.name} sent no frame yet")
        return self._latest.frame

    def close(self) -> None:
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._camera.close()  # interrupts a waiting read
            thread.join(_JOIN)
            if thread.is_alive():
                log.warning("the driver of %s does not return; its thread keeps running", self.spec.name)
        else:
            self._camera.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                frame = self._camera.read()
            except EndOfStream as error:
                faults = self.counters().faults()
                self._end(EndOfStream(f"{error}; faults: {faults}") if faults else error)
                return
            except CameraError as error:
                if self._closing.is_set():
                    return
                if not self._reconnect(error):
                    return
            except Exception as error:  # the driver failed; the next request raises it
                self._end(error)
                return
            else:
                self._take(frame)

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _reconnect(self, error: CameraError) -> bool:
        """Open the camera again, with growing pauses; return False if the capture is closed."""
        log.warning("%s; reconnecting", error)
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
                if self._filter is not None:
                    self._filter.reset()
            return True
        return False

    def _close_quietly(self) -> None:
        try:
            self._camera.close()
        except Exception as error:  # it has failed already
            log.info("closing a failed camera: %s", error)

    def _take(self, frame: Frame) -> None:
        """Count a frame, and make it the latest if it is accepted."""
        cleaned = _with_finite_depth(frame)
        with self._changed:
            if self._filter is None or not self._filter.accepts(frame, finite=cleaned is frame):
                return
            buffer = next(each for each in self._buffers if each is not self._latest and each is not self._returned)
        buffer.fill(cleaned)  # without the lock: no other thread uses this buffer
        with self._changed:
            self._counters.published += 1
            self._counters.unseen += not self._seen
            self._latest, self._seen = buffer, False
            self._changed.notify_all()


def _with_finite_depth(frame: Frame) -> Frame:
    """Return the frame itself, or one in which depth that is not finite is invalid."""
    if frame.depth is None or np.isfinite(frame.depth).all():
        return frame
    depth, valid = metric(frame.depth)
    return replace(frame, depth=depth, valid=valid)
