"""Processes that load something once and then work on many items: here, as ranks of torchrun or Slurm, or with Ray.

`run_shards` does the items of this process; `rank_of` says which those are. Workers and ranks share no state and form
no process group: one that dies affects no other, and the same command, with any engine, does what is missing. torch is
imported only where GPUs are counted, since a `Worker` that is measured must not hold more than its program.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, TypeVar

from ..errors import BadInput, PixioError, WorkerLost
from ..stopping import Stopping
from .launch import THREADS, Launch, check_engine, cores, end_after, import_engine, stopped

SHARD_ENGINES = ("auto", "local", "torchrun", "slurm", "ray")
Item = TypeVar("Item")
Result = TypeVar("Result")
Load = Callable[[str], Callable[[Item], Result]]  # takes a worker's device; returns what works on an item


def choose_engine(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the engine for shards; auto is torchrun or a Slurm array where one of them started us, else local.

    Raises:
        UnknownName: with those that exist.
    """
    check_engine(name, SHARD_ENGINES)
    if name != "auto":
        return name
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return "torchrun"
    return "slurm" if "SLURM_ARRAY_TASK_ID" in environment else "local"


def rank_of(engine: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of processes; rank r does the items r, r + number, ...

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
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        index = (int(environment.get("SLURM_ARRAY_TASK_ID", first)) - first) // step
        tasks = int(environment.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in environment else 1
        task = int(environment.get("SLURM_PROCID", "0"))
        return index * tasks + task, int(environment.get("SLURM_ARRAY_TASK_COUNT", "1")) * tasks
    return 0, 1


def run_shards(items: Sequence[Item], load: Load[Item, Result], device: str, launch: Launch) -> Iterator[Result]:
    """Work on items, in any order, and yield their results.

    Args:
        items: of this rank, without finished ones. They, results and `load` must be picklable, and paths in them
            absolute for Ray.
        load: called once in each worker.
        device: "cpu", "cuda" or "mps". Local workers share the GPUs, with Ray each gets one.
        launch: `engine` as `choose_engine` returns it; `jobs` is the number of workers, None for one a core or GPU and
            one a rank; `threads` is the number of cores that a worker reserves from Ray.

    Raises:
        MissingExtra: if Ray is not installed.
        WorkerLost: if a worker was killed.
        Stopped: after SIGTERM or Ctrl-C, once the items that were started are finished.
    """
    if not items:
        return
    devices = _devices(device, launch.engine)
    count = min(len(items), launch.jobs or len(devices))
    if launch.engine == "ray":
        yield from _in_actors(items, load, device, count, launch.threads)
        return
    run = partial(_here, items, load, devices[0]) if count == 1 else partial(_in_workers, items, load, devices, count)
    with Stopping() as stopping, closing(run(stopping)) as results:
        done = 0
        for result in results:
            done += 1
            yield result
        if stopping.asked and done < len(items):
            raise stopped(stopping, done, len(items), "shards")


def _devices(device: str, engine: str) -> list[str]:
    """Return the device of every worker that this process may have."""
    count = cores() if device == "cpu" else 1
    if device == "cuda":
        import torch

        count = torch.cuda.device_count()
    if engine in ("torchrun", "slurm"):
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return [f"cuda:{local % count}" if device == "cuda" else device]
    return [f"cuda:{number}" if device == "cuda" else device for number in range(count)]


def _here(
    items: Sequence[Item], load: Load[Item, Result], device: str, stopping: Stopping
) -> Generator[Result, None, None]:
    work = load(device)
    for item in items:
        if stopping.asked:
            return
        yield work(item)


def _in_workers(
    items: Sequence[Item], load: Load[Item, Result], devices: Sequence[str], count: int, stopping: Stopping
) -> Generator[Result, None, None]:
    waiting = list(reversed(items))
    with ExitStack() as opened:
        workers: dict[Any, Worker] = {}
        for number in range(count):
            worker = opened.enter_context(Worker(_work_on_items, (load, devices[number % len(devices)])))
            worker.send(waiting.pop())
            workers[worker.pipe] = worker
        while workers:
            for pipe in wait(list(workers)):
                yield workers[pipe].receive()
                if waiting and not stopping.asked:
                    workers[pipe].send(waiting.pop())
                else:
                    workers.pop(pipe).pipe.close()  # its process ends


def _work_on_items(pipe: Connection, argument: tuple[Load[Any, Any], str]) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # sent to all processes, they are the parent's to handle
    load, device = argument
    work = load(device)
    while True:
        pipe.send(work(pipe.recv()))


class _Actor:
    """A worker of Ray Data."""

    def __init__(self, load: Load[Any, Any], device: str) -> None:
        self.work = load(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [pickle.dumps(self.work(pickle.loads(each))) for each in batch["item"].tolist()]}


def _in_actors(
    items: Sequence[Item], load: Load[Item, Result], device: str, count: int, threads: int
) -> Iterator[Result]:
    """Work on a Ray cluster, RAY_ADDRESS or this machine; paths must be the same on all its machines."""
    ray, data = import_engine("ray", "ray"), import_engine("ray.data", "ray")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    data.DataContext.get_current().enable_progress_bars = False
    rows = [{"item": pickle.dumps(item)} for item in items]
    results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(load, device),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=count),
        num_cpus=threads,
        num_gpus=1 if device == "cuda" else 0,
    )
    for row in results.iter_rows():
        yield pickle.loads(row["result"])


class Worker:
    """A process that computes on request and ends with this one; use as a context manager.

    Args:
        work: run in the process with a connection and `argument`. What it sends is received here, and a `PixioError`
            that it sends or raises is raised here.
        threads: CPU threads of the process; None leaves them to its libraries.
    """

    def __init__(self, work: Callable[[Connection, Any], None], argument: Any, threads: int | None = None) -> None:
        self._work, self._argument, self._threads = work, argument, threads

    def __enter__(self) -> "Worker":
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(self._work, theirs, self._argument), daemon=True)
        names = (*THREADS, "OPENBLAS_NUM_THREADS") if self._threads is not None else ()
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(dict.fromkeys(names, str(self._threads)))
        try:
            self._process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def send(self, value: Any) -> None:
        """Send a value."""
        with suppress(ConnectionError):  # `receive` raises when the process has ended
            self.pipe.send(value)

    def receive(self) -> Any:
        """Wait for the next answer.

        Raises:
            WorkerLost: if the process failed or was killed.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerLost("a worker process ended, perhaps for lack of memory") from error
        if isinstance(answer, PixioError):
            raise answer
        return answer


def _run(work: Callable[[Connection, Any], None], pipe: Connection, argument: Any) -> None:
    if parent := parent_process():
        end_after(parent.join)
    try:
        work(pipe, argument)
    except (EOFError, KeyboardInterrupt, ConnectionError):
        pass
    except PixioError as error:
        pipe.send(error)
    except Exception:
        pipe.send(WorkerLost(f"a worker process failed:\n{traceback.format_exc(limit=-4)}"))
