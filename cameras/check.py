"""Whether a camera is usable: rates, gaps, skew, validity and noise from a stretch of its frames.

Shapes: T frames, h height, w width of the depth map.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .camera import Camera, CameraSpec
from .frame import Frame

_NOISE_FRAMES = 30  # depth maps kept for the noise
_SLOW = 0.8  # least share of the nominal rate
_MISSING = 0.05  # largest share of frames that the camera may leave out
_SKEWED = 0.1  # largest share of pairs that are too far apart


class Finding(NamedTuple):
    """One line of the examination."""

    what: str
    fine: bool
    detail: str


class Noise(NamedTuple):
    """How much the depth of a scene that stands still changes from frame to frame."""

    median: float  # of |change| at the median distance [m]
    distance: float  # the median distance [m]
    flicker: float  # share of pixels that change between valid and invalid


@dataclass
class Stretch:
    """What was seen of a camera."""

    spec: CameraSpec
    sensor_times: list[float] = field(default_factory=list)  # [s]
    arrivals: list[float] = field(default_factory=list)  # [s]
    skews: list[float] = field(default_factory=list)  # of pairs [s]
    invalid: list[float] = field(default_factory=list)  # share of invalid depth
    missing: int = 0
    incomplete: int = 0
    known: bool = False  # whether intrinsics came
    depths: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: Frame, before: Frame | None) -> None:
        """Count a frame."""
        self.sensor_times.append(frame.sensor_time)
        self.arrivals.append(frame.arrival_time)
        self.known |= frame.intrinsics is not None or (frame.rgb is None and frame.depth_intrinsics is not None)
        if before is not None and frame.sequence > before.sequence + 1:
            self.missing += frame.sequence - before.sequence - 1
        if (self.spec.color_size and frame.rgb is None) or (self.spec.depth_size and frame.depth is None):
            self.incomplete += 1
        elif frame.depth is not None:
            self.skews.append(frame.skew)
        if frame.depth is not None and frame.valid is not None:
            self.invalid.append(1 - float(frame.valid.mean()))
            if len(self.depths) < _NOISE_FRAMES:
                self.depths.append(frame.depth.copy())


def observe(camera: Camera, frames: int, seconds: float) -> Stretch:
    """Look at an open camera: at most so many frames, and of a live one at most so long [s].

    Raises:
        CameraError: as `Camera.read`.
    """
    stretch, before = Stretch(camera.spec), None
    end = time.monotonic() + seconds
    for frame in _some(camera, frames):
        stretch.add(frame, before)
        before = frame
        if camera.spec.live and time.monotonic() > end:
            break
    return stretch


def _some(frames: Iterable[Frame], count: int) -> Iterator[Frame]:
    for _, frame in zip(range(count), frames, strict=False):
        yield frame


def depth_noise(depths: list[np.ndarray]) -> Noise | None:
    """Return how much depth maps (h, w) [m], 0 where invalid, differ from one to the next; None of fewer than two."""
    if len(depths) < 2:
        return None
    stack = np.stack(depths)
    valid = stack > 0
    both = valid[1:] & valid[:-1]
    if not both.any():
        return None
    changes = np.abs(stack[1:] - stack[:-1])[both]
    return Noise(float(np.median(changes)), float(np.median(stack[valid])), float((valid[1:] != valid[:-1]).mean()))


def findings(stretch: Stretch, max_skew: float | None, max_invalid: float) -> list[Finding]:
    """Judge a stretch.

    Args:
        max_skew: most that colour and depth may be apart [s]; None is half a frame period.
        max_invalid: largest share of invalid depth.
    """
    spec, found = stretch.spec, [_frames(stretch), _rate(stretch)]
    if len(stretch.sensor_times) > 1:
        found.append(_gaps(stretch))
    if spec.color_size and spec.depth_size:
        found.append(_pairs(stretch, max_skew))
    if spec.depth_size:
        found += _depth(stretch, max_invalid)
    detail = "known" if stretch.known else "unknown: pixio-robot calibrate, then calibration=camera.json"
    found.append(Finding("intrinsics", stretch.known or not spec.depth_size, detail))
    return found


def _frames(stretch: Stretch) -> Finding:
    count = len(stretch.sensor_times)
    sizes = (("colour", stretch.spec.color_size), ("depth", stretch.spec.depth_size))
    what = ", ".join(f"{name} {size[1]}x{size[0]}" for name, size in sizes if size) or "neither colour nor depth"
    return Finding("frames", count > 0, f"{count} of {stretch.spec.name}: {what}")


def _rate(stretch: Stretch) -> Finding:
    times, nominal = stretch.sensor_times, stretch.spec.fps
    if len(times) < 2:
        return Finding("rate", True, "one moment only, no rate")
    if times[-1] <= times[0]:
        return Finding("rate", False, f"no rate: after {len(times)} frames the camera's clock is not later")
    rate = (len(times) - 1) / (times[-1] - times[0])
    gaps = np.diff(times)
    said = f"{rate:.1f} frames a second by the camera's clock, {1000 * np.std(gaps):.1f} ms jitter"
    if nominal is None:
        return Finding("rate", True, said)
    fine = not stretch.spec.live or rate > _SLOW * nominal
    return Finding("rate", fine, f"{said}; nominal {nominal:.1f}")


def _gaps(stretch: Stretch) -> Finding:
    sent = len(stretch.sensor_times) + stretch.missing
    share = stretch.missing / sent
    longest = float(np.max(np.diff(stretch.arrivals)))
    detail = f"{stretch.missing} of {sent} frames never came ({share:.1%})"
    if not stretch.spec.numbered:
        detail = "the source does not number its frames, so none can be missed"
    if stretch.spec.live:
        detail += f", the longest wait was {1000 * longest:.0f} ms"
    return Finding("drops", share <= _MISSING, detail)


def _pairs(stretch: Stretch, max_skew: float | None) -> Finding:
    if not stretch.skews:
        return Finding("pairs", False, f"none of {stretch.incomplete} sets had both colour and depth")
    limit = max_skew
    if limit is None:
        limit = 0.5 / stretch.spec.fps if stretch.spec.fps else 0.025
    skews = np.array(stretch.skews)
    bad = int((skews > limit).sum()) + stretch.incomplete
    share = bad / (len(skews) + stretch.incomplete)
    detail = (
        f"colour and depth {1000 * np.median(skews):.1f} ms apart (median), {1000 * skews.max():.1f} ms at most; "
        f"{bad} of {len(skews) + stretch.incomplete} beyond {1000 * limit:.0f} ms or without one of them"
    )
    return Finding("pairs", share <= _SKEWED, detail)


def _depth(stretch: Stretch, max_invalid: float) -> list[Finding]:
    if not stretch.invalid:
        return [Finding("depth", False, "no depth came")]
    share = float(np.mean(stretch.invalid))
    found = [
        Finding("validity", share <= max_invalid, f"{share:.1%} of the depth is invalid; {max_invalid:.0%} may be")
    ]
    noise = depth_noise(stretch.depths)
    if noise is not None:
        detail = (
            f"depth changes by {1000 * noise.median:.1f} mm (median) from frame to frame at {noise.distance:.2f} m, "
            f"{noise.flicker:.1%} of the pixels flicker; this says something only if nothing moved"
        )
        found.append(Finding("noise", True, detail))
    return found


def summary(found: list[Finding]) -> str:
    """Return the last line: whether it is usable, and if not, why."""
    wrong = [finding.what for finding in found if not finding.fine]
    return f"not usable as it is: {', '.join(wrong)}" if wrong else "usable"
