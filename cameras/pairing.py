"""Colour and depth that come one by one, brought together by time."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from .frame import Frame


def nearest_pairs(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield each colour picture with the depth map that is nearest in time, however far; `Frame.skew` tells.

    Args:
        frames: of one of the two each, nearly in order of time. Depth is kept until a colour picture is passed.
    """
    waiting: Frame | None = None
    depths: deque[Frame] = deque(maxlen=2)
    for frame in frames:
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
