"""Batches of episodes in spawned workers. The list of episodes is fixed before the first one runs."""

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

from ..errors import BadInput, DataError, WorkerLost
from .task_spec import TaskSpec

Item = TypeVar("Item")
Result = TypeVar("Result")
EPISODE_SEED = "episode_seed"  # in the observations of a policy: (B,), so that its noise does not depend on the batch
# maps observations (B, ...), reset_mask (B,) bool and active_mask (B,) bool to actions (B, A)
Act = Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]
_LOST = (
    "a simulator's process was killed during an episode, often because memory ran out; finished episodes are kept: run "
    "the same command again, with fewer environments or jobs if memory was the reason"
)


@dataclass(frozen=True)
class EpisodePlan:
    """An episode that will be run."""

    index: int
    seed: int
    initial_state_hash: str  # after a reset with this seed


@dataclass
class EpisodeResult:
    """The result of an episode."""

    plan: EpisodePlan
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)  # per step, not latched
    score: float = 0.0  # by the suite's rule, 0 to 100
    wall_s: float = 0.0  # from reset to end; the episodes of a batch share the machine


def plan_episodes(spec: TaskSpec, count: int, first_seed: int) -> list[EpisodePlan]:
    """Return episodes with seeds first_seed, first_seed + 1, ... and the initial states of these seeds."""
    env = replace(spec, observe=("proprio",)).make()
    plans = []
    for index in range(count):
        _, info = env.reset(seed=first_seed + index)
        plans.append(EpisodePlan(index, first_seed + index, info["initial_state_hash"]))
    env.close()
    return plans


@contextmanager
def starting_workers() -> Iterator[None]:
    """Set the environment of worker processes that are started inside.

    Workers render with one thread each, because together they use all cores. They ignore Ctrl-C; the parent handles it.
    """
    threads = os.environ.get("LP_NUM_THREADS")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    in_main = threading.current_thread() is threading.main_thread()  # other threads cannot set signals
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        if threads is None:
            del os.environ["LP_NUM_THREADS"]


def vector_env(spec: TaskSpec, count: int, processes: bool) -> AsyncVectorEnv | SyncVectorEnv:
    """Return `count` environments without automatic reset, each in a spawned worker or all in this process.

    The arrays that they return are valid until the next step.
    """
    makers, mode = [spec.make] * count, AutoresetMode.DISABLED
    if not processes:
        return SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    with starting_workers():
        return AsyncVectorEnv(makers, copy=False, context="spawn", autoreset_mode=mode)


