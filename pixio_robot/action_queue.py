"""Action chunks on their way to a robot: which action is due at a control step, and what to do where chunks overlap.

A policy predicts the next H actions at once (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost
Hardware" (ACT), arXiv 2304.13705, section IV-A). The queue holds them by control step. One queue serves one episode.

Shapes: H horizon (actions in a chunk), A action.
"""

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from .errors import BadInput


class QueuedAction(NamedTuple):
    """One action for one control step."""

    action: np.ndarray  # (A,) float32
    tag: Any  # what was given with the chunk, e.g. when its observation was made


def check_n_action_steps(n_action_steps: int | None, horizon: int) -> int:
    """Return how many actions of each chunk are used.

    Args:
        n_action_steps: as asked; None uses all.
        horizon: H of the policy.

    Raises:
        BadInput: unless it is from 1 to `horizon`.

    >>> check_n_action_steps(None, 8), check_n_action_steps(2, 8)
    (8, 2)
    """
    if n_action_steps is None:
        return horizon
    if not 1 <= n_action_steps <= horizon:
        raise BadInput(f"n_action_steps={n_action_steps}: the policy's horizon is {horizon}; give 1 to {horizon}")
    return n_action_steps


class ActionQueue:
    """The actions that a policy has planned and that have not been used yet.

    Actions for steps that have passed when a chunk arrives are dropped. By default a new chunk replaces what is queued.
    With `blend` below 1 the two are averaged where both plan the same step (LeRobot's rule for asynchronous inference:
    0.3 of the old action and 0.7 of the new one, ``blend=0.7``). With `ensemble` every prediction for a step counts
    (ACT's temporal ensemble).

    Args:
        n_action_steps: how many actions of each chunk are used at most; None uses all.
        blend: weight of the new chunk where an older one has planned the same step, above 0; 1 replaces. Old values
            that are not finite are ignored.
        ensemble: m of ACT's temporal ensemble. An action is the mean of all predictions for its step, weighted by
            exp(-m * i), where i = 0 is the oldest. ACT uses 0.01. Call the policy at every step.
        keep_late: use the last action of a chunk even if all its steps have passed. A policy of single actions (H = 1)
            is always late by its inference time, and its action is used. If False such a chunk is dropped.

    Raises:
        BadInput: if a number is out of range, or both `blend` and `ensemble` are given.

    >>> queue = ActionQueue(blend=0.7)
    >>> queue.put(np.array([[0.0], [10.0], [20.0]]), step=0)
    >>> float(queue.pop().action[0])
    0.0
    >>> queue.put(np.array([[0.0], [20.0], [30.0]]), step=0)  # one step late: its first action is dropped
    >>> [round(float(queue.pop().action[0]), 2) for _ in range(len(queue))], queue.dropped
    ([17.0, 27.0], 1)
    """

    def __init__(
        self,
        n_action_steps: int | None = None,
        blend: float = 1.0,
        ensemble: float | None = None,
        keep_late: bool = True,
    ) -> None:
        if n_action_steps is not None and n_action_steps < 1:
            raise BadInput(f"n_action_steps={n_action_steps}: use at least 1 action of each chunk")
        if not 0 < blend <= 1:
            raise BadInput(f"chunk_blend={blend} is the weight of a new chunk: above 0 and at most 1, which replaces")
        if ensemble is not None and not (math.isfinite(ensemble) and blend == 1):
            raise BadInput(f"ensemble={ensemble} must be finite, and excludes chunk_blend={blend}; give one of the two")
        self.n_action_steps, self.blend, self.ensemble, self.keep_late = n_action_steps, blend, ensemble, keep_late
        self.step = 0  # the control step that `pop` returns the action of
        self.dropped = 0  # actions whose step had passed when their chunk arrived
        self._steps: deque[list[QueuedAction]] = deque()  # predictions for steps `step`, `step` + 1, ..., oldest first

    def __len__(self) -> int:
        """Return how many steps are planned from now on."""
        return len(self._steps)

    def clear(self) -> None:
        """Forget all actions. The next step is step 0; `dropped` is kept."""
        self._steps.clear()
        self.step = 0

    def steps_until_due(self) -> int:
        """Return after how many further steps the next chunk is needed; 0 is now, which an ensemble always returns."""
        return 0 if self.ensemble is not None else len(self._steps)

    def put(self, chunk: np.ndarray, step: int, tag: Any = None) -> None:
        """Add a chunk of actions.

        Args:
            chunk: (H, A).
            step: the control step that its first action is meant for, i.e. that of its observation.
            tag: anything; it comes back with each of its actions.

        Raises:
            BadInput: if the chunk is empty or has another shape, or is meant for a later step than the present one.
        """
        if chunk.ndim != 2 or not len(chunk):
            raise BadInput(f"a chunk of actions has the shape (H, A) with H at least 1; got {chunk.shape}")
        if step > self.step:
            raise BadInput(f"a chunk for step {step} at step {self.step}: put it when its first step is due")
        chunk = np.asarray(chunk, np.float32)[: self.n_action_steps]
        late = self.step - step
        if self.keep_late and len(chunk) == 1:
            late = 0
        skipped = min(late, len(chunk) - 1 if self.keep_late else len(chunk))
        self.dropped += skipped
        new = [QueuedAction(action, tag) for action in chunk[skipped:]]
        if self.ensemble is not None:
            for place, queued in enumerate(new):
                if place == len(self._steps):
                    self._steps.append([])
                self._steps[place].append(queued)
            return
        if self.blend < 1 and skipped == late:  # otherwise the chunk's last action was meant for an earlier step
            for place, (old, queued) in enumerate(zip(self._steps, new, strict=False)):
                new[place] = queued._replace(action=_blended(old[-1].action, queued.action, self.blend))
        self._steps = deque([queued] for queued in new)

    def pop(self) -> QueuedAction:
        """Return the action of the present step, and advance to the next step.

        Raises:
            BadInput: if none is queued; see `skip`.
        """
        if not self._steps:
            raise BadInput(f"no action is queued for step {self.step}: put a chunk first, or skip the step")
        predictions = self._steps.popleft()
        self.step += 1
        if self.ensemble is None or len(predictions) == 1:
            return predictions[-1]
        action = _ensembled(np.stack([each.action for each in predictions]), self.ensemble)
        return QueuedAction(action, predictions[-1].tag)

    def skip(self) -> None:
        """Advance to the next step without an action; what was queued for this one is forgotten."""
        if self._steps:
            self._steps.popleft()
        self.step += 1


def _blended(old: np.ndarray, new: np.ndarray, weight: float) -> np.ndarray:
    """Return `new` averaged with the finite values of `old`, (A,)."""
    return np.where(np.isfinite(old), (1 - weight) * old + weight * new, new).astype(np.float32)


def _ensembled(predictions: np.ndarray, m: float) -> np.ndarray:
    """Return the weighted mean (A,) of the predictions (n, A), oldest first; values that are not finite are ignored."""
    finite = np.isfinite(predictions)
    weights = np.exp(-m * np.arange(len(predictions)))[:, None] * finite
    total = weights.sum(0)
    mean = (weights * np.where(finite, predictions, 0)).sum(0) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, np.nan).astype(np.float32)
