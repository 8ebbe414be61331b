"""The policy's own thread: the loop hands it an observation and fetches the actions when they are there.

Shapes: C chunk, A action.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..deploy.runtime import RunningPolicy
from .clock import Clock


class Job(NamedTuple):
    """What to think about."""

    observation: dict[str, np.ndarray]
    step: int  # policy step that it was seen for
    seen: float  # when its frame arrived [s]
    starts: bool  # whether an episode does


class Answer(NamedTuple):
    """What came of it."""

    job: Job
    actions: np.ndarray | None  # (C, A) float32; None where the policy raised
    seconds: float  # that the policy took [s]
    error: Exception | None = None


def think(policy: RunningPolicy, job: Job, delay: float, sleep: Callable[[float], None]) -> Answer:
    """Ask a policy.

    Args:
        delay: how much longer than it takes it shall take [s].
    """
    began = time.perf_counter()
    try:
        if delay:
            sleep(delay)
        if job.starts:
            policy.reset()
        actions = np.asarray(policy.act(job.observation), np.float32)
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"a policy returns actions (chunk, A); this one returned {actions.shape}")
    except Exception as error:  # the loop says it, when the robot stands still
        return Answer(job, None, time.perf_counter() - began, error)
    return Answer(job, actions, time.perf_counter() - began)


class InferenceThread:
    """A policy in a thread of its own: one job at a time, none waits.

    Args:
        policy: only its thread calls it.
        delay: asked before each job, how long to sleep first [s]; for tests and demonstrations.
    """

    def __init__(self, policy: RunningPolicy, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._policy, self._delay = policy, delay
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._answer: Answer | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Hand over an observation, whose arrays are then the policy's; return False if it is busy."""
        with self._changed:
            if self._job is not None:
                return False
            self._job = job
            self._changed.notify_all()
            return True

    def poll(self) -> Answer | None:
        """Return the newest answer that was not fetched yet."""
        with self._changed:
            answer, self._answer = self._answer, None
            return answer

    def ready(self, timeout: float) -> bool:
        """Wait until the policy has no work; return whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: self._job is None, timeout)

    def settle(self, timeout: float) -> bool:
        """Wait until nothing is being computed; return whether that came true."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._job is None, timeout)
            self._answer = None
            return done

    def close(self) -> None:
        """End the thread; a policy that does not return is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._job is not None)
                if self._closing:
                    return
                job = self._job
            assert job is not None
            answer = think(self._policy, job, self._delay(), time.sleep)
            with self._changed:
                self._job, self._answer = None, answer
                self._changed.notify_all()


class InferenceInStep:
    """The same in stepped time: computing takes no time, and `delay` is time on the clock."""

    def __init__(self, policy: RunningPolicy, clock: Clock, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._policy, self._clock, self._delay = policy, clock, delay
        self._answer: Answer | None = None
        self._ready = 0.0

    def submit(self, job: Job) -> bool:
        """Compute at once; return False if the last answer is still awaited."""
        if self._answer is not None and self._clock.now() < self._ready:
            return False
        delay = self._delay()
        answer = think(self._policy, job, 0.0, time.sleep)
        self._answer = answer._replace(seconds=answer.seconds + delay)
        self._ready = self._clock.now() + delay
        return True

    def poll(self) -> Answer | None:
        """Return the answer, once its time has come."""
        if self._answer is None or self._clock.now() < self._ready:
            return None
        answer, self._answer = self._answer, None
        return answer

    def ready(self, timeout: float) -> bool:
        """There is nothing to wait for."""
        return True

    def settle(self, timeout: float) -> bool:
        """Forget what is awaited."""
        self._answer = None
        return True

    def close(self) -> None:
        """Nothing runs."""
