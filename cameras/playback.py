"""The base of recorded and simulated sources, and playback in real time."""

import abc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

from ..errors import CameraError, EndOfStream
from .camera import Camera, CameraRequest, CameraSpec
from .frame import Frame


class Playback(Camera):
    """A recorded source. A subclass opens its files in `start`, yields frames in `frames`, and describes them.

    The arrival time of a frame is the time of reading. Frames are counted, also across repetitions. A source whose
    frames have the camera's own numbers (`numbered`) keeps these, so that dropped frames are visible.

    Args:
        request: with `repeat` the recording restarts at its end.
    """

    numbered = False
    adjustable: ClassVar[tuple[str, ...]] = ()

    def __init__(self, request: CameraRequest) -> None:
        self.request = request
        self._spec: CameraSpec | None = None
        self._frames: Iterator[Frame] | None = None
        self._reading = threading.Lock()  # `close` waits until a frame is complete
        self.closing = False  # a subclass that waits for frames checks it
        self._count = 0  # frames given
        self._offset = 0  # numbers used by earlier repetitions
        self._latest = -1

    @abc.abstractmethod
    def start(self) -> CameraSpec:
        """Open the files; called again for a repetition."""

    @abc.abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yield the frames from the first one."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Close the files; does nothing if they are closed."""

    def open(self) -> None:
        if self._frames is None:
            try:
                self._spec = self.start()
            except BaseException:
                self.stop()
                raise
            self._count, self._offset, self._latest, self.closing = 0, 0, -1, False
            self._frames = self.frames()

    def read(self) -> Frame:
        with self._reading:
            return self._next()

    def _next(self) -> Frame:
        if self._frames is None:
            raise CameraError("the camera is not open")
        frame = next(self._frames, None)
        if self.closing:
            raise CameraError("the camera was closed")
        if frame is None and self.request.repeat and self._count:
            self._offset = self._latest + 1
            self.stop()
            self.start()
            self._frames = self.frames()
            frame = next(self._frames, None)
        if frame is None:
            raise EndOfStream(f"{self.spec.name} has no more frames after {self._count}")
        self._latest = self._offset + frame.sequence if self.numbered else self._count
        self._count += 1
        return replace(frame, sequence=self._latest, arrival_time=time.monotonic())

    def close(self) -> None:
        self.closing = True
        with self._reading:
            frames, self._frames = self._frames, None
            if frames is not None:
                frames.close()  # type: ignore[attr-defined]  # generators have it
            self.stop()


class RealTimePlayback(Camera):
    """Plays a recorded source in real time and drops frames that are not read in time, as a live camera does.

    Args:
        camera: the source; its frames must have sensor times.
        clock, sleep: as in `time`; tests replace them.
    """

    def __init__(
        self,
        camera: Camera,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._camera, self._clock, self._sleep = camera, clock, sleep
        self._begin: float | None = None  # on our clock, at sensor time 0
        self._waiting: Frame | None = None  # read ahead
        self._last = 0.0

    def open(self) -> None:
        self._camera.open()

    @property
    def spec(self) -> CameraSpec:
        return replace(self._camera.spec, live=True)

    def read(self) -> Frame:
        frame = self._waiting or self._camera.read()
        self._waiting = None
        now = self._clock()
        if self._begin is None or frame.sensor_time < self._last:  # the first, or a repetition
            self._begin = now - frame.sensor_time
        while self._begin + frame.sensor_time < now:  # late: look for a newer frame that is due
            try:
                newer = self._camera.read()
            except EndOfStream:
                break
            if newer.sensor_time < frame.sensor_time or self._begin + newer.sensor_time > now:
                self._waiting = newer
                break
            frame = newer
        self._last = frame.sensor_time
        if (wait := self._begin + frame.sensor_time - self._clock()) > 0:
            self._sleep(wait)
        return replace(frame, arrival_time=self._clock())

    def close(self) -> None:
        self._waiting = None
        self._camera.close()
