"""Who scores which shard: processes of this machine, the ranks of a launcher, or Ray's actors. None knows more than a
shard and where its sidecar goes; a sidecar that exists is finished, so any engine may go on with another's work.
"""

import os
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch

from ...errors import BadInput, MissingExtra, PixioError, Stopped, UnknownName, closest
from ...stopping import Stopping
from ..mae import MaskedAutoencoder
from ..networks import load_autoencoder
from .score import Scoring, score_shard
from .sidecar import write_sidecar
from .statistics import UNREADABLE

ENGINES = ("auto", "local", "torchrun", "slurm", "ray")


class Job(NamedTuple):
    """One shard and where its scores go."""

    shard: Path
    sidecar: Path


class Outcome(NamedTuple):
    """What became of a job."""

    shard: str
    images: int = 0
    unreadable: int = 0
    cut: bool = False
    error: str = ""  # why there is no sidecar


class Scorer(NamedTuple):
    """All that a process needs to score shards; small, so that it can be sent."""

    model: str  # a file
    scoring: Scoring
    device: str
    readers: int

    def load(self) -> MaskedAutoencoder:
        """Return the autoencoder on its device."""
        return load_autoencoder(self.model).to(self.device)


def run_job(job: Job, scorer: Scorer, model: MaskedAutoencoder) -> Outcome:
    """Score a shard and write its sidecar; a shard that cannot be read gives an outcome that says so."""
    try:
        found = score_shard(job.shard, model, scorer.scoring, torch.device(scorer.device), scorer.readers)
        write_sidecar(job.sidecar, found, scorer.scoring, job.shard.stat().st_size)
    except (PixioError, OSError) as error:
        return Outcome(str(job.shard), error=str(error))
    return Outcome(str(job.shard), len(found.key), found.status.count(UNREADABLE), found.cut)


def rank_of(engine: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of processes; rank r scores the shards r, r + number, ...

    torchrun sets RANK and WORLD_SIZE, Slurm numbers the tasks of a job and the jobs of an array.

    Raises:
        BadInput: if the engine's launcher did not start this process.
    """
    if engine == "torchrun":
        if "RANK" not in environment:
            raise BadInput("engine=torchrun, but torchrun did not start this: torchrun ... -m pixio_robot score ...")
        return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    if engine == "slurm":
        if "SLURM_JOB_ID" not in environment:
            raise BadInput(
                "engine=slurm, but Slurm did not start this: sbatch --array=0-31 --wrap 'pixio-robot score ...'"
            )
        first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", value)) for name, value in (("MIN", 0), ("STEP", 1))
        )
        place = (int(environment.get("SLURM_ARRAY_TASK_ID", first)) - first) // step
        tasks = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in environment else 1
        task = int(environment.get("SLURM_PROCID", "0"))
        return place * tasks + task, int(environment.get("SLURM_ARRAY_TASK_COUNT", "1")) * tasks
    return 0, 1


def choose_engine(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the engine of that name; auto is torchrun or a Slurm array where one of them started us, else local.

    Raises:
        UnknownName: naming those there are.
    """
    if name not in ENGINES:
        raise UnknownName(f"no engine {name!r}; there are: {', '.join(ENGINES)}{closest(name, ENGINES)}")
    if name != "auto":
        return name
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return "torchrun"
    return "slurm" if "SLURM_ARRAY_TASK_ID" in environment else "local"


def run_jobs(jobs: Sequence[Job], scorer: Scorer, engine: str, workers: int | None) -> Iterator[Outcome]:
    """Score shards, in any order.

    Args:
        jobs: of this process, sidecars that exist excepted.
        engine: "ray", or anything else for processes of this machine.
        workers: processes or actors; None is one a core or GPU, and one under a launcher.

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once the shards under way are finished.
    """
    if not jobs:
        return
    devices = _devices(scorer.device, engine)
    if engine == "ray":
        yield from _by_ray(jobs, scorer, workers or len(devices))
        return
    count = min(len(jobs), workers or len(devices))
    run = (
        partial(_here, jobs, scorer._replace(device=devices[0]))
        if count <= 1
        else partial(_by_processes, jobs, scorer, devices, count)
    )
    with Stopping() as stopping, closing(run(stopping)) as outcomes:
        done = 0
        for outcome in outcomes:
            done += 1
            yield outcome
        if stopping.asked and done < len(jobs):
            name = signal.Signals(stopping.signal).name
            raise Stopped(
                f"stopped by {name} after {done} of {len(jobs)} shards; the same command goes on", stopping.signal
            )


def _devices(device: str, engine: str) -> list[str]:
    """Return the device of every worker there may be."""
    count = torch.cuda.device_count() if device == "cuda" else 1
    if engine in ("torchrun", "slurm"):
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return [f"cuda:{local % count}" if device == "cuda" else device]
    if device != "cuda":
        return (
            [device] * len(os.sched_getaffinity(0))
            if device == "cpu" and hasattr(os, "sched_getaffinity")
            else [device]
        )
    return [f"cuda:{number}" for number in range(count)]


def _here(jobs: Sequence[Job], scorer: Scorer, stopping: Stopping) -> Generator[Outcome, None, None]:
    model = scorer.load()
    for job in jobs:
        if stopping.asked:
            return
        yield run_job(job, scorer, model)


def _by_processes(
    jobs: Sequence[Job], scorer: Scorer, devices: Sequence[str], count: int, stopping: Stopping
) -> Generator[Outcome, None, None]:
    context = get_context("spawn")
    places = context.SimpleQueue()
    for number in range(count):
        places.put(devices[number % len(devices)])
    with ProcessPoolExecutor(count, context, _begin, (scorer, places)) as pool:
        waiting = {pool.submit(_in_worker, job) for job in jobs}
        for future in as_completed(list(waiting)):
            waiting.remove(future)
            yield future.result()
            if stopping.asked:
                break
        pool.shutdown(cancel_futures=True)  # what is under way is finished; as_completed would not see the others end
        for future in waiting:
            if not future.cancelled():
                yield future.result()


_worker: list[Any] = []  # the scorer and its network, in a worker process


def _begin(scorer: Scorer, places: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # sent to all processes, they are the parent's to handle
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    scorer = scorer._replace(device=places.get())
    _worker[:] = [scorer, scorer.load()]


def _end_with(parent: Any) -> None:
    parent.join()  # killed, it cannot tell its workers to end
    os._exit(1)


def _in_worker(job: Job) -> Outcome:
    return run_job(job, *_worker)


class _Actor:
    """A worker of Ray Data, with one network for all its shards."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.model = scorer, scorer.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [
            run_job(Job(Path(shard), Path(sidecar)), self.scorer, self.model)
            for shard, sidecar in zip(batch["shard"].tolist(), batch["sidecar"].tolist(), strict=True)
        ]
        return {name: [getattr(row, name) for row in rows] for name in Outcome._fields}


def _by_ray(jobs: Sequence[Job], scorer: Scorer, workers: int) -> Iterator[Outcome]:
    """Score on a Ray cluster, RAY_ADDRESS or this machine; paths must be the same on all its machines."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("engine=ray", "ray") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"shard": str(job.shard.absolute()), "sidecar": str(job.sidecar.absolute())} for job in jobs]
    scorer = scorer._replace(model=str(Path(scorer.model).absolute()))
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(scorer,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        num_cpus=scorer.readers,
        num_gpus=1 if scorer.device == "cuda" else 0,
    )
    for row in scored.iter_rows():
        yield Outcome(**row)
