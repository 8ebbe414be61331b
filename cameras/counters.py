"""Counters of a live camera's frames, and the filter that rejects bad ones."""

from collections import deque
from dataclasses import dataclass, field

from .camera import CameraSpec
from .frame import Frame

_REMEMBERED = 10_000  # ages and skews that are kept for percentiles
_STALL = 3.0  # frame periods without a frame that count as a stall
_RESTART = 1.0  # a camera whose clock goes back by more than this was restarted [s]


@dataclass
class Counters:
    """Counters of the frames of a `Capture` so far."""

    received: int = 0  # frames from the camera
    published: int = 0  # frames that became the latest frame
    unseen: int = 0  # published, but replaced before they were requested
    missing: int = 0  # numbers that the camera skipped
    skewed: int = 0  # rejected: colour and depth too far apart in time
    incomplete: int = 0  # rejected: colour or depth missing
    repeated: int = 0  # rejected: not newer than the previous frame
    not_finite: int = 0  # frames with NaN or infinite depth; those pixels became invalid
    stalls: int = 0  # late frames
    failures: int = 0  # errors of the camera
    reconnects: int = 0  # times that the camera was opened again
    stale: int = 0  # requests refused because the latest frame was too old
    skews: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))  # of received frames [s]
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))  # when returned [s]

    def faults(self) -> str:
        """Return the faults as text, such as "3 missing, 1 skewed"; empty if there are none."""
        names = ("missing", "skewed", "incomplete", "repeated", "not_finite", "stalls", "failures", "stale")
        return ", ".join(f"{count} {name}" for name in names if (count := getattr(self, name)))


class FrameFilter:
    """Counts the frames of one camera and rejects repeated, incomplete and skewed ones.

    Args:
        counters: the counters to increase.
        spec: of the camera.
        max_skew: colour and depth further apart are rejected [s]; None is half a frame period, or 25 ms.
    """

    def __init__(self, counters: Counters, spec: CameraSpec, max_skew: float | None) -> None:
        self.counters, self._spec = counters, spec
        if max_skew is None:
            max_skew = 0.5 / spec.fps if spec.fps else 0.025
        self._max_skew = max_skew
        self.reset()

    def reset(self) -> None:
        """Forget the previous frame; a camera that was opened again may restart its numbers and times."""
        self._last_sequence: int | None = None
        self._last_sensor: float | None = None
        self._last_arrival: float | None = None

    def accepts(self, frame: Frame, finite: bool) -> bool:
        """Count a frame and return whether it is new and complete; `finite` is whether its depth was finite."""
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
        """Return whether the frame is not newer than the previous one; if it is newer, keep its number and time."""
        if self._last_sequence is not None and self._last_sensor is not None:
            back = self._last_sensor - frame.sensor_time
            if frame.sequence <= self._last_sequence and 0 <= back < _RESTART:
                return True
        self._last_sequence, self._last_sensor = frame.sequence, frame.sensor_time
        return False

    def _is_pair(self, frame: Frame) -> bool:
        """Return whether the frame has colour and depth as specified, with a small skew; count it if not."""
        counted, spec = self.counters, self._spec
        if (spec.color_size and frame.rgb is None) or (spec.depth_size and frame.depth is None):
            counted.incomplete += 1
            return False
        if frame.skew > self._max_skew:
            counted.skewed += 1
            return False
        return True
