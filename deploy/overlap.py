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

from ..action_queue import ActionQueue
from ..errors import BadInput, RemoteError
from .runtime import RunningPolicy


class Overlapped:
    """A policy whose chunks are computed in the background; a `RunningPolicy` that gives one action a control step.

    Args:
        policy: of chunks; local or remote. It sees the observations of some steps only.
        ask_at: share of a chunk that is left when the next one is asked for.
        chunk_blend: weight of a new chunk, as `blend` of `ActionQueue`.
        timeout: longest wait where no action is left, and for a reset [s].

    Raises:
        BadInput: if the policy's memory needs every observation, or a number is out of range.
    """

    def __init__(
        self, policy: RunningPolicy, ask_at: float = 0.5, chunk_blend: float = 0.7, timeout: float = 10.0
    ) -> None:
        self.queue = ActionQueue(blend=chunk_blend, keep_late=False)
        if not 0 <= ask_at <= 1:
            raise BadInput(f"ask_at={ask_at} is the share of a chunk that is left: 0 to 1")
        manifest = getattr(policy, "manifest", None)
        if manifest is not None and (frames := max((each.frames for each in manifest.memory), default=1)) > 1:
            raise BadInput(
                f"this policy looks at {frames} frames in a row and would miss some; train it with "
                "embedding.frames=single, or call it at every step"
            )
        self.policy, self.ask_at, self.timeout = policy, ask_at, timeout
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
        self.queue.clear()
        self.policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action of this control step, (1, A) float32; waits only where no action is left.

        Raises:
            RemoteError: if there is none within the time-out.
        """
        if self._asked is not None and self._asked[1].done():
            self._take()
        if self._asked is None and len(self.queue) <= self.ask_at * self._length:
            self._ask(observation)
        while not len(self.queue):
            if self._asked is None:  # a chunk that was wholly in the past
                self._ask(observation)
            self._take()
        return self.queue.pop().action[None]

    def close(self) -> None:
        """End the thread; the policy stays open."""
        self._worker.shutdown(cancel_futures=True)

    def __enter__(self) -> "Overlapped":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, observation: Mapping[str, np.ndarray]) -> None:
        seen = {name: np.array(value) for name, value in observation.items()}  # the caller may write into its own
        self._asked = self.queue.step, self._worker.submit(self.policy.act, seen)

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
        self.queue.put(chunk, since)
