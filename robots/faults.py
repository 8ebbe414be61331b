"""Faults on purpose, at planned moments, to see that each ends as it should: ``stall@2:1.0:0.6``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cameras.tools.faults import FaultInjectingCamera
from ..deploy.runtime.policy import Policy
from ..errors import BadInput, UnknownName, closest
from .emergency import EmergencyStop

HANDLING = {  # what each must lead to; the report compares it with what happened
    "stall": "the camera gives no frame: hold, then the watchdog's stop if it lasts",
    "nan": "the policy's action is not a number: hold for that step",
    "late": "inference takes too long: hold until its actions are there, or the watchdog's stop",
    "estop": "the emergency stop is pressed: nothing is sent until it is reset",
}
_FORM = re.compile(r"(?P<kind>[a-z]+)@(?P<episode>\d+):(?P<at>[\d.]+)(?::(?P<seconds>[\d.]+))?")


class Fault(NamedTuple):
    """One planned fault."""

    kind: str
    episode: int  # counted from 0
    at: float  # after its beginning [s]
    seconds: float  # that it lasts [s]; a NaN lasts one action

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read KIND@EPISODE:TIME[:SECONDS].

        Raises:
            UnknownName: for a kind that does not exist.
            BadInput: for another form.

        >>> Fault.parse("stall@2:1.0:0.6")
        Fault(kind='stall', episode=2, at=1.0, seconds=0.6)
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise BadInput(f"fault {text!r} is not KIND@EPISODE:TIME or KIND@EPISODE:TIME:SECONDS, e.g. stall@2:1:0.6")
        kind = found["kind"]
        if kind not in HANDLING:
            raise UnknownName(f"no fault {kind!r}{closest(kind, HANDLING)}; there are: {', '.join(HANDLING)}")
        try:
            return cls(kind, int(found["episode"]), float(found["at"]), float(found["seconds"] or 0.5))
        except ValueError as error:
            raise BadInput(f"fault {text!r}: {error}") from error


class FaultInjector:
    """Carries the planned faults out. It is asked at every tick and stands around the policy.

    Args:
        faults: what shall go wrong.
        camera: whose frames can be late.
        emergency: the latch it presses.
    """

    def __init__(self, faults: Sequence[Fault], camera: FaultInjectingCamera, emergency: EmergencyStop) -> None:
        self._waiting = sorted(faults, key=lambda each: (each.episode, each.at))
        self._camera, self._emergency = camera, emergency
        self._late = 0.0
        self._spoilt = 0

    def tick(self, episode: int, at: float) -> list[Fault]:
        """Begin the faults that are due `at` seconds into an episode; return them."""
        due = [each for each in self._waiting if each.episode == episode and each.at <= at]
        for fault in due:
            self._waiting.remove(fault)
            if fault.kind == "stall":
                self._camera.stall(fault.seconds)
            elif fault.kind == "late":
                self._late = fault.seconds
            elif fault.kind == "nan":
                self._spoilt += 1
            else:
                self._emergency.trigger("pressed by a planned fault")
        return due

    def delay(self) -> float:
        """Return how late the next inference shall be [s]."""
        late, self._late = self._late, 0.0
        return late

    def around(self, policy: Policy) -> Policy:
        """Return the policy with an action that is no number now and then."""
        return FaultyPolicy(policy, self)

    def spoils(self) -> bool:
        """Return whether the next action shall be spoilt."""
        if not self._spoilt:
            return False
        self._spoilt -= 1
        return True


class FaultyPolicy:
    def __init__(self, policy: Policy, saboteur: FaultInjector) -> None:
        self._policy, self._saboteur = policy, saboteur

    def reset(self) -> None:
        self._policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        actions = self._policy.act(observation)
        return np.full_like(actions, np.nan) if self._saboteur.spoils() else actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)
