"""Where a control loop's frames come from: only frames that it has not used, from one camera or several."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from ..cameras.camera import Camera
from ..cameras.capture import Capture
from ..cameras.frame import Frame
from .clock import Clock


class FrameSource(Protocol):
    """One camera as a control loop needs it; `Capture` is one."""

    def open(self) -> None:
        """Start the camera."""

    def fresh(self, timeout: float) -> Frame | None:
        """Return the latest frame if it is new, or None if none comes within `timeout` [s]."""

    def close(self) -> None:
        """Release the camera."""


class SteppedFrameSource:
    """`Capture` for stepped time: frames are there at once, and a stall is a time without frames.

    Give `stall` to `cameras.tools.faults.FaultInjectingCamera` as its `sleep`.
    """

    def __init__(self, camera: Camera, clock: Clock) -> None:
        self._camera, self._clock = camera, clock
        self._stalled_until = clock.now()

    def open(self) -> None:
        """Start the camera."""
        self._camera.open()

    def stall(self, seconds: float) -> None:
        """Give no frame for a time [s]."""
        self._stalled_until = self._clock.now() + seconds

    def fresh(self, timeout: float) -> Frame | None:
        """Return the next frame; during a stall wait for its end, at most `timeout` [s]."""
        if (now := self._clock.now()) < self._stalled_until:
            self._clock.sleep_until(min(self._stalled_until, now + timeout))
            if self._clock.now() < self._stalled_until:
                return None
        frame = replace(self._camera.read(), arrival_time=self._clock.now())  # a recording's own is on the wall clock
        return None if self._clock.now() < self._stalled_until else frame

    def close(self) -> None:
        """Release the camera."""
        self._camera.close()


class FrameSet(Mapping[str, Frame]):
    """The frames of all cameras, by camera; it is as old as its oldest frame.

    Args:
        frames: at least one; their arrays are valid until the next set is requested.
    """

    def __init__(self, frames: Mapping[str, Frame]) -> None:
        self._frames = dict(frames)
        self.arrival_time = min(each.arrival_time for each in self._frames.values())  # of the oldest [s]
        self.sequences = tuple(each.sequence for each in self._frames.values())

    def __getitem__(self, camera: str) -> Frame:
        return self._frames[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def age(self, now: float) -> float:
        """Return how long ago the oldest frame arrived [s]."""
        return now - self.arrival_time

    def is_new_after(self, other: "FrameSet | None") -> bool:
        """Return whether every camera's frame is another than in `other`."""
        if other is None:
            return True
        return all(mine != theirs for mine, theirs in zip(self.sequences, other.sequences, strict=True))


class FrameSources:
    """The cameras of one control loop; use as a context manager, or `open` and `close`.

    Args:
        sources: by camera, at least one.
        clock: of the loop.
    """

    def __init__(self, sources: Mapping[str, FrameSource], clock: Clock) -> None:
        self._sources, self._clock = dict(sources), clock
        self._open = ExitStack()
        self._latest: dict[str, Frame] = {}  # frames that no set has held yet

    def __getitem__(self, camera: str) -> FrameSource:
        return self._sources[camera]

    @property
    def missing(self) -> list[str]:
        """Cameras without a frame that no set has held yet."""
        return [camera for camera in self._sources if camera not in self._latest]

    def open(self) -> None:
        """Start all cameras; if one does not start, none stays open."""
        with ExitStack() as stack:
            for source in self._sources.values():
                source.open()
                stack.callback(source.close)
            self._open = stack.pop_all()

    def fresh(self, timeout: float, since: float, strict: bool = False) -> FrameSet | None:
        """Return new frames of all cameras, or None if one camera has none within `timeout` [s].

        Frames that arrived before `since` are replaced by later ones as long as there is time.

        Args:
            since: time of the last command [s].
            strict: return no frame from before `since`.

        Raises:
            CameraError: if a camera is lost.
            EndOfStream: if a recording is over.
        """
        end = self._clock.now() + timeout
        for camera, source in self._sources.items():
            while camera not in self._latest or self._latest[camera].arrival_time < since:
                frame = source.fresh(max(0.0, end - self._clock.now()))
                if frame is None:
                    break
                self._latest[camera] = frame
            if strict and camera in self._latest and self._latest[camera].arrival_time < since:
                del self._latest[camera]
        if len(self._latest) < len(self._sources):
            return None
        found = FrameSet({camera: self._latest[camera] for camera in self._sources})
        self._latest.clear()
        return found

    def close(self) -> None:
        """Release all cameras."""
        self._open.close()

    def __enter__(self) -> "FrameSources":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def new_frame_source(camera: Camera, clock: Clock, stepped: bool) -> "Capture | SteppedFrameSource":
    """Return a camera as a frame source, not open yet."""
    return SteppedFrameSource(camera, clock) if stepped else Capture(camera)