class BatchRollout:
    """Runs planned episodes in parallel environments, step by step, so that the policy is called on batches.

    Args:
        spec: the environment.
        plans: the episodes; each runs once, in this order.
        width: environments in parallel, each in a worker.
        processes: False runs them in this process, which is faster for a few episodes without images.

    Use it as a context manager. Afterwards `seconds` holds the time of physics and rendering, mean over workers [s].
    """

    def __init__(self, spec: TaskSpec, plans: Sequence[EpisodePlan], width: int, processes: bool = True) -> None:
        self.spec, self.plans, self.processes = spec, list(plans), processes
        self.width = max(1, min(width, len(self.plans)))
        self.seconds: dict[str, float] = {}
        self._envs: AsyncVectorEnv | SyncVectorEnv | None = None

    def __enter__(self) -> "BatchRollout":
        self._envs = vector_env(self.spec, self.width, self.processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        envs = self._entered()
        if kind is None:
            spent = envs.get_attr("seconds")
            self.seconds = {key: sum(each[key] for each in spent) / self.width for key in spent[0]}
        if kind is None or isinstance(envs, SyncVectorEnv):
            envs.close()
            return
        for process in envs.processes:  # terminated at once: a step may be pending, a worker may be dead
            process.terminate()
            process.join()
        envs._state = AsyncState.DEFAULT
        envs.close(terminate=True)

    def _entered(self) -> AsyncVectorEnv | SyncVectorEnv:
        if self._envs is None:
            raise BadInput("a BatchRollout is a context manager: with BatchRollout(...) as rollout: rollout.run(...)")
        return self._envs

    def run(
        self,
        act: Act,
        watch: Callable[[EpisodePlan, dict[str, np.ndarray]], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Iterator[EpisodeResult]:
        """Yield episodes as they end.

        Args:
            act: the policy; the rows of environments that have no episode left are ignored.
            watch: is called with each episode's observation at every step.
            on_step: is called with the number of environments that made a step.

        Raises:
            DataError: if a seed does not give the planned initial state.
            WorkerLost: if an environment's process was killed.
        """
        envs = self._entered()
        waiting = list(reversed(self.plans))
        active: list[EpisodeResult | None] = [None] * self.width
        began = np.zeros(self.width)
        free = np.ones(self.width, bool)
        observations: dict[str, np.ndarray] = {}
        while True:
            reset_mask = self._start(free, waiting, active)
            if reset_mask.any():
                observations = self._reset(envs, reset_mask, active)
                began[reset_mask] = perf_counter()
            if not any(active):
                return
            if watch is not None:
                for row, result in enumerate(active):
                    if result is not None:
                        watch(result.plan, {key: value[row] for key, value in observations.items()})
            seeds = np.array([0 if result is None else result.plan.seed for result in active])
            active_mask = np.array([result is not None for result in active])
            actions = act({**observations, EPISODE_SEED: seeds}, reset_mask, active_mask)
            try:
                observations, rewards, terminated, truncated, infos = envs.step(actions)
            except (EOFError, ConnectionError) as error:
                raise WorkerLost(f"{self.spec.task}: {_LOST}") from error
            if on_step is not None:
                on_step(sum(result is not None for result in active))
            free = np.zeros(self.width, bool)
            for row, result in enumerate(active):
                if result is None:
                    continue
                result.rewards.append(float(rewards[row]))
                result.success.append(bool(infos["success"][row]))
                result.score = float(infos["score"][row])
                if terminated[row] or truncated[row]:
                    result.wall_s = perf_counter() - began[row]
                    active[row], free[row] = None, True
                    yield result

    def _start(self, free: np.ndarray, waiting: list[EpisodePlan], active: list[EpisodeResult | None]) -> np.ndarray:
        """Assign the next planned episodes to free environments; return the mask of these environments."""
        reset_mask = np.zeros(self.width, bool)
        for row in np.flatnonzero(free):
            if waiting:
                active[row] = EpisodeResult(waiting.pop())
                reset_mask[row] = True
        return reset_mask

    def _reset(
        self, envs: AsyncVectorEnv | SyncVectorEnv, reset_mask: np.ndarray, active: list[EpisodeResult | None]
    ) -> dict[str, np.ndarray]:
        plans = [None if result is None else result.plan for result in active]
        seeds = [None if plan is None else plan.seed for plan in plans]
        observations, infos = envs.reset(seed=seeds, options={"reset_mask": reset_mask})
        for row, plan in enumerate(plans):
            if plan is not None and reset_mask[row] and infos["initial_state_hash"][row] != plan.initial_state_hash:
                raise DataError(
                    f"{self.spec.task}: seed {plan.seed} gives the initial state {infos['initial_state_hash'][row]}, "
                    f"planned was {plan.initial_state_hash}; the simulator's version changed, make a new plan"
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
    except BaseException:  # do not wait for the remaining items
        _end_at_once(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent process ends, also if the parent is killed; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()

    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_at_once(pool: ProcessPoolExecutor) -> None:
    """Terminate a pool's workers, and hide the errors of the pool's thread about cancelled futures."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    finally:
        threading.excepthook = hook


def run_expert(spec: TaskSpec, plan: EpisodePlan, expert: str | None = None) -> EpisodeResult:
    """Run one episode without images with the task's expert, or the expert in a file; a function for `in_workers`."""
    env = replace(spec, observe=("proprio",)).make()
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
    """Return the number of available CPU cores."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))
