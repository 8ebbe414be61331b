"""Where a control loop's frames come from: only ones that it has not seen, and never a wait beyond its time."""

from dataclasses import replace
from typing import Protocol

from ..cameras.camera import Camera
from ..cameras.capture import Capture
from ..cameras.frame import Frame
from .clock import Clock


class FrameSource(Protocol):
    """A camera as a control loop wants it; `Capture` is one."""

    def fresh(self, timeout: float) -> Frame | None:
        """Return the newest frame if it is new, or None where none comes within `timeout` [s]."""

    def close(self) -> None:
        """Release the camera."""


class SteppedFrameSource:
    """What `Capture` is for stepped time: frames are there at once, and a stall is a time without any.

    Give `stall` to `cameras.tools.faults.FaultInjectingCamera` as its `sleep`.
    """

    def __init__(self, camera: Camera, clock: Clock) -> None:
        self._camera, self._clock = camera, clock
        self._blind_until = clock.now()

    def open(self) -> None:
        """Start the camera."""
        self._camera.open()

    def stall(self, seconds: float) -> None:
        """Give no frame for a time [s]."""
        self._blind_until = self._clock.now() + seconds

    def fresh(self, timeout: float) -> Frame | None:
        """Return the next frame; during a stall wait for its end, at most `timeout` [s]."""
        if (now := self._clock.now()) < self._blind_until:
            self._clock.sleep_until(min(self._blind_until, now + timeout))
            if self._clock.now() < self._blind_until:
                return None
        frame = replace(self._camera.read(), arrival_time=self._clock.now())  # a recording's own is the wall's
        return None if self._clock.now() < self._blind_until else frame

    def close(self) -> None:
        """Release the camera."""
        self._camera.close()


def open_frame_source(camera: Camera, clock: Clock, stepped: bool) -> Capture | SteppedFrameSource:
    """Return a camera as eyes, opened."""
    eyes = SteppedFrameSource(camera, clock) if stepped else Capture(camera)
    eyes.open()
    return eyes
