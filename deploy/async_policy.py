"""Asynchronous inference for a custom control loop: the next chunk is computed while the present one is executed.

LeRobot's rule (Shukor et al., "SmolVLA", 2025): request a new chunk when a share of the present one is left; drop its
actions for steps that have passed; where both plan a step, take 0.3 of the old action and 0.7 of the new one.

Shapes: H horizon, A action.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from types import TracebackType

import numpy as np

from ..action_queue import ActionQueue
from ..errors import BadInput, RemoteError
from .runtime import RunningPolicy


class AsyncPolicy:
    """A policy that is computed in the background; a `RunningPolicy` that returns one action per control step.

    Args:
        policy: local or remote. It gets the observations of some steps only.
        request_at: share of a chunk that is left when the next one is requested.
        chunk_blend: weight of a new chunk, as `blend` of `ActionQueue`.
        timeout: longest wait if no action is left, and for a reset [s].

    Raises:
        BadInput: if the policy needs every observation, or a number is out of range.
    """

    def __init__(
        self, policy: RunningPolicy, request_at: float = 0.5, chunk_blend: float = 0.7, timeout: float = 10.0
    ) -> None:
        self.queue = ActionQueue(blend=chunk_blend, keep_late=False)
        if not 0 <= request_at <= 1:
            raise BadInput(f"request_at={request_at} is the share of a chunk that is left: 0 to 1")
        manifest = getattr(policy, "manifest", None)
        memory = [] if manifest is None else manifest.memory
        if any(each.name.startswith("memory.") for each in memory):
            raise BadInput("this policy remembers every observation and would miss some; call it at every step")
        if (frames := max((each.frames for each in memory), default=1)) > 1:
            raise BadInput(
                f"this policy observes {frames} frames in a row and would miss some; train it with "
                "observation.steps=1, or call it at every step"
            )
        self.policy, self.request_at, self.timeout = policy, request_at, timeout
        self._worker = ThreadPoolExecutor(1, "policy")
        self._requested: tuple[int, Future[np.ndarray]] | None = None
        self._length = 0  # of the last chunk

    def reset(self) -> None:
        """Forget the past: chunks that were requested before are dropped.

        Raises:
            RemoteError: if that is not answered within the time-out.
        """
        if self._requested is not None:
            try:
                self._requested[1].exception(self.timeout)  # wait for its end, ignore its result
            except Late as error:
                raise RemoteError(
                    f"the chunk requested before is still being computed after {self.timeout:g} s"
                ) from error
            self._requested = None
        self.queue.clear()
        self.policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action of this control step, (1, A) float32; waits only if no action is left.

        Raises:
            RemoteError: if none arrives within the time-out.
        """
        if self._requested is not None and self._requested[1].done():
            self._receive()
        if self._requested is None and len(self.queue) <= self.request_at * self._length:
            self._request(observation)
        while not len(self.queue):
            if self._requested is None:  # all steps of the last chunk had passed
                self._request(observation)
            self._receive()
        return self.queue.pop().action[None]

    def close(self) -> None:
        """End the thread; the policy stays open."""
        self._worker.shutdown(cancel_futures=True)

    def __enter__(self) -> "AsyncPolicy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _request(self, observation: Mapping[str, np.ndarray]) -> None:
        copied = {name: np.array(value) for name, value in observation.items()}  # the caller may overwrite its arrays
        self._requested = self.queue.step, self._worker.submit(self.policy.act, copied)

    def _receive(self) -> None:
        if self._requested is None:
            return
        step, answer = self._requested
        try:
            chunk = answer.result(self.timeout)
        except Late as error:
            raise RemoteError(f"no action is left, and no chunk came within {self.timeout:g} s") from error
        finally:
            if answer.done():
                self._requested = None
        self._length = len(chunk)
        self.queue.put(chunk, step)
