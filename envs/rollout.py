"""Many episodes at once, in spawned workers; which episodes is decided before the first one runs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TypeVar

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from ..errors import DataError, WorkerLost
from .registry import TaskSpec

Item = TypeVar("Item")
Result = TypeVar("Result")
# from observations (B, ...), which environments just started (B,) bool and which run (B,) bool, to actions (B, A)
Act = Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]
_LOST = (
    "a simulator's process ended in mid-episode, killed from outside, often for lack of memory; finished episodes are "
    "kept: run the same command again, with fewer environments or jobs if it was memory"
)


@dataclass(frozen=True)
class EpisodePlan:
    """An episode known before it runs."""

    index: int
    seed: int
    start: str  # digest of the simulator's state after reset with this seed


@dataclass
class EpisodeResult:
    """What an episode came to."""

    plan: EpisodePlan
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)  # per step, not latched
    score: float = 0.0  # what the suite counts, 0 to 100
    wall_s: float = 0.0  # from its reset to its end; episodes of one batch share the machine


def plan_episodes(request: TaskSpec, count: int, first_seed: int) -> list[EpisodePlan]:
    """Return the fixed list of episodes with seeds first_seed, first_seed + 1, ... and the starts these seeds give."""
    env = replace(request, observe=("proprio",)).make()
    plans = []
    for index in range(count):
        _, info = env.reset(seed=first_seed + index)
        plans.append(EpisodePlan(index, first_seed + index, info["start"]))
    env.close()
    return plans


@contextmanager
def starting_workers() -> Iterator[None]:
    """Give workers started inside what they need from birth.

    They draw with one thread, since together they fill the cores, and ignore Ctrl-C, which is the parent's to handle.
    """
    threads = os.environ.get("LP_NUM_THREADS")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere signals cannot be set
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        if threads is None:
            del os.environ["LP_NUM_THREADS"]


def vector_env(request: TaskSpec, count: int, processes: bool) -> AsyncVectorEnv | SyncVectorEnv:
    """Return `count` environments that are reset by hand; each in a spawned worker, or all in this process.

    Arrays that they return are valid until the next step.
    """
    makers, mode = [request.make] * count, AutoresetMode.DISABLED
    if not processes:
        return SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    with starting_workers():
        return AsyncVectorEnv(makers, copy=False, context="spawn", autoreset_mode=mode)


class BatchRollout:
    """Runs planned episodes in lockstep, several environments wide, so that a policy sees whole batches.

    Args:
        request: the environment.
        plans: the episodes; each runs once, in this order, whatever the lengths of the others.
        width: environments in parallel, each in a worker.
        processes: False runs them here, which is sooner done for a few episodes without images.

    Use as a context manager; `seconds` holds physics and rendering afterwards, mean over workers [s].
    """

    def __init__(self, request: TaskSpec, plans: Sequence[EpisodePlan], width: int, processes: bool = True) -> None:
        self.request, self.plans, self.processes = request, list(plans), processes
        self.width = max(1, min(width, len(self.plans)))
        self.seconds: dict[str, float] = {}
        self._envs: AsyncVectorEnv | SyncVectorEnv | None = None

    def __enter__(self) -> "BatchRollout":
        self._envs = vector_env(self.request, self.width, self.processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._envs is not None
        if kind is None:
            spent = self._envs.get_attr("seconds")
            self.seconds = {key: sum(each[key] for each in spent) / self.width for key in spent[0]}
        if kind is None or isinstance(self._envs, SyncVectorEnv):
            self._envs.close()
            return
        for process in self._envs.processes:  # not waited for: a step may be pending, a worker may be dead
            process.terminate()
            process.join()
        self._envs._state = AsyncState.DEFAULT
        self._envs.close(terminate=True)

    def run(
        self,
        act: Act,
        watch: Callable[[EpisodePlan, dict[str, np.ndarray]], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Iterator[EpisodeResult]:
        """Yield episodes as they end.

        Args:
            act: the policy; rows of environments that only wait for the others are ignored.
            watch: sees each episode's observation at every step.
            on_step: told how many environments made a step.

        Raises:
            DataError: if a seed no longer gives the planned start.
            WorkerLost: if an environment's process was killed.
        """
        envs = self._envs
        assert envs is not None, "enter the context first"
        waiting = list(reversed(self.plans))
        running: list[EpisodeResult | None] = [None] * self.width
        began = np.zeros(self.width)
        free = np.ones(self.width, bool)
        observations: dict[str, np.ndarray] = {}
        while True:
            starting = self._start(free, waiting, running)
            if starting.any():
                observations = self._reset(envs, starting, running)
                began[starting] = perf_counter()
            if not any(running):
                return
            if watch is not None:
                for row, result in enumerate(running):
                    if result is not None:
                        watch(result.plan, {key: value[row] for key, value in observations.items()})
            actions = act(observations, starting, np.array([result is not None for result in running]))
            try:
                observations, rewards, terminated, truncated, infos = envs.step(actions)
            except (EOFError, ConnectionError) as error:
                raise WorkerLost(f"{self.request.task}: {_LOST}") from error
            if on_step is not None:
                on_step(sum(result is not None for result in running))
            free = np.zeros(self.width, bool)
            for row, result in enumerate(running):
                if result is None:
                    continue
                result.rewards.append(float(rewards[row]))
                result.success.append(bool(infos["success"][row]))
                result.score = float(infos["score"][row])
                if terminated[row] or truncated[row]:
                    result.wall_s = perf_counter() - began[row]
                    running[row], free[row] = None, True
                    yield result

    def _start(self, free: np.ndarray, waiting: list[EpisodePlan], running: list[EpisodeResult | None]) -> np.ndarray:
        """Give free environments the next planned episodes; return which of them start."""
        starting = np.zeros(self.width, bool)
        for row in np.flatnonzero(free):
            if waiting:
                running[row] = EpisodeResult(waiting.pop())
                starting[row] = True
        return starting

    def _reset(
        self, envs: AsyncVectorEnv | SyncVectorEnv, starting: np.ndarray, running: list[EpisodeResult | None]
    ) -> dict[str, np.ndarray]:
        seeds: list[int | None] = [None if result is None else result.plan.seed for result in running]
        observations, infos = envs.reset(seed=seeds, options={"reset_mask": starting})
        for row in np.flatnonzero(starting):
            result = running[row]
            assert result is not None
            if infos["start"][row] != result.plan.start:
                raise DataError(
                    f"{self.request.task}: seed {result.plan.seed} started at {infos['start'][row]}, planned was "
                    f"{result.plan.start}; the simulator's version changed, make a new plan"
                )
        return observations


def in_workers(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) in the order of `items`, computed in spawned worker processes.

    `function` must be importable; it runs without torch unless it imports it.
    """
    items = list(items)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, min(workers, len(items))), spawn, initializer=_end_with_parent)
    try:
        with starting_workers():
            results = pool.map(function, items)
        yield from zip(items, results, strict=True)
    except BrokenProcessPool as error:
        raise WorkerLost(_LOST) from error
    except BaseException:  # do not wait for episodes that nobody wants any more
        _end_at_once(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Have this worker end with the process that started it, also when that one is killed; else it waits for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_at_once(pool: ProcessPoolExecutor) -> None:
    """Terminate a pool's workers. The pool's own thread may then stumble over cancelled futures; nobody need know."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    finally:
        threading.excepthook = hook


def run_expert(request: TaskSpec, plan: EpisodePlan, expert: str | None = None) -> EpisodeResult:
    """Run one episode with the task's expert, or that of a file, and no images; a function for `in_workers`."""
    env = replace(request, observe=("proprio",)).make()
    if expert is not None:
        env.task.use_expert(expert)
    started = perf_counter()
    env.reset(seed=plan.seed)
    result = EpisodeResult(plan)
    ended = False
    while not ended:
        _, reward, terminated, truncated, info = env.step(env.task.expert_action())
        ended = terminated or truncated
        result.rewards.append(reward)
        result.success.append(info["success"])
        result.score = info["score"]
    result.wall_s = perf_counter() - started
    env.close()
    return result


def default_width() -> int:
    """Return how many workers suit this machine."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))
