"""What a control loop tells of itself: ticks, the policy's steps made of them, and how an episode ended."""

from dataclasses import dataclass, field

import numpy as np

from ..cameras.frame import Frame
from .robot import Outcome

COUNTED = (
    "deadlines missed",  # ticks that came late by more than a tenth of their period
    "new beats",  # of these, late by a whole period
    "actions dropped",  # of chunks, for steps that had passed when they came
    "steps of the robot without a command",  # of one that goes on by itself
)


@dataclass
class Tick:
    """What happened at one tick."""

    episode: int
    number: int  # of the policy's step
    at: float  # since the episode's beginning [s]
    late: float  # [s]
    state: str  # "run", "hold"
    age: float | None  # of the frame behind the action, when it was sent [s]
    newest: float | None  # age of the newest frame [s]
    seconds: float | None  # that the policy took, where an answer came since the last tick [s]
    asked: list[float] | None  # by the policy
    sent: list[float] | None  # None where nothing was
    reasons: tuple[str, ...]  # why something else was sent
    events: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # of `COUNTED`, since the tick before


@dataclass
class StepRecord:
    """One step of the policy, for the recording."""

    frame: Frame | None  # the newest; its arrays are valid until the next one is looked for
    proprio: np.ndarray
    state: np.ndarray
    asked: np.ndarray  # NaN where there was nothing
    sent: np.ndarray | None  # None where nothing was
    ticks: list[Tick]
    outcome: Outcome | None


@dataclass
class EpisodeEnd:
    """How an episode ended."""

    why: str  # "success", "end" (of its steps), "watchdog", "estop", "control" or "remote" (lost), "asked" (to stop)
    steps: int
    outcomes: list[Outcome]
