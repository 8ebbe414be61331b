"""The interface of every camera. A new source is a `Camera` and an entry point; see docs/cameras.md."""

import abc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from ..errors import BadInput, CameraError, EndOfStream, StaleFrame
from .frame import Frame, Intrinsics


@dataclass(frozen=True)
class CameraRequest:
    """What is asked of a source; each takes what it can, and says what it gives in its `CameraSpec`."""

    width: int | None = None  # of the images [px]; None is the source's own
    height: int | None = None  # [px]
    fps: float | None = None  # None is the source's own [1/s]
    color: bool = True  # with colour; without it recordings give every depth map
    depth: bool = True  # with depth, where the source has it
    repeat: bool = False  # begin again at the end of a recording
    render: str = "benchmark"  # render quality of a simulated task
    depth_sensor: str = "exact"  # of a simulated task
    seed: int = 0  # of a simulated task's first episode
    calibration: str | None = None  # camera.json of `calibrate`, for sources that know no intrinsics
    color_topic: str | None = None  # of a ROS recording that holds several
    depth_topic: str | None = None
    timeout: float = 2.0  # longest wait for a frame of a live camera [s]


@dataclass(frozen=True)
class CameraSpec:
    """What a camera gives, known once it is open."""

    name: str  # what a person would call it
    driver: str
    live: bool  # whether time goes on while nobody reads
    color_size: tuple[int, int] | None  # height, width [px]; None without colour
    depth_size: tuple[int, int] | None
    fps: float | None  # nominal rate of colour and depth pairs [1/s]; None where nobody knows
    unit: float | None = None  # of the sensor's depth integers [m]
    intrinsics: Intrinsics | None = None  # of colour
    frames: int | None = None  # of a recording, where that is known
    numbered: bool = True  # whether `Frame.sequence` counts what was sent, not only what was read
    details: dict[str, str] = field(default_factory=dict)  # serial number, firmware, topics


class Camera(abc.ABC):
    """A source of frames. Use it as a context manager; iterating gives frames until a recording ends.

    One thread reads at a time. `close` may be called from another and at any time, also twice.
    """

    _spec: CameraSpec | None = None  # what `spec` gives, from `open` on

    @abc.abstractmethod
    def open(self) -> None:
        """Start the camera; an open one is left as it is.

        Raises:
            CameraError: if it is not there or cannot be started, with what to do.
        """

    @property
    def spec(self) -> CameraSpec:
        """What it gives; it must be open, which sets `_spec`."""
        if self._spec is None:
            raise CameraError("the camera is not open")
        return self._spec

    @abc.abstractmethod
    def read(self) -> Frame:
        """Return the next frame and wait for it.

        Raises:
            EndOfStream: if a recording is over.
            CameraError: if no frame comes in time, or the camera is gone.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the camera."""

    def latest(self, max_age: float) -> Frame:
        """Return the newest frame. A source read in step gives its next one; `Capture` keeps the newest of a live one.

        Args:
            max_age: the oldest that is acceptable [s].

        Raises:
            StaleFrame: if it is older.
            CameraError: as `read`.
        """
        frame = self.read()
        check_age(frame, max_age, time.monotonic())
        return frame

    def __enter__(self) -> "Camera":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            try:
                frame = self.read()
            except EndOfStream:
                return
            yield frame


def check_age(frame: Frame, max_age: float, now: float) -> None:
    """Refuse a frame that is older than `max_age` [s].

    Raises:
        StaleFrame: saying how old it is.
        BadInput: if `max_age` is not positive.
    """
    if not max_age > 0:
        raise BadInput(f"max_age={max_age}: the oldest acceptable frame must have a positive age [s]")
    if (age := frame.age(now)) > max_age:
        raise StaleFrame(
            f"the newest frame ({frame.sequence}) is {1000 * age:.0f} ms old, {1000 * max_age:.0f} ms are allowed"
        )
