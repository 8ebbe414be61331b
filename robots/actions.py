"""From chunks of actions to one command a tick: what is past is dropped, what lies between is interpolated.

Shapes: C chunk, A action.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from ..deploy.runtime.overlap import check_share, mixed
from ..envs.action_spec import ActionSpec
from .inference import Answer


class Planned(NamedTuple):
    """A policy's action for one of its steps."""

    action: np.ndarray  # (A,)
    seen: float  # when the frame behind it arrived [s]
    seconds: float  # that the policy took [s]


class ActionPlan:
    """The actions that a policy has planned and nobody has used yet.

    Args:
        n_action_steps: how many actions of a chunk are used at most; None uses all.
        chunk_blend: weight of a new chunk where an older one has planned the same step; 1 replaces.

    Raises:
        BadInput: if that is no weight.
    """

    def __init__(self, n_action_steps: int | None = None, chunk_blend: float = 1.0) -> None:
        check_share(chunk_blend)
        self.execute, self.chunk_blend = n_action_steps, chunk_blend
        self._waiting: deque[Planned] = deque()
        self.dropped = 0  # actions for steps that had passed when they came

    def __len__(self) -> int:
        return len(self._waiting)

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()

    def put(self, answer: Answer, step: int) -> None:
        """Take a chunk, whose first action was meant for the step of its observation, in place of what waits or mixed.

        Args:
            step: the policy's step now. A policy of single actions is late by what it takes, and its action is used;
                of a chunk, what was meant for the past is dropped, unless that is all of it.
        """
        assert answer.actions is not None
        chunk = answer.actions[: self.execute]
        late = max(0, step - answer.job.step) if len(chunk) > 1 else 0
        past = min(late, len(chunk) - 1)
        self.dropped += past
        chunk = chunk[past:]
        if self._waiting and self.chunk_blend < 1 and past == late:  # both plan from this step on
            chunk = mixed(np.stack([each.action for each in self._waiting]), chunk, self.chunk_blend)
        self._waiting = deque(Planned(action, answer.job.seen, answer.seconds) for action in chunk)

    def take(self) -> Planned | None:
        """Return the next action; None where there is none."""
        return self._waiting.popleft() if self._waiting else None


class Interpolation:
    """ActionSpec between a policy's steps: straight ways between targets, equal parts of relative actions.

    Args:
        commands: what an action does.
        parts: commands a step of the policy.
    """

    def __init__(self, commands: ActionSpec, parts: int) -> None:
        self.parts = parts
        self._relative = commands.relative
        self._from: np.ndarray | None = None  # the action before
        self._to: np.ndarray | None = None
        self._part = 0

    def reset(self) -> None:
        """Forget what was sent."""
        self._from = self._to = None

    def aim(self, action: np.ndarray) -> None:
        """Take a new action (A,) of the policy."""
        if self._to is not None and np.isfinite(self._to).all():
            self._from = self._to
        if self._from is None or not np.isfinite(self._from).all():
            self._from = action
        self._to, self._part = action, 0

    def next(self) -> np.ndarray | None:
        """Return the next command (A,); None once the step's way has been gone."""
        if self._to is None or self._from is None or self._part == self.parts:
            return None
        self._part += 1
        if self.parts == 1:
            return self._to
        share = self._part / self.parts
        between = self._from + share * (self._to - self._from)
        return np.where(self._relative, self._to / self.parts, between).astype(np.float32)

    def whole(self, sent: list[np.ndarray]) -> np.ndarray:
        """Return the one action (A,) that a step's commands come to: sums of relative ones, the last of the others."""
        stacked = np.stack(sent)
        return np.where(self._relative, np.clip(stacked.sum(0), -1, 1), stacked[-1]).astype(np.float32)
