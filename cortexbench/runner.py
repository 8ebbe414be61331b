"""Runs cells side by side within a budget of jobs and memory, says how long it will take, and stops when asked."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from omegaconf import OmegaConf
from rich.console import Console

from ..engine_schemas import EngineSettings
from ..errors import BadInput, Stopped
from ..stopping import Stopping
from .engines import ENGINES, Engine, Job, Resources, engine


@dataclass(frozen=True)
class Task:
    """A cell to run."""

    folder: Path
    memory: float  # it needs about [GB]
    work: float  # it takes about, of one core [s]


@dataclass(frozen=True)
class ResourceBudget:
    """What may run at once."""

    jobs: int
    memory: float  # [GB]


def check_engine(settings: EngineSettings) -> None:
    """Refuse an engine that does not exist, before any work.

    Raises:
        UnknownName: with those that there are.
    """
    if settings.engine not in ENGINES:
        with engine(settings.engine, Resources(1, ""), Path()):
            pass


def room_of(settings: EngineSettings) -> ResourceBudget:
    """Return what may run at once; a cluster has its own queue.

    Raises:
        BadInput: if there is no memory to run in.
    """
    if settings.engine != "local":
        return ResourceBudget(settings.jobs or 10**6, float("inf"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.memory is not None and settings.memory <= 0:
        raise BadInput(f"memory={settings.memory} GB leaves nothing to run in")
    memory = settings.memory or 0.8 * psutil.virtual_memory().available / 1e9
    return ResourceBudget(settings.jobs or max(1, cores // settings.threads), memory)


def run_as_asked(
    tasks: Sequence[Task], settings: EngineSettings, module: str, root: Path, console: Console
) -> dict[str, str]:
    """Run cells on the engine that settings name; return why some failed, by the folder's name.

    Args:
        module: that runs a cell, as `engines` says.
        root: folder for files of the engine's own.
    """
    room = room_of(settings)
    if not tasks:
        return {}
    more = OmegaConf.to_container(OmegaConf.create(settings.slurm or {}))
    assert isinstance(more, dict)
    resources = Resources(settings.threads, module, settings.gpus, {str(key): value for key, value in more.items()})
    with engine(settings.engine, resources, root) as starter:
        return run_tasks(tasks, starter, room, console)


def run_tasks(tasks: Sequence[Task], engine: Engine, room: ResourceBudget, console: Console) -> dict[str, str]:
    """Run cells and return why some failed, by the folder's name; the others go on.

    A cell that needs more memory than there is runs alone.

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once the cells under way are ended.
    """
    waiting, running, failures = list(tasks), dict[Task, Job](), dict[str, str]()
    began, done, worked = time.monotonic(), 0, 0.0
    with Stopping() as stopping:
        try:
            while waiting or running:
                if stopping.asked:
                    name = signal.Signals(stopping.signal).name
                    raise Stopped(
                        f"stopped by {name} after {done} of {len(tasks)} cells; the same command goes on",
                        stopping.signal,
                    )
                while task := _next(waiting, running, room):
                    waiting.remove(task)
                    running[task] = engine.start(task.folder, task.memory)
                ended = {task: why for task, job in running.items() if (why := job.poll()) is not None}
                for task, why in ended.items():
                    del running[task]
                    done, worked = done + 1, worked + task.work
                    if why:
                        failures[task.folder.name] = why
                    left = (time.monotonic() - began) * sum(each.work for each in (*waiting, *running)) / worked
                    said = f"FAILED: {why}" if why else "done"
                    hours = f", about {duration(left)} left" if waiting or running else ""
                    console.print(
                        f"{done}/{len(tasks)} cells{hours}; {task.folder.name}: {said}",
                        soft_wrap=True,
                        markup=False,
                        highlight=False,
                    )
                if not ended:
                    time.sleep(0.2)
        finally:
            for job in running.values():
                job.stop()
    return failures


def _next(waiting: Sequence[Task], running: dict[Task, Job], room: ResourceBudget) -> Task | None:
    """Return the first waiting cell that there is room for."""
    if len(running) >= room.jobs:
        return None
    free = room.memory - sum(task.memory for task in running)
    return next((task for task in waiting if task.memory <= free or not running), None)


def duration(seconds: float) -> str:
    """Return a duration as one would say it.

    >>> duration(20), duration(600), duration(9000), duration(400000)
    ('1 min', '10 min', '2.5 h', '4.6 days')
    """
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
