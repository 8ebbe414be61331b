"""The records of a control loop: ticks, the policy's steps made of them, and how an episode ended."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .frame_source import FrameSet
from .robot import Outcome

COUNTED = (
    "deadlines missed",  # ticks that were late by more than a tenth of their period
    "resyncs",  # of these, late by a whole period
    "actions dropped",  # of chunks, for steps that had passed when they arrived
    "steps of the robot without a command",  # of a robot that continues by itself
)


class TickTime(NamedTuple):
    """When a tick is."""

    episode: int
    step: int  # of the policy
    at: float  # since the start of the episode [s]
    late: float  # [s]
    now: float  # on the robot's clock [s]


@dataclass
class Tick:
    """What happened at one tick; a line of ``ticks.jsonl``."""

    episode: int
    number: int  # of the policy's step
    at: float  # since the start of the episode [s]
    late: float  # [s]
    state: str  # "run", "hold"
    age: float | None  # of the oldest frame behind the action, when it was sent [s]
    latest_age: float | None  # age of the latest frames, the oldest of them [s]
    seconds: float | None  # inference time, if a result arrived since the last tick [s]
    asked: list[float] | None  # the policy's action
    sent: list[float] | None  # None if nothing was sent
    reasons: tuple[str, ...]  # why something else was sent
    events: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # of `COUNTED`, since the tick before


@dataclass
class StepRecord:
    """One step of the policy, for the recording."""

    frames: FrameSet | None  # the latest; their arrays are valid until the next ones are requested
    proprio: np.ndarray
    state: np.ndarray
    asked: np.ndarray  # the policy's action; NaN if there was none
    sent: np.ndarray | None  # None if nothing was sent
    ticks: list[Tick]
    outcome: Outcome | None


@dataclass
class EpisodeEnd:
    """How an episode ended."""

    why: str  # "success", "end" (of its steps), "watchdog", "estop", "control" or "remote" (lost), "asked" (to stop)
    steps: int
    outcomes: list[Outcome]
