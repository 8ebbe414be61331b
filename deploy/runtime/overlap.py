"""Chunks that overlap: the next one is computed while the present one plays, and where both speak they are merged.

The rule is LeRobot's for asynchronous inference (Shukor et al., "SmolVLA", 2025, and its code's default): ask again
when the share of a chunk that is left falls to a threshold; of a new chunk drop what is in the past; where old and new
both plan a step, take 0.3 of the old action and 0.7 of the new one; what the new one does not reach is dropped.

Shapes: C chunk, A action.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from types import TracebackType

import numpy as np

from ...errors import BadInput, RemoteError
from .policy import Policy


def mixed(old: np.ndarray, new: np.ndarray, chunk_blend: float) -> np.ndarray:
    """Return what is planned when a chunk comes: `new` (C, A), in the steps of `old` (O, A) too mixed with that.

    Args:
        old: what was planned, from the same step on; an action of it that is no number is left out.
        chunk_blend: weight of the new chunk, above 0; 1 replaces.
    """
    both = min(len(old), len(new))
    ours, theirs = new[:both], old[:both]
    mixture = np.where(np.isfinite(theirs), (1 - chunk_blend) * theirs + chunk_blend * ours, ours)
    return np.concatenate([mixture, new[both:]]).astype(np.float32)


def check_share(chunk_blend: float) -> None:
    """Refuse a weight that is none.

    Raises:
        BadInput: unless it is above 0 and at most 1.
    """
    if not 0 < chunk_blend <= 1:
        raise BadInput(f"chunk_blend={chunk_blend} is the weight of a new chunk: above 0, at most 1, which replaces")


class Plan:
    """Actions that are still to be played, by control step.

    Args:
        chunk_blend: weight of a new chunk where an older one has planned the same step; 1 replaces.
    """

    def __init__(self, chunk_blend: float = 0.7) -> None:
        self.chunk_blend = chunk_blend
        self.clear()

    def clear(self) -> None:
        """Forget everything; the next step is number 0."""
        self.step = 0
        self._actions: list[np.ndarray] = []  # of steps step, step + 1, ...

    @property
    def left(self) -> int:
        """How many steps are planned."""
        return len(self._actions)

    def merge(self, chunk: np.ndarray, since: int) -> None:
        """Take a chunk (C, A) whose first action is of step `since`."""
        old = np.array(self._actions).reshape(self.left, chunk.shape[1])
        self._actions = [*mixed(old, chunk[max(0, self.step - since) :], self.chunk_blend)]

    def pop(self) -> np.ndarray:
        """Return the action (A,) of this step and go to the next one."""
        self.step += 1
        return self._actions.pop(0)


class Overlapped:
    """A policy whose chunks are computed in the background; a `Policy` that gives one action a control step.

    Args:
        policy: of chunks; local or remote. It sees the observations of some steps only.
        ask_at: share of a chunk that is left when the next one is asked for.
        chunk_blend: as `Plan` takes it.
        timeout: longest wait where no action is left, and for a reset [s].

    Raises:
        BadInput: if the policy's memory needs every observation, or a number is out of range.
    """

    def __init__(self, policy: Policy, ask_at: float = 0.5, chunk_blend: float = 0.7, timeout: float = 10.0) -> None:
        check_share(chunk_blend)
        if not 0 <= ask_at <= 1:
            raise BadInput(f"ask_at={ask_at} is the share of a chunk that is left: 0 to 1")
        card = getattr(policy, "card", None)
        if card is not None and (frames := max((each.frames for each in card.memory), default=1)) > 1:
            raise BadInput(
                f"this policy looks at {frames} frames in a row and would miss some; train it with "
                "embedding.frames=single, or call it at every step"
            )
        self.policy, self.ask_at, self.timeout = policy, ask_at, timeout
        self.plan = Plan(chunk_blend)
        self._worker = ThreadPoolExecutor(1, "policy")
        self._asked: tuple[int, Future[np.ndarray]] | None = None
        self._length = 0  # of the last chunk

    def reset(self) -> None:
        """Forget the past: what was asked before is not played.

        Raises:
            RemoteError: if that is not answered within the time-out.
        """
        if self._asked is not None:
            try:
                self._asked[1].exception(self.timeout)  # its end is awaited, not its answer
            except Late as error:
                raise RemoteError(f"what was asked before is still computed after {self.timeout:g} s") from error
            self._asked = None
        self.plan.clear()
        self.policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action of this control step, (1, A) float32; waits only where no action is left.

        Raises:
            RemoteError: if there is none within the time-out.
        """
        if self._asked is not None and self._asked[1].done():
            self._take()
        if self._asked is None and self.plan.left <= self.ask_at * self._length:
            self._ask(observation)
        while not self.plan.left:
            if self._asked is None:  # a chunk that was wholly in the past
                self._ask(observation)
            self._take()
        return self.plan.pop()[None]

    def close(self) -> None:
        """End the thread; the policy stays open."""
        self._worker.shutdown(cancel_futures=True)

    def __enter__(self) -> "Overlapped":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, observation: Mapping[str, np.ndarray]) -> None:
        seen = {name: np.array(value) for name, value in observation.items()}  # the caller may write into its own
        self._asked = self.plan.step, self._worker.submit(self.policy.act, seen)

    def _take(self) -> None:
        assert self._asked is not None
        since, answer = self._asked
        try:
            chunk = answer.result(self.timeout)
        except Late as error:
            raise RemoteError(f"no action is left, and no chunk came within {self.timeout:g} s") from error
        finally:
            if answer.done():
                self._asked = None
        self._length = len(chunk)
        self.plan.merge(chunk, since)
