"""Who starts the cells' processes: this machine, Ray or Slurm. Each cell is a process of its own everywhere, with the
same files, so a crash ends one cell and any engine may go on with another's work. A cell is a folder and the module
that runs what the folder describes: ``python -m MODULE FOLDER PARENT`` leaves ``result.json`` there.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import BadInput, MissingExtra, UnknownName, closest

ENGINES = ("local", "ray", "slurm")
_GRACE = 300.0  # between asking a cell to end and ending it [s]; a learner ends after its next row of metrics


class Job(Protocol):
    """A cell under way."""

    def poll(self) -> str | None:
        """Return None while it runs, then why it failed, or "" if it did not."""

    def stop(self) -> None:
        """End it; what it has finished stays."""


class Engine(Protocol):
    """What starts cells."""

    def start(self, folder: Path, memory: float) -> Job:
        """Start the cell of a folder, which will need so much memory [GB]."""


@dataclass(frozen=True)
class Resources:
    """What a cell gets."""

    threads: int
    module: str  # that runs it
    gpus: float = 0.0  # of Ray and Slurm
    slurm: dict[str, Any] = field(default_factory=dict)  # further settings, as submitit names them


@contextmanager
def engine(name: str, resources: Resources, root: Path) -> Iterator[Engine]:
    """Open an engine.

    Args:
        name: one of `ENGINES`.
        root: folder of the benchmark; submitit writes its own files below it.

    Raises:
        UnknownName: for another name.
        MissingExtra: if Ray or submitit is not installed.
    """
    if name == "local":
        yield Local(resources)
    elif name == "ray":
        yield from _ray(resources)
    elif name == "slurm":
        yield _slurm(resources, root)
    else:
        raise UnknownName(f"no engine {name!r}{closest(name, ENGINES)}; there are: {', '.join(ENGINES)}")


def start_process(folder: Path | str, resources: Resources) -> "subprocess.Popen[bytes]":
    """Start a cell in a new session; what it says goes to ``log.txt``."""
    threads = str(resources.threads)
    given = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "LP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", resources.module, str(folder), str(os.getpid())]
    with (Path(folder) / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | given,
            start_new_session=True,
        )


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Ask a cell to end, which may have a state to write with its workers' help; then end what is left of both."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_process(folder: str, resources: Resources) -> str:
    """Run a cell to its end, anywhere; return why it failed, or ""."""
    process = start_process(folder, resources)
    try:
        return outcome(Path(folder), process.wait())
    finally:
        if process.returncode is None:
            end_process(process)


def outcome(folder: Path, status: int) -> str:
    """Return why a cell whose process ended with `status` failed, or ""."""
    if status == 0 and (folder / "result.json").is_file():
        return ""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}{', often for lack of memory' if name == 'SIGKILL' else ''}; before: {words(folder)}"
    return words(folder)


def words(folder: Path) -> str:
    """Return the last line that a cell said."""
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Local:
    """Processes of this machine."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def start(self, folder: Path, memory: float) -> Job:
        return _LocalJob(folder, start_process(folder, self.resources))


class _LocalJob:
    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.folder, self.process = folder, process

    def poll(self) -> str | None:
        status = self.process.poll()
        return None if status is None else outcome(self.folder, status)

    def stop(self) -> None:
        end_process(self.process)


def _ray(resources: Resources) -> Iterator[Engine]:
    """Yield tasks of a Ray cluster, RAY_ADDRESS or this machine; all its machines must see the run folder."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("engine=ray", "ray") from error
    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False)
    try:
        yield _Ray(ray, resources)
    finally:
        if begun:
            ray.shutdown()


class _Ray:
    def __init__(self, ray: Any, resources: Resources) -> None:
        self.ray, self.resources = ray, resources

    def start(self, folder: Path, memory: float) -> Job:
        options = dict(num_cpus=self.resources.threads, num_gpus=self.resources.gpus, max_retries=0)
        run = self.ray.remote(memory=int(memory * 1e9), **options)(run_process)
        return _RayJob(self.ray, run.remote(str(folder), self.resources))


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def poll(self) -> str | None:
        if not self.ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return str(self.ray.get(self.reference))
        except self.ray.exceptions.RayError as error:
            return next(iter(str(error).splitlines()), type(error).__name__)

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=False)


def _slurm(resources: Resources, root: Path) -> Engine:
    """Return jobs of Slurm through submitit; ``cluster: local`` in the settings tries it on this machine."""
    try:
        import submitit
    except ImportError as error:
        raise MissingExtra("engine=slurm", "slurm") from error
    settings = {"timeout_min": 24 * 60, **resources.slurm}
    cluster = settings.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(root / "submitit", cluster=cluster)
        executor.update_parameters(name="pixio", cpus_per_task=resources.threads, **settings)
        if resources.gpus:
            executor.update_parameters(gpus_per_node=int(resources.gpus))
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise BadInput(f"slurm={resources.slurm}: {error}") from error
    return _Slurm(executor, resources)


class _Slurm:
    def __init__(self, executor: Any, resources: Resources) -> None:
        self.executor, self.resources = executor, resources

    def start(self, folder: Path, memory: float) -> Job:
        self.executor.update_parameters(mem_gb=memory)
        return _SlurmJob(self.executor.submit(run_process, str(folder), self.resources))


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> str | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is not None:
            return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return str(self.job.result())

    def stop(self) -> None:
        self.job.cancel()
