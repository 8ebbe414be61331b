"""Pairing of separate colour and depth frames by time."""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..frame import Frame

_LATE = 0.25  # largest delay of a frame behind frames with later stamps [s]


def nearest_pairs(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield each colour image with the depth map nearest in time; `Frame.skew` is the time between them.

    Args:
        frames: each with colour or depth. Frames up to a quarter of a second late are sorted by time.
    """
    waiting: Frame | None = None
    depths: deque[Frame] = deque(maxlen=2)
    for frame in _in_order(frames):
        if frame.rgb is None:
            depths.append(frame)
        else:
            if waiting is not None:
                yield _paired(waiting, depths)
            waiting = frame
        if waiting is not None and depths and depths[-1].sensor_time >= waiting.sensor_time:
            yield _paired(waiting, depths)
            waiting = None
    if waiting is not None:
        yield _paired(waiting, depths)


def _in_order(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield frames in the order of their times; a clock that is reset starts a new order."""
    held: list[Frame] = []
    for frame in frames:
        if held and frame.sensor_time < held[-1].sensor_time - _LATE:
            yield from held
            held.clear()
        insort(held, frame, key=lambda each: each.sensor_time)
        while held[-1].sensor_time - held[0].sensor_time > _LATE:
            yield held.pop(0)
    yield from held


def _paired(color: Frame, depths: deque[Frame]) -> Frame:
    if not depths:
        return color
    depth = min(depths, key=lambda each: abs(each.sensor_time - color.sensor_time))
    return replace(
        color,
        depth=depth.depth,
        valid=depth.valid,
        depth_intrinsics=depth.depth_intrinsics,
        depth_to_color=depth.depth_to_color,
        unit=depth.unit,
        depth_time=depth.sensor_time,
    )
