"""A camera with injected faults, to test what reads it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...errors import CameraError
from ..camera import Camera, CameraSpec
from ..frame import Frame


@dataclass(frozen=True)
class Faults:
    """Rates of the faults, as shares of the frames, and their sizes."""

    drop: float = 0.0  # the frame is lost
    stall: float = 0.0  # the frame is `stall_seconds` late
    skew: float = 0.0  # the depth is `skew_seconds` older than the colour
    nan: float = 0.0  # a part of the depth is NaN
    incomplete: float = 0.0  # the depth is missing
    repeat: float = 0.0  # the previous frame is returned again
    unplug: float = 0.0  # the camera is unavailable for `gone_seconds`
    stall_seconds: float = 0.2  # [s]
    skew_seconds: float = 0.1  # [s]
    gone_seconds: float = 0.3  # [s]


class FaultInjectingCamera(Camera):
    """A camera with faults, at most one per frame. `injected` counts them by name.

    Args:
        camera: the source; if it is closed while it is unplugged, it restarts, as a real camera does.
        faults: the rates.
        seed: random seed of the faults.
    """

    def __init__(
        self, camera: Camera, faults: Faults, seed: int = 0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._camera, self._faults, self.sleep = camera, faults, sleep
        self._rng = np.random.default_rng(seed)
        self._gone_until = 0.0
        self._before: Frame | None = None
        self._late = 0.0
        self.injected: Counter[str] = Counter()

    def stall(self, seconds: float) -> None:
        """Delay the next frame [s]."""
        self._late = seconds

    def open(self) -> None:
        if time.monotonic() < self._gone_until:
            self.injected["refusal"] += 1
            raise CameraError("unplugged on purpose")
        self._camera.open()

    @property
    def spec(self) -> CameraSpec:
        return self._camera.spec

    def read(self) -> Frame:
        kinds = ("drop", "stall", "skew", "nan", "incomplete", "repeat", "unplug")
        while True:
            if time.monotonic() < self._gone_until:
                raise CameraError("unplugged on purpose")
            rates = np.array([getattr(self._faults, kind) for kind in kinds])
            draw = self._rng.random()
            kind = next((kind for kind, upper in zip(kinds, rates.cumsum(), strict=True) if draw < upper), "")
            if kind == "repeat" and self._before is not None:
                self.injected[kind] += 1
                return self._before
            if self._late:
                late, self._late = self._late, 0.0
                self.injected["stall"] += 1
                self.sleep(late)
            frame = self._camera.read()
            if kind == "drop":
                self.injected[kind] += 1
                continue
            if kind == "unplug":
                self.injected[kind] += 1
                self._gone_until = time.monotonic() + self._faults.gone_seconds
                self._before = None
                raise CameraError("unplugged on purpose")
            self._before = self._changed(frame, kind)
            return self._before

    def _changed(self, frame: Frame, kind: str) -> Frame:
        if kind == "stall":
            self.injected[kind] += 1
            self.sleep(self._faults.stall_seconds)
            return replace(frame, arrival_time=time.monotonic())
        if frame.depth is None or kind not in ("skew", "nan", "incomplete"):
            return frame
        self.injected[kind] += 1
        if kind == "skew":
            return replace(frame, depth_time=frame.sensor_time - self._faults.skew_seconds)
        if kind == "incomplete":
            return replace(frame, depth=None, valid=None, depth_time=None)
        depth = frame.depth.copy()
        depth[: max(1, len(depth) // 4)] = np.nan
        return replace(frame, depth=depth)

    def close(self) -> None:
        self._camera.close()
