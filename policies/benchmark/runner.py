"""Runs cells, each in a process of its own: a crash ends one cell, a stop ends none that is finished.

Engines differ in who starts the processes: this machine, Ray or Slurm. Cells, files and results are the same.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ...errors import MissingExtra
from ...progress import Progress
from ...run_folder import write_json
from .cell import Cell

ENGINES = ("local", "ray", "slurm")
Run = Callable[[Path, int], int]  # a cell's folder and threads to the exit status


def describe(cells: Sequence[Cell], root: Path, experts: dict[str, str]) -> list[Path]:
    """Write each cell's ``cell.json`` and return the folders of those that have no result yet."""
    waiting = []
    for cell in cells:
        folder = root / "cells" / cell.name
        write_json(folder / "cell.json", {"cell": asdict(cell), "root": str(root.resolve()), "experts": experts})
        if not (folder / "result.json").is_file():
            waiting.append(folder)
    return waiting


def run_cells(
    folders: Sequence[Path], jobs: int, threads: int, progress: Progress, begin: "Begin", watch: Callable[[], None]
) -> dict[str, str]:
    """Run cells and return what went wrong, by the folder's name.

    Args:
        folders: as `describe` returns them.
        jobs: cells at a time.
        threads: threads of each.
        begin: starts a cell; see `local`, `ray` and `slurm`.
        watch: called after each cell.
    """
    failures = {}
    with begin(jobs, threads) as submit, progress.stage("benchmark", len(folders)) as bar:
        futures: dict[Future[int], Path] = {submit(folder): folder for folder in folders}
        for future in as_completed(futures):
            folder = futures[future]
            error = future.exception()
            if error is not None or future.result() != 0 or not (folder / "result.json").is_file():
                failures[folder.name] = str(error) if error is not None else last_words(folder)
            bar.advance(1)
            watch()
    return failures


def last_words(folder: Path) -> str:
    """Return the last line that a cell logged."""
    log = folder / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it ended without a word")


def run_folder(folder: str, threads: int, stopping: threading.Event | None = None) -> int:
    """Run one cell in a new process and return its exit status; its words go to ``log.txt``."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "LP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pixio_robot.policies.benchmark.cell", folder]
    with (Path(folder) / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if stopping is not None and stopping.is_set():
                    process.terminate()


Submit = Callable[[Path], "Future[int]"]
Begin = Callable[[int, int], "contextmanager[Submit]"]


@contextmanager
def local(jobs: int, threads: int) -> Iterator[Submit]:
    """Run cells on this machine."""
    stopping = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        yield lambda folder: pool.submit(run_folder, str(folder), threads, stopping)
    except BaseException:
        stopping.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def ray(jobs: int, threads: int) -> Iterator[Submit]:
    """Run cells on a Ray cluster, or on this machine where there is none.

    Raises:
        MissingExtra: if Ray is not installed.
    """
    try:
        import ray as engine
    except ImportError as error:
        raise MissingExtra("engine=ray", "ray") from error
    begun = not engine.is_initialized()
    if begun:
        engine.init(log_to_driver=False)
    remote = engine.remote(num_cpus=threads, max_retries=0)(run_folder)
    try:
        yield lambda folder: remote.remote(str(folder.resolve()), threads).future()
    finally:
        if begun:
            engine.shutdown()


def cost(folder: Path) -> float:
    """Return the seconds a finished cell took."""
    return float(json.loads((folder / "result.json").read_text()).get("seconds", 0.0))
