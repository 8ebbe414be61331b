"""Run a policy in its own thread: the loop submits an observation and polls for the actions.

Shapes: H horizon, A action.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..deploy.runtime import RunningPolicy
from .clock import Clock


class InferenceRequest(NamedTuple):
    """What a policy is to act on."""

    observation: dict[str, np.ndarray]
    step: int  # policy step that it was observed for
    frame_time: float  # when its oldest frame arrived [s]
    is_first: bool  # whether it is the first of an episode


class InferenceResult(NamedTuple):
    """What a policy returned."""

    request: InferenceRequest
    actions: np.ndarray  # (H, A) float32; empty where the policy raised
    seconds: float  # inference time [s]
    error: Exception | None = None


def infer(
    policy: RunningPolicy, request: InferenceRequest, delay: float, sleep: Callable[[float], None]
) -> InferenceResult:
    """Call a policy.

    Args:
        delay: time to sleep first [s].
    """
    began = time.perf_counter()
    try:
        if delay:
            sleep(delay)
        if request.is_first:
            policy.reset()
        actions = np.asarray(policy.act(request.observation), np.float32)
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"a policy returns actions (H, A); this one returned {actions.shape}")
    except Exception as error:  # the loop raises it, once the robot has stopped
        return InferenceResult(request, np.zeros((0, 0), np.float32), time.perf_counter() - began, error)
    return InferenceResult(request, actions, time.perf_counter() - began)


class InferenceThread:
    """A policy in its own thread: one request at a time, none waits in a queue.

    Args:
        policy: only its thread calls it.
        delay: called before each request, how long to sleep first [s]; for tests and demonstrations.
    """

    def __init__(self, policy: RunningPolicy, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._policy, self._delay = policy, delay
        self._changed = threading.Condition()
        self._request: InferenceRequest | None = None
        self._result: InferenceResult | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: InferenceRequest) -> bool:
        """Hand over an observation, whose arrays then belong to the policy; return False if it is busy."""
        with self._changed:
            if self._request is not None:
                return False
            self._request = request
            self._changed.notify_all()
            return True

    def poll(self) -> InferenceResult | None:
        """Return the latest result that was not returned yet."""
        with self._changed:
            result, self._result = self._result, None
            return result

    def wait_idle(self, timeout: float) -> bool:
        """Wait until the policy has no request, at most `timeout` [s]; return whether it has none."""
        with self._changed:
            return self._changed.wait_for(lambda: self._request is None, timeout)

    def discard(self, timeout: float) -> bool:
        """Wait until the policy has no request, and discard its result; return whether it has none."""
        with self._changed:
            idle = self._changed.wait_for(lambda: self._request is None, timeout)
            self._result = None
            return idle

    def close(self) -> None:
        """End the thread; a policy that does not return is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._request is not None)
                request = self._request
                if self._closing or request is None:
                    return
            result = infer(self._policy, request, self._delay(), time.sleep)
            with self._changed:
                self._request, self._result = None, result
                self._changed.notify_all()


class InferenceInStep:
    """The same in stepped time: computing takes no time, and `delay` is time on the clock."""

    def __init__(self, policy: RunningPolicy, clock: Clock, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._policy, self._clock, self._delay = policy, clock, delay
        self._result: InferenceResult | None = None
        self._ready = 0.0

    def submit(self, request: InferenceRequest) -> bool:
        """Compute at once; return False if the last result has not been polled and is not due yet."""
        if self._result is not None and self._clock.now() < self._ready:
            return False
        delay = self._delay()
        result = infer(self._policy, request, 0.0, time.sleep)
        self._result = result._replace(seconds=result.seconds + delay)
        self._ready = self._clock.now() + delay
        return True

    def poll(self) -> InferenceResult | None:
        """Return the result once it is due."""
        if self._result is None or self._clock.now() < self._ready:
            return None
        result, self._result = self._result, None
        return result

    def wait_idle(self, timeout: float) -> bool:
        """Return True: nothing is computed in the background."""
        return True

    def discard(self, timeout: float) -> bool:
        """Discard the result."""
        self._result = None
        return True

    def close(self) -> None:
        """Do nothing: there is no thread."""
