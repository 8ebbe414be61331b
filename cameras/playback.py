"""What recorded and simulated sources share: frames one after the other, an end, and the pace of a real camera."""

import abc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..errors import CameraError, EndOfStream
from .camera import Camera, CameraRequest, CameraSpec
from .frame import Frame


class Playback(Camera):
    """A recorded source. A subclass opens its files in `start`, yields frames, and describes them.

    Arrival is the moment of reading. Frames are counted, also through repetitions; a source whose frames carry the
    camera's own numbers (`numbered`) keeps those, so that what the camera dropped can be seen.

    Args:
        request: `repeat` begins again at the end.
    """

    numbered = False
    follows: tuple[str, ...] = ()  # which of width, height and fps it gives as asked

    def __init__(self, request: CameraRequest) -> None:
        self.request = request
        self._spec: CameraSpec | None = None
        self._frames: Iterator[Frame] | None = None
        self._reading = threading.Lock()  # nobody closes what a frame is being made of
        self.closing = False  # tells a subclass that waits for frames to end
        self._count = 0  # frames given
        self._behind = 0  # numbers used by earlier repetitions
        self._newest = -1

    @abc.abstractmethod
    def start(self) -> CameraSpec:
        """Open the files; called again for a repetition."""

    @abc.abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yield the frames from the beginning."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Close the files; harmless when they are closed."""

    def open(self) -> None:
        if self._frames is None:
            try:
                self._spec = self.start()
            except BaseException:
                self.stop()
                raise
            self._count, self._behind, self._newest, self.closing = 0, 0, -1, False
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
            self._behind = self._newest + 1
            self.stop()
            self.start()
            self._frames = self.frames()
            frame = next(self._frames, None)
        if frame is None:
            raise EndOfStream(f"{self.spec.name} has no more frames after {self._count}")
        self._newest = self._behind + frame.sequence if self.numbered else self._count
        self._count += 1
        return replace(frame, sequence=self._newest, arrival_time=time.monotonic())

    def close(self) -> None:
        self.closing = True
        with self._reading:
            frames, self._frames = self._frames, None
            if frames is not None:
                frames.close()  # type: ignore[attr-defined]  # generators have it
            self.stop()


class RealTimePlayback(Camera):
    """A recorded source at its own pace, which drops what nobody reads in time, as a live camera does.

    Args:
        camera: the source; it must give sensor times.
        clock, sleep: of `time`; tests give their own.
    """

    def __init__(
        self,
        camera: Camera,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._camera, self._clock, self._sleep = camera, clock, sleep
        self._begin: float | None = None  # on our clock, of sensor time 0
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
        while self._begin + frame.sensor_time < now:  # late: is there a newer one that is due?
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
