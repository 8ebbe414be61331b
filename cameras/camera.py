"""The interface of every camera. A new source is a subclass of `Camera` and an entry point; see docs/cameras.md."""

import abc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import numpy as np

from ..errors import BadInput, CameraError, EndOfStream, StaleFrame
from .frame import Frame, Intrinsics


@dataclass(frozen=True)
class CameraRequest:
    """What is requested of a source. A source uses what applies to it, and reports the result in its `CameraSpec`."""

    width: int | None = None  # of the images [px]; None is the source's own
    height: int | None = None  # [px]
    fps: float | None = None  # None is the source's own [1/s]
    color: bool = True  # with colour; without it recordings give every depth map
    depth: bool = True  # with depth, if the source has it
    repeat: bool = False  # restart a recording at its end
    render: str = "benchmark"  # render quality of a simulated task
    depth_sensor: str = "exact"  # of a simulated task
    seed: int = 0  # of a simulated task's first episode
    calibration: str | None = None  # camera.json of `calibrate`, for sources without their own intrinsics
    color_topic: str | None = None  # of a ROS recording with several
    depth_topic: str | None = None
    timeout: float = 2.0  # longest wait for a frame of a live camera [s]


@dataclass(frozen=True)
class CameraSpec:
    """The properties of an open camera."""

    name: str  # for people
    driver: str
    live: bool  # frames are lost if they are not read in time
    color_size: tuple[int, int] | None  # height, width [px]; None without colour
    depth_size: tuple[int, int] | None
    fps: float | None  # nominal rate of pairs of colour and depth [1/s]; None if unknown
    unit: float | None = None  # of the sensor's depth integers [m]
    intrinsics: Intrinsics | None = None  # of colour
    frames: int | None = None  # of a recording, if known
    endless: bool = False  # not live, but never ends, such as a simulation
    numbered: bool = True  # `Frame.sequence` counts the frames that were sent, not only those that were read
    details: dict[str, str] = field(default_factory=dict)  # serial number, firmware, topics


class Camera(abc.ABC):
    """A source of frames. Use it as a context manager; iterating gives frames until a recording ends.

    One thread reads at a time. `close` may be called from another thread, at any time and more than once. A driver is
    made with the text after the colon of its name and a `CameraRequest`. Its class attributes describe it before one
    is made.
    """

    needs_argument: ClassVar[bool] = False  # whether the name needs text after a colon
    reads: ClassVar[str] = ""  # the files or folders it reads, in words; empty for a driver of devices only
    has_intrinsics: ClassVar[bool] = False  # it knows its intrinsics, so a calibration file is not used
    adjustable: ClassVar[tuple[str, ...]] = ("width", "height", "fps")  # which of these it adapts to the request
    accepts_actions: ClassVar[bool] = False  # whether `act` drives what it shows

    _spec: CameraSpec | None = None  # set by `open`

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether this driver reads a file or folder, by its content.

        Raises:
            DataError: if it is of this driver's kind but damaged.
        """
        return False

    @abc.abstractmethod
    def open(self) -> None:
        """Start the camera; an open camera stays open.

        Raises:
            CameraError: if it is missing or cannot be started, with what to do.
        """

    @property
    def spec(self) -> CameraSpec:
        """The properties of the camera, which must be open."""
        if self._spec is None:
            raise CameraError("the camera is not open")
        return self._spec

    @abc.abstractmethod
    def read(self) -> Frame:
        """Wait for the next frame and return it.

        Raises:
            EndOfStream: at the end of a recording.
            CameraError: if no frame comes in time, or the camera is gone.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the camera."""

    def latest(self, max_age: float) -> Frame:
        """Return the latest frame: the next one, unless a `Capture` reads a live camera in the background.

        Args:
            max_age: the largest acceptable age [s].

        Raises:
            StaleFrame: if it is older.
            CameraError: as `read`.
        """
        frame = self.read()
        check_age(frame, max_age, time.monotonic())
        return frame

    def act(self, action: np.ndarray) -> None:
        """Set the action (A,) in [-1, 1] of the next step; only for a camera that `accepts_actions`.

        Raises:
            BadInput: if this camera does not accept actions.
        """
        raise BadInput(f"{type(self).__name__} does not accept actions; simulated tasks do, e.g. camera=task:toy/reach")

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
        StaleFrame: with its age.
        BadInput: if `max_age` is not positive.
    """
    if not max_age > 0:
        raise BadInput(f"max_age={max_age}: the largest acceptable age must be positive [s]")
    if (age := frame.age(now)) > max_age:
        raise StaleFrame(
            f"the latest frame ({frame.sequence}) is {1000 * age:.0f} ms old, {1000 * max_age:.0f} ms are allowed"
        )
