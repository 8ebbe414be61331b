"""A run as a demonstration file: what was observed, what was asked, what was sent, how long it took, what happened.

The control loop hands its steps to a thread that writes them; a slow disk loses steps, which are counted, never time.
"""

import json
import queue
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration import Calibration
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..datasets.writer import DemoWriter, EpisodeFacts, Provenance, Splits, demo_outcome, disk_key, merge_demos
from ..envs.registry import TaskSpec
from ..errors import BadInput
from .step_record import StepRecord, Tick

_WAITING = 64  # steps that may wait for the disk


class EpisodeRecording:
    """One episode on its way to a file; use `add` for each step and end with `close` or `discard`.

    Args:
        path: of the part.
        camera: its name.
        side: of the images [px].
    """

    def __init__(self, path: Path, camera: str, side: int) -> None:
        self._writer = DemoWriter(path)
        self._camera, self._side = camera, side
        self._known: Calibration | None = None
        self._steps: queue.Queue[tuple[dict[str, np.ndarray], dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._events: list[dict[str, Any]] = []
        self._error: Exception | None = None
        self.lost = 0  # steps that the disk was too slow for
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def add(self, moment: StepRecord) -> None:
        """Take a step; arrays are copied. A step before the first frame, or in which nothing was sent, is left out."""
        for tick in moment.ticks:
            self._events += [{"step": tick.number, "at": round(tick.at, 4), "what": what} for what in happened(tick)]
        if moment.frame is None or moment.sent is None or self._error is not None:
            self.lost += self._error is not None
            return
        outcome, ticks = moment.outcome, moment.ticks
        values = {
            "actions": moment.sent,
            "rewards": np.float64(outcome.reward if outcome else 0.0),
            "success": np.bool_(outcome.success if outcome else False),
            "states": moment.state,
            "run/asked": moment.asked.astype(np.float32),
            "run/time": np.float64(ticks[0].at),
            "run/late": np.float32(max(each.late for each in ticks)),
            "run/age": _number(ticks[0].age),
            "run/seconds": _number(ticks[0].seconds),
            "run/held": np.bool_(any(each.state != "run" for each in ticks)),
        }
        try:
            self._steps.put_nowait((self._observed(moment.frame, moment.proprio), values))
        except queue.Full:
            self.lost += 1

    def note(self, what: str) -> None:
        """Add an event after the last step."""
        last = self._events[-1] if self._events else {"step": 0, "at": 0.0}
        self._events.append({**last, "what": what})

    def _observed(self, frame: Frame, proprio: np.ndarray) -> dict[str, np.ndarray]:
        try:
            seen = squared(registered(frame), self._side)
        except BadInput:  # the cameras' geometry is not known: colour alone
            seen = squared(replace(frame, depth=None, valid=None, depth_time=None), self._side)
        observed = {} if seen.rgb is None else {disk_key("rgb", (self._camera,)): seen.rgb.copy()}
        if seen.depth is not None:
            observed[disk_key("depth", (self._camera,))] = seen.depth.copy()
        if len(proprio):
            observed["proprio"] = np.array(proprio, np.float32)
        if self._known is None and seen.intrinsics is not None:
            pose = np.eye(4) if seen.camera_to_world is None else seen.camera_to_world
            self._known = Calibration(seen.intrinsics.matrix, pose)
        return observed

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
        cameras = {} if self._known is None else {self._camera: self._known}
        self._writer.close(EpisodeFacts(seed, start, score, good, cameras), json.dumps(self._events))
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
                except Exception as error:  # the loop must not end by this
                    self._error = error


def _number(value: float | None) -> np.float32:
    return np.float32(np.nan if value is None else value)


def happened(tick: Tick) -> list[str]:
    """Return what there is to say of a tick: events, and why what was sent is not what was asked."""
    return [*tick.events, *tick.reasons]


def join_episodes(
    target: Path, parts: Sequence[Path], request: TaskSpec, camera: str, robot: dict[str, Any], asked: dict[str, Any]
) -> tuple[int, int]:
    """Join the parts of a run; good episodes are the train split, the rest is kept in no split.

    Returns:
        how many are good, and how many there are.
    """
    good = [part for part in parts if demo_outcome(part)]
    rest = [part for part in parts if part not in good]
    provenance = Provenance(request.task, asdict(request), (camera,), robot)
    merge_demos(target, Splits(good, rest=rest), provenance, asked)
    return len(good), len(parts)


def tick_row(tick: Tick) -> str:
    """Return a tick as a line of JSON."""
    row = asdict(tick)
    for key in ("at", "late", "age", "newest", "seconds"):
        row[key] = None if row[key] is None else round(row[key], 5)
    return json.dumps(row) + "\n"
