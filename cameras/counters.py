"""What happened to the frames of a live camera, and which of them are good."""

from collections import deque
from dataclasses import dataclass, field

from .camera import CameraSpec
from .frame import Frame

_REMEMBERED = 10_000  # ages and skews kept for percentiles [frames]
_STALL = 3.0  # frame periods without a frame that count as a stall
_RESTART = 1.0  # a camera whose clock falls back by more began anew [s]


@dataclass
class Counters:
    """What happened to the frames of a `Capture` so far."""

    received: int = 0  # frames that the camera gave
    published: int = 0  # those that went into the slot
    unseen: int = 0  # published, but replaced before anybody asked
    missing: int = 0  # numbers the camera left out
    skewed: int = 0  # rejected: colour and depth too far apart in time
    incomplete: int = 0  # rejected: colour or depth missing
    repeated: int = 0  # rejected: not newer than the one before
    not_finite: int = 0  # frames with NaN or infinite depth; those pixels became invalid
    stalls: int = 0  # times that frames came late
    failures: int = 0  # errors of the camera
    reconnects: int = 0  # times that it was opened again
    stale: int = 0  # requests refused because the newest frame was too old
    skews: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))  # of received frames [s]
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))  # when handed out [s]

    def faults(self) -> str:
        """Return in words what went wrong, such as "3 missing, 1 skewed"; empty if nothing did."""
        names = ("missing", "skewed", "incomplete", "repeated", "not_finite", "stalls", "failures", "stale")
        return ", ".join(f"{count} {name}" for name in names if (count := getattr(self, name)))


class Gate:
    """Counts the frames of one camera, and tells which are good.

    Args:
        counters: to add to.
        spec: of the camera.
        max_skew: colour and depth further apart are rejected [s]; None is half a frame period, or 25 ms.
    """

    def __init__(self, counters: Counters, spec: CameraSpec, max_skew: float | None) -> None:
        self.counters, self._spec = counters, spec
        if max_skew is None:
            max_skew = 0.5 / spec.fps if spec.fps else 0.025
        self._max_skew = max_skew
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the frame before, since an opened camera may begin its numbers and times again."""
        self._last_sequence: int | None = None
        self._last_sensor: float | None = None
        self._last_arrival: float | None = None

    def passes(self, frame: Frame, finite: bool) -> bool:
        """Count a frame and return whether it is new and whole; `finite` is whether its depth was."""
        counted = self.counters
        counted.received += 1
        self._count_times(frame)
        if self._is_repeated(frame):
            counted.repeated += 1
            return False
        counted.not_finite += not finite
        counted.skews.append(frame.skew)
        return self._is_pair(frame)

    def _count_times(self, frame: Frame) -> None:
        if self._last_sequence is not None and frame.sequence > self._last_sequence + 1:
            self.counters.missing += frame.sequence - self._last_sequence - 1
        if self._last_arrival is not None and self._spec.fps:
            self.counters.stalls += frame.arrival_time - self._last_arrival > _STALL / self._spec.fps
        self._last_arrival = frame.arrival_time

    def _is_repeated(self, frame: Frame) -> bool:
        """Return whether it is not newer than the one before; else remember it."""
        if self._last_sequence is not None and self._last_sensor is not None:
            back = self._last_sensor - frame.sensor_time
            if frame.sequence <= self._last_sequence and 0 <= back < _RESTART:
                return True
        self._last_sequence, self._last_sensor = frame.sequence, frame.sensor_time
        return False

    def _is_pair(self, frame: Frame) -> bool:
        """Return whether it has what the camera promised, near enough in time; count it if not."""
        counted, spec = self.counters, self._spec
        if (spec.color_size and frame.rgb is None) or (spec.depth_size and frame.depth is None):
            counted.incomplete += 1
            return False
        if frame.skew > self._max_skew:
            counted.skewed += 1
            return False
        return True
