"""Record a run as demonstrations: observations, the policy's actions, what was sent, times and events.

The control loop hands its steps to a thread that writes them. If the disk is too slow, steps are lost and counted, but
the loop is never delayed.
"""

import json
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..calibration import Calibration
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..datasets.writer import DemoWriter, EpisodeFacts, Provenance, Splits, demo_outcome, disk_key, merge_demos
from ..envs.registry import TaskSpec
from ..errors import BadInput
from .frame_source import FrameSet
from .step_record import StepRecord, Tick

_WAITING = 64  # steps that may wait for the disk


class EpisodeRecording:
    """Writes one episode to a file; call `add` for each step and end with `close` or `discard`.

    Args:
        path: of the part.
        cameras: their names in the file, by camera of the policy.
        side: of the images [px].
    """

    def __init__(self, path: Path, cameras: Mapping[str, str], side: int) -> None:
        self._writer = DemoWriter(path)
        self._cameras, self._side = cameras, side
        self._calibrations: dict[str, Calibration] = {}  # by name in the file
        self._steps: queue.Queue[tuple[dict[str, np.ndarray], dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._events: list[dict[str, Any]] = []
        self._error: Exception | None = None
        self.lost = 0  # steps that the disk was too slow for
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def add(self, record: StepRecord) -> None:
        """Add a step; arrays are copied. A step before the first frames, or in which nothing was sent, is left out."""
        for tick in record.ticks:
            self._events += [{"step": tick.number, "at": round(tick.at, 4), "what": what} for what in happened(tick)]
        if record.frames is None or record.sent is None or self._error is not None:
            self.lost += self._error is not None
            return
        outcome, ticks = record.outcome, record.ticks
        values = {
            "actions": record.sent,
            "rewards": np.float64(outcome.reward if outcome else 0.0),
            "success": np.bool_(outcome.success if outcome else False),
            "states": record.state,
            "run/asked": record.asked.astype(np.float32),
            "run/time": np.float64(ticks[0].at),
            "run/late": np.float32(max(each.late for each in ticks)),
            "run/age": _number(ticks[0].age),
            "run/seconds": _number(ticks[0].seconds),
            "run/held": np.bool_(any(each.state != "run" for each in ticks)),
        }
        try:
            self._steps.put_nowait((self._observed(record.frames, record.proprio), values))
        except queue.Full:
            self.lost += 1

    def note(self, what: str) -> None:
        """Add an event after the last step."""
        last = self._events[-1] if self._events else {"step": 0, "at": 0.0}
        self._events.append({**last, "what": what})

    def _observed(self, frames: FrameSet, proprio: np.ndarray) -> dict[str, np.ndarray]:
        observed: dict[str, np.ndarray] = {}
        for camera, frame in frames.items():
            observed |= self._images(self._cameras[camera], frame)
        if len(proprio):
            observed["proprio"] = np.array(proprio, np.float32)
        return observed

    def _images(self, name: str, frame: Frame) -> dict[str, np.ndarray]:
        try:
            square = squared(registered(frame), self._side)
        except BadInput:  # the geometry of colour and depth is unknown: colour only
            square = squared(replace(frame, depth=None, valid=None, depth_time=None), self._side)
        if name not in self._calibrations and square.intrinsics is not None:
            pose = np.eye(4) if square.camera_to_world is None else square.camera_to_world
            self._calibrations[name] = Calibration(square.intrinsics.matrix, pose)
        images = {disk_key("rgb", (name,)): square.rgb, disk_key("depth", (name,)): square.depth}
        return {key: value.copy() for key, value in images.items() if value is not None}

    def close(self, seed: int, start: str, score: float, good: bool) -> bool:
        """Write the rest; return whether there is a file, which an episode without a step has not.

        Raises:
            OSError: if the disk is full.
        """
        self._end()
        if self._error is not None:
            self._writer.discard()
            raise self._error
        if not self._writer.steps:
            self._writer.discard()
            return False
        self._writer.close(EpisodeFacts(seed, start, score, good, self._calibrations), json.dumps(self._events))
        return True

    def discard(self) -> None:
        """Leave nothing behind."""
        self._end()
        self._writer.discard()

    def _end(self) -> None:
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            if self._error is None:
                try:
                    self._writer.add(*step)
                except Exception as error:  # the loop must not end because of it
                    self._error = error


def _number(value: float | None) -> np.float32:
    return np.float32(np.nan if value is None else value)


def happened(tick: Tick) -> list[str]:
    """Return the events of a tick, and why another action was sent than asked."""
    return [*tick.events, *tick.reasons]


class Origin(NamedTuple):
    """Where demonstrations come from."""

    robot: dict[str, Any]  # name, axes, units, actions, control_hz
    settings: dict[str, Any]  # of the command


def join_episodes(
    target: Path, parts: Sequence[Path], request: TaskSpec, cameras: Sequence[str], origin: Origin
) -> tuple[int, int]:
    """Join the parts of a run; good episodes are the train split, the rest is in no split.

    Returns:
        how many are good, and how many there are.
    """
    good = [part for part in parts if demo_outcome(part)]
    rest = [part for part in parts if part not in good]
    provenance = Provenance(request.task, asdict(request), cameras, origin.robot)
    merge_demos(target, Splits(good, rest=rest), provenance, origin.settings)
    return len(good), len(parts)


def tick_row(tick: Tick) -> str:
    """Return a tick as a line of JSON."""
    row = asdict(tick)
    for key in ("at", "late", "age", "latest_age", "seconds"):
        row[key] = None if row[key] is None else round(row[key], 5)
    return json.dumps(row) + "\n"
