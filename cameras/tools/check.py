"""Checks whether a camera is usable: rate, dropped frames, skew, validity and noise of some of its frames.

Shapes: T frames, h height, w width of the depth map.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..camera import Camera, CameraSpec
from ..frame import Frame

_NOISE_FRAMES = 30  # depth maps kept for the noise
_MIN_RATE = 0.8  # share of the nominal rate
_MAX_MISSING = 0.05  # share of dropped frames
_MAX_SKEWED = 0.1  # share of pairs whose skew is too large


class Finding(NamedTuple):
    """One line of the check."""

    subject: str
    ok: bool
    detail: str


class Noise(NamedTuple):
    """The change of depth between frames of a static scene."""

    median: float  # of |change| at the median distance [m]
    distance: float  # the median distance [m]
    flicker: float  # share of pixels that change between valid and invalid


@dataclass
class Measurements:
    """What was measured of a camera."""

    spec: CameraSpec
    sensor_times: list[float] = field(default_factory=list)  # [s]
    arrivals: list[float] = field(default_factory=list)  # [s]
    skews: list[float] = field(default_factory=list)  # of pairs [s]
    invalid: list[float] = field(default_factory=list)  # share of invalid depth
    missing: int = 0
    incomplete: int = 0
    known: bool = False  # whether frames have intrinsics
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


def observe(camera: Camera, frames: int, seconds: float) -> Measurements:
    """Measure an open camera over at most `frames` frames, and a live one for at most `seconds` [s].

    Raises:
        CameraError: as `Camera.read`.
    """
    measured, before = Measurements(camera.spec), None
    end = time.monotonic() + seconds
    for frame in _some(camera, frames):
        measured.add(frame, before)
        before = frame
        if camera.spec.live and time.monotonic() > end:
            break
    return measured


def _some(frames: Iterable[Frame], count: int) -> Iterator[Frame]:
    for _, frame in zip(range(count), frames, strict=False):
        yield frame


def depth_noise(depths: list[np.ndarray]) -> Noise | None:
    """Return the noise of consecutive depth maps (h, w) [m], 0 where invalid; None for fewer than two."""
    if len(depths) < 2:
        return None
    stack = np.stack(depths)
    valid = stack > 0
    both = valid[1:] & valid[:-1]
    if not both.any():
        return None
    changes = np.abs(stack[1:] - stack[:-1])[both]
    return Noise(float(np.median(changes)), float(np.median(stack[valid])), float((valid[1:] != valid[:-1]).mean()))


def findings(measured: Measurements, max_skew: float | None, max_invalid: float) -> list[Finding]:
    """Return the findings about the measurements.

    Args:
        max_skew: largest time between colour and depth [s]; None is half a frame period.
        max_invalid: largest share of invalid depth.
    """
    spec, found = measured.spec, [_frames(measured), _rate(measured)]
    if len(measured.sensor_times) > 1:
        found.append(_gaps(measured))
    if spec.color_size and spec.depth_size:
        found.append(_pairs(measured, max_skew))
    if spec.depth_size:
        found += _depth(measured, max_invalid)
    detail = "known" if measured.known else "unknown: pixio-robot calibrate, then calibration=camera.json"
    found.append(Finding("intrinsics", measured.known or not spec.depth_size, detail))
    return found


def _frames(measured: Measurements) -> Finding:
    count = len(measured.sensor_times)
    sizes = (("colour", measured.spec.color_size), ("depth", measured.spec.depth_size))
    what = ", ".join(f"{name} {size[1]}x{size[0]}" for name, size in sizes if size) or "neither colour nor depth"
    return Finding("frames", count > 0, f"{count} of {measured.spec.name}: {what}")


def _rate(measured: Measurements) -> Finding:
    times, nominal = measured.sensor_times, measured.spec.fps
    if len(times) < 2:
        return Finding("rate", True, "one frame only, no rate")
    if times[-1] <= times[0]:
        return Finding("rate", False, f"no rate: the camera's clock did not advance in {len(times)} frames")
    rate = (len(times) - 1) / (times[-1] - times[0])
    gaps = np.diff(times)
    detail = f"{rate:.1f} frames a second by the camera's clock, {1000 * np.std(gaps):.1f} ms jitter"
    if nominal is None:
        return Finding("rate", True, detail)
    ok = not measured.spec.live or rate > _MIN_RATE * nominal
    return Finding("rate", ok, f"{detail}; nominal {nominal:.1f}")


def _gaps(measured: Measurements) -> Finding:
    sent = len(measured.sensor_times) + measured.missing
    share = measured.missing / sent
    longest = float(np.max(np.diff(measured.arrivals)))
    detail = f"{measured.missing} of {sent} frames were dropped ({share:.1%})"
    if not measured.spec.numbered:
        detail = "the source does not number its frames, so dropped frames cannot be counted"
    if measured.spec.live:
        detail += f", the longest wait was {1000 * longest:.0f} ms"
    return Finding("drops", share <= _MAX_MISSING, detail)


def _pairs(measured: Measurements, max_skew: float | None) -> Finding:
    if not measured.skews:
        return Finding("pairs", False, f"none of {measured.incomplete} frames had both colour and depth")
    limit = max_skew
    if limit is None:
        limit = 0.5 / measured.spec.fps if measured.spec.fps else 0.025
    skews = np.array(measured.skews)
    bad = int((skews > limit).sum()) + measured.incomplete
    share = bad / (len(skews) + measured.incomplete)
    detail = (
        f"colour and depth {1000 * np.median(skews):.1f} ms apart (median), {1000 * skews.max():.1f} ms at most; "
        f"{bad} of {len(skews) + measured.incomplete} beyond {1000 * limit:.0f} ms or without one of them"
    )
    return Finding("pairs", share <= _MAX_SKEWED, detail)


def _depth(measured: Measurements, max_invalid: float) -> list[Finding]:
    if not measured.invalid:
        return [Finding("depth", False, "there was no depth")]
    share = float(np.mean(measured.invalid))
    found = [
        Finding("validity", share <= max_invalid, f"{share:.1%} of the depth is invalid; {max_invalid:.0%} are allowed")
    ]
    noise = depth_noise(measured.depths)
    if noise is not None:
        detail = (
            f"depth changes by {1000 * noise.median:.1f} mm (median) from frame to frame at {noise.distance:.2f} m, "
            f"{noise.flicker:.1%} of the pixels flicker; meaningful only for a static scene"
        )
        found.append(Finding("noise", True, detail))
    return found


def summary(found: list[Finding]) -> str:
    """Return the last line: usable, or not usable with the problems."""
    problems = [finding.subject for finding in found if not finding.ok]
    return f"not usable: {', '.join(problems)}" if problems else "usable"
