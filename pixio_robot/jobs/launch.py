"""Run jobs side by side, within a budget of jobs and memory: processes of this machine, tasks of Ray, jobs of Slurm.

A job is a folder and, with every engine, a separate process: ``python -m MODULE FOLDER PARENT``. MODULE calls
`run_as_job` and leaves ``result.json`` in the folder. So a crash ends one job, and any engine can continue the work of
another one.
"""

import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BadInput, MissingExtra, PixioError, Stopped, UnknownName, closest
from ..files import explain
from ..stopping import Stopping

if TYPE_CHECKING:
    from rich.console import Console

ENGINES = ("local", "ray", "slurm")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_GRACE = 300.0  # between SIGTERM and SIGKILL of a job [s]; a learner ends after its next row of metrics


@dataclass(frozen=True)
class Launch:
    """Where jobs run, how many at a time, and what each gets."""

    engine: str = "local"
    jobs: int | None = None  # None: as cores and memory allow here, all at once with Ray and Slurm
    threads: int = 1  # of a job
    memory: float | None = None  # of all local jobs together [GB]; None is 80 % of what is free
    gpus: float = 0.0  # of a job, with Ray (shares too) and Slurm
    slurm: dict[str, Any] = field(default_factory=dict)  # further settings, as submitit names them


@dataclass(frozen=True)
class ResourceBudget:
    """What may run at the same time."""

    jobs: int
    memory: float  # [GB]

    @classmethod
    def of(cls, launch: Launch) -> "ResourceBudget":
        """Return the budget of a launch. Ray and Slurm have their own queues, so their jobs have no limit of memory.

        Raises:
            UnknownName: for an engine that does not exist.
            BadInput: if there is no memory to run in.
        """
        check_engine(launch.engine, ENGINES)
        if launch.engine != "local":
            return cls(launch.jobs or 10**6, float("inf"))
        if launch.memory is not None and launch.memory <= 0:
            raise BadInput(f"memory={launch.memory} GB leaves nothing to run in")
        import psutil

        memory = launch.memory or 0.8 * psutil.virtual_memory().available / 1e9
        return cls(launch.jobs or max(1, cores() // launch.threads), memory)


@dataclass(frozen=True)
class JobSpec:
    """A job to run."""

    folder: Path
    memory: float  # it needs about [GB]
    work: float  # expected duration; only ratios between jobs count


class Job(NamedTuple):
    """A job that was started."""

    poll: Callable[[], str | None]  # None while it runs, then why it failed, or ""
    stop: Callable[[], object]  # ends it; what it has finished stays


Starter = Callable[[Path, float], Job]  # takes a job's folder and the memory it needs [GB]


def run_jobs(specs: Sequence[JobSpec], launch: Launch, module: str, root: Path, console: "Console") -> dict[str, str]:
    """Run jobs and return why some failed, by the folder's name; a failure does not affect the others.

    Args:
        module: runs a job, as the top of this file says.
        root: folder for files of the engine itself.

    Raises:
        UnknownName: for an engine that does not exist.
        MissingExtra: if Ray or submitit is not installed.
        BadInput: for wrong settings of memory or Slurm.
        Stopped: after SIGTERM or Ctrl-C, once the running jobs are ended.
    """
    budget = ResourceBudget.of(launch)
    if not specs:
        return {}
    with open_engine(launch, module, root) as start:
        return schedule(specs, start, budget, console)


def schedule(specs: Sequence[JobSpec], start: Starter, budget: ResourceBudget, console: "Console") -> dict[str, str]:
    """Start jobs as the budget allows, print a line for each that ends, and return failures like `run_jobs`.

    A job that needs more memory than the budget has runs alone.
    """
    waiting, active, failures = list(specs), dict[JobSpec, Job](), dict[str, str]()
    began, done, worked = time.monotonic(), 0, 0.0
    with Stopping() as stopping:
        try:
            while waiting or active:
                if stopping.asked:
                    raise stopped(stopping, done, len(specs), "runs")
                while spec := _next(waiting, active, budget):
                    waiting.remove(spec)
                    active[spec] = start(spec.folder, spec.memory)
                ended = {spec: why for spec, job in active.items() if (why := job.poll()) is not None}
                for spec, why in ended.items():
                    del active[spec]
                    done, worked = done + 1, worked + spec.work
                    if why:
                        failures[spec.folder.name] = why
                    left = (time.monotonic() - began) * sum(each.work for each in (*waiting, *active)) / worked
                    estimate = f", about {duration(left)} left" if waiting or active else ""
                    state = f"FAILED: {why}" if why else "done"
                    line = f"{done}/{len(specs)} runs{estimate}; {spec.folder.name}: {state}"
                    console.print(line, soft_wrap=True, markup=False, highlight=False)
                if not ended:
                    time.sleep(0.2)
        finally:
            for job in active.values():
                job.stop()
    return failures


def _next(waiting: Sequence[JobSpec], active: Mapping[JobSpec, Job], budget: ResourceBudget) -> JobSpec | None:
    """Return the first waiting job that fits into the budget."""
    if len(active) >= budget.jobs:
        return None
    free = budget.memory - sum(spec.memory for spec in active)
    return next((spec for spec in waiting if spec.memory <= free or not active), None)


@contextmanager
def open_engine(launch: Launch, module: str, root: Path) -> Iterator[Starter]:
    """Open an engine; yields what starts a job. Raises like `run_jobs`."""
    check_engine(launch.engine, ENGINES)
    if launch.engine == "ray":
        yield from _ray(launch, module)
    elif launch.engine == "slurm":
        yield _slurm(launch, module, root)
    else:
        yield lambda folder, _: _local_job(folder, module, launch.threads)


def _local_job(folder: Path, module: str, threads: int) -> Job:
    process = start_process(folder, module, threads)

    def poll() -> str | None:
        status = process.poll()
        return None if status is None else why_failed(folder, status)

    return Job(poll, lambda: end_process(process))


def _ray(launch: Launch, module: str) -> Iterator[Starter]:
    """Yield what starts tasks of a Ray cluster, RAY_ADDRESS or this machine; all its machines must see the folders."""
    ray = import_engine("ray", "ray")

    def start(folder: Path, memory: float) -> Job:
        options = dict(num_cpus=launch.threads, num_gpus=launch.gpus, memory=int(memory * 1e9), max_retries=0)
        task = ray.remote(**options)(run_process).remote(str(folder), module, launch.threads)
        return _cluster_job(task.future(), lambda: ray.cancel(task, force=False), 0)

    with nullcontext() if ray.is_initialized() else ray.init(log_to_driver=False):
        yield start


def _slurm(launch: Launch, module: str, root: Path) -> Starter:
    """Return what submits jobs to Slurm; ``cluster: local`` in the settings tries it on this machine."""
    submitit = import_engine("submitit", "slurm")
    settings = {"timeout_min": 24 * 60, **launch.slurm}
    cluster = settings.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(root / "submitit", cluster=cluster)
        executor.update_parameters(name="pixio", cpus_per_task=launch.threads, **settings)
        if launch.gpus:
            executor.update_parameters(gpus_per_node=int(launch.gpus))
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise BadInput(f"slurm={launch.slurm}: {error}") from error

    def start(folder: Path, memory: float) -> Job:
        executor.update_parameters(mem_gb=memory)
        job = executor.submit(run_process, str(folder), module, launch.threads)
        return _cluster_job(job, job.cancel, -1)

    return start


def _cluster_job(future: Any, stop: Callable[[], object], line: int) -> Job:
    """Return the job of a cluster's future; `line` of the text of an exception says what went wrong."""

    def poll() -> str | None:
        if not future.done():
            return None
        if (error := future.exception()) is None:
            return str(future.result())
        lines = [each for each in str(error).splitlines() if each.strip()]
        return lines[line] if lines else type(error).__name__

    return Job(poll, stop)


def start_process(folder: Path | str, module: str, threads: int) -> "subprocess.Popen[bytes]":
    """Start a job's process in a new session; its output goes to ``log.txt``."""
    with (Path(folder) / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict.fromkeys(THREADS, str(threads)) | {"LP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Ask a job to end, since it may write its state with its workers' help; then kill what is left of both."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_process(folder: str, module: str, threads: int) -> str:
    """Run a job to its end, on whatever machine this is; return why it failed, or ""."""
    process = start_process(folder, module, threads)
    try:
        return why_failed(Path(folder), process.wait())
    finally:
        if process.returncode is None:
            end_process(process)


def why_failed(folder: Path, status: int) -> str:
    """Return why a job whose process ended with `status` failed, or ""."""
    if status == 0 and (folder / "result.json").is_file():
        return ""
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if status >= 0:
        return last
    name = signal.Signals(-status).name
    return f"killed by {name}{', often for lack of memory' if name == 'SIGKILL' else ''}; before: {last}"


def run_as_job(work: Callable[[], object], parent: int) -> int:
    """Do a job's work in its own process and return the exit status. What went wrong is the last line printed.

    Args:
        parent: number of the process that started this one, with which it ends.
    """
    import torch

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)

    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    end_after(wait)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        work()
    except PixioError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


def end_after(wait: Callable[[], object]) -> None:
    """End this process, and the session that it leads, when `wait` returns: a killed parent cannot end its children."""

    def end() -> None:
        wait()
        if os.getsid(0) == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    Thread(target=end, daemon=True).start()


def check_engine(name: str, known: Sequence[str]) -> None:
    """Raise `UnknownName`, with those that exist, for an engine that does not."""
    if name not in known:
        raise UnknownName(f"no engine {name!r}{closest(name, known)}; there are: {', '.join(known)}")


def import_engine(name: str, extra: str) -> Any:
    """Return an optional package that an engine needs, or raise `MissingExtra`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"engine={extra}", extra) from error


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stopped(stopping: Stopping, done: int, total: int, what: str) -> Stopped:
    """Return the exception that ends a command whose jobs were stopped."""
    name = signal.Signals(stopping.signal).name
    return Stopped(f"stopped by {name} after {done} of {total} {what}; the same command resumes", stopping.signal)


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(20), duration(600), duration(9000), duration(400000)
    ('1 min', '10 min', '2.5 h', '4.6 days')
    """
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
