"""Injected faults at planned times, to test how a run handles them: ``stall@2:1.0:0.6``, ``stall.rgb_wrist@0:1``."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cameras.tools.faults import FaultInjectingCamera
from ..deploy.runtime import RunningPolicy
from ..errors import BadInput, UnknownName, closest
from .emergency import EmergencyStop

HANDLING = {  # what each must lead to; the report compares it with what happened
    "stall": "a camera gives no frame: hold, then the watchdog's stop if it lasts",
    "nan": "the policy's action is not finite: hold for that step",
    "late": "inference takes too long: hold until its actions arrive, or the watchdog's stop",
    "estop": "the emergency stop is pressed: nothing is sent until it is reset",
}
_FORM = re.compile(r"(?P<kind>[a-z]+)(?:\.(?P<camera>\w+))?@(?P<episode>\d+):(?P<at>[\d.]+)(?::(?P<seconds>[\d.]+))?")


class Fault(NamedTuple):
    """One planned fault."""

    kind: str
    episode: int  # counted from 0
    at: float  # after the episode's start [s]
    seconds: float  # duration [s]; a NaN lasts one action
    camera: str = ""  # that stalls; "" is all cameras

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read KIND@EPISODE:TIME[:SECONDS], for a stall of one camera stall.CAMERA@EPISODE:TIME[:SECONDS].

        Raises:
            UnknownName: for a kind that does not exist.
            BadInput: for another form.

        >>> Fault.parse("stall@2:1.0:0.6")
        Fault(kind='stall', episode=2, at=1.0, seconds=0.6, camera='')
        >>> Fault.parse("stall.rgb_wrist@0:1").camera
        'rgb_wrist'
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise BadInput(f"fault {text!r} is not KIND@EPISODE:TIME or KIND@EPISODE:TIME:SECONDS, e.g. stall@2:1:0.6")
        kind, camera = found["kind"], found["camera"] or ""
        if kind not in HANDLING:
            raise UnknownName(f"no fault {kind!r}{closest(kind, HANDLING)}; there are: {', '.join(HANDLING)}")
        if camera and kind != "stall":
            raise BadInput(f"fault {text!r}: only a stall has a camera; leave .{camera} out")
        try:
            return cls(kind, int(found["episode"]), float(found["at"]), float(found["seconds"] or 0.5), camera)
        except ValueError as error:
            raise BadInput(f"fault {text!r}: {error}") from error


class FaultInjector:
    """Carries out the planned faults. The loop calls `tick`; the policy is wrapped.

    Args:
        faults: what shall go wrong.
        cameras: whose frames can be late, by camera.
        emergency: the stop that it presses.

    Raises:
        UnknownName: for a fault of a camera that does not exist.
    """

    def __init__(
        self, faults: Sequence[Fault], cameras: Mapping[str, FaultInjectingCamera], emergency: EmergencyStop
    ) -> None:
        for fault in faults:
            if fault.camera and fault.camera not in cameras:
                near = closest(fault.camera, cameras)
                raise UnknownName(f"no camera {fault.camera!r} to stall{near}; there are: {', '.join(cameras)}")
        self._waiting = sorted(faults, key=lambda each: (each.episode, each.at))
        self._cameras, self._emergency = cameras, emergency
        self._late = 0.0  # [s]
        self._nan_actions = 0  # still to be made NaN

    def tick(self, episode: int, at: float) -> list[Fault]:
        """Start the faults that are due `at` seconds into an episode; return them."""
        due = [each for each in self._waiting if each.episode == episode and each.at <= at]
        for fault in due:
            self._waiting.remove(fault)
            if fault.kind == "stall":
                for camera in [self._cameras[fault.camera]] if fault.camera else self._cameras.values():
                    camera.stall(fault.seconds)
            elif fault.kind == "late":
                self._late = fault.seconds
            elif fault.kind == "nan":
                self._nan_actions += 1
            else:
                self._emergency.trigger("pressed by a planned fault")
        return due

    def delay(self) -> float:
        """Return how late the next inference shall be [s]."""
        late, self._late = self._late, 0.0
        return late

    def wrap(self, policy: RunningPolicy) -> RunningPolicy:
        """Return the policy with NaN actions where planned."""
        return FaultyPolicy(policy, self)

    def next_is_nan(self) -> bool:
        """Return whether the next action shall be NaN."""
        if not self._nan_actions:
            return False
        self._nan_actions -= 1
        return True


class FaultyPolicy:
    """A policy whose actions are NaN when a `FaultInjector` says so."""

    def __init__(self, policy: RunningPolicy, injector: FaultInjector) -> None:
        self._policy, self._injector = policy, injector

    def reset(self) -> None:
        """Reset the policy."""
        self._policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the policy's actions (H, A), or NaN."""
        actions = self._policy.act(observation)
        return np.full_like(actions, np.nan) if self._injector.next_is_nan() else actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)
