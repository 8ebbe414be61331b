"""Arrays computed once for every frame of a data set, identified by what they were computed from.

A cache is a folder named after the digest of its identity. It holds one memory-mapped ``.npy`` for each array and
``manifest.json``, which is written last. An interrupted fill resumes.

Shapes: F frames, B batch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from ..errors import DataError
from ..files import require_space, reserve, sha256_of
from ..progress import stage
from ..run_folder import digest, read_json, write_json
from .fingerprint import stat_of

_STAT = "verified.json"  # size and time of change of arrays whose hash was compared
_BATCHES_BETWEEN_SAVES = 32


class ArraySpec(NamedTuple):
    """One array of a cache, for one frame."""

    shape: tuple[int, ...]
    dtype: str


Compute = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # frames (B, ...) to arrays (B, *shape) by name


@dataclass
class FrameCache:
    """Memory-mapped arrays of a data set, row by row as its frames.

    Pickled, it holds the folder only: another process opens the arrays again.
    """

    folder: Path
    arrays: dict[str, np.ndarray]  # (F, ...)
    manifest: dict[str, Any]
    reused: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # reading and computing [s]

    @property
    def name(self) -> str:
        """The digest of what it was made from."""
        return self.folder.name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": self.folder.absolute(), "arrays": list(self.arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, arrays=_open_arrays(state["folder"], state["arrays"]))


def frame_cache(
    root: Path,
    identity: dict[str, Any],
    specs: Mapping[str, ArraySpec],
    frames: Callable[[int], Iterator[np.ndarray]],
    compute: Compute,
    total: int,
) -> FrameCache:
    """Return the cache of an identity, filling what is missing.

    Args:
        root: folder of all caches.
        identity: what the arrays depend on, ready for JSON; it names the folder.
        specs: the arrays.
        frames: gives batches of frames (B, ...) from a row on.
        compute: turns a batch into the arrays.
        total: F.

    Raises:
        DataError: if a finished cache is damaged.
    """
    folder = root / digest(identity)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # one process fills; others wait and find it filled
        if folder.is_dir():
            return open_cache(folder, identity)
        partial = folder.with_suffix(".partial")
        seconds = _fill(partial, specs, frames, compute, total)
        files = sorted(partial.glob("*.npy"))
        manifest = {**identity, "sha256": {file.name: sha256_of(file) for file in files}}
        (partial / "progress.json").unlink()
        write_json(partial / _STAT, {file.name: stat_of(file) for file in files})
        write_json(partial / "manifest.json", manifest)
        partial.rename(folder)
    cache = open_cache(folder, identity)
    return FrameCache(cache.folder, cache.arrays, cache.manifest, reused=False, seconds=seconds)


def open_cache(folder: Path, identity: dict[str, Any]) -> FrameCache:
    """Open a finished cache.

    A file whose size and time of change are those of its last check is not hashed again.

    Raises:
        DataError: if it was made from something else, or a file is missing or was changed.
    """
    manifest = read_json(folder / "manifest.json")
    advice = f"delete {folder} and run again"
    stale = [name for name, value in identity.items() if manifest.get(name) != json.loads(json.dumps(value))]
    if stale:
        raise DataError(f"cache {folder} does not fit: {', '.join(stale)} differ; {advice}")
    known, verified = read_json(folder / _STAT), {}
    for name, expected in manifest["sha256"].items():
        file = folder / name
        if not file.is_file() or (stat_of(file) != known.get(name) and sha256_of(file) != expected):
            raise DataError(f"cache {file} is damaged (its SHA-256 is not the manifest's); {advice}")
        verified[name] = stat_of(file)
    if verified != known:
        with suppress(OSError):  # on a disk that is read only, the hash is compared each time
            write_json(folder / _STAT, verified)
    names = [name.removesuffix(".npy") for name in manifest["sha256"]]
    return FrameCache(folder, _open_arrays(folder, names), manifest, reused=True)


def _open_arrays(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def _fill(
    partial: Path,
    specs: Mapping[str, ArraySpec],
    frames: Callable[[int], Iterator[np.ndarray]],
    compute: Compute,
    total: int,
) -> dict[str, float]:
    partial.mkdir(parents=True, exist_ok=True)
    done = int(read_json(partial / "progress.json").get("rows", 0))
    if not done:
        sizes = [int(np.prod(each.shape)) * np.dtype(each.dtype).itemsize for each in specs.values()]
        require_space(partial / "size", total * sum(sizes))
    arrays = {
        name: np.lib.format.open_memmap(
            partial / f"{name}.npy", mode="r+" if done else "w+", dtype=spec.dtype, shape=(total, *spec.shape)
        )
        for name, spec in specs.items()
    }
    for name in arrays:
        reserve(partial / f"{name}.npy")  # writing to a memory map on a full disk would end the process
    seconds, saved, batches = {"reading": 0.0, "encoding": 0.0}, done, 0
    with stage("encode", total) as bar:
        bar.advance(done)
        began = perf_counter()
        for batch in frames(done):
            read = perf_counter()
            for name, values in compute(batch).items():
                arrays[name][done : done + len(batch)] = values
            done, batches = done + len(batch), batches + 1
            bar.advance(len(batch))
            if batches % _BATCHES_BETWEEN_SAVES == 0 and saved < done:
                _save_progress(partial, arrays, done)
                saved = done
            seconds["reading"] += read - began
            began = perf_counter()
            seconds["encoding"] += began - read
    _save_progress(partial, arrays, done)
    return seconds


def _save_progress(partial: Path, arrays: Mapping[str, np.memmap], done: int) -> None:
    for array in arrays.values():
        array.flush()
    write_json(partial / "progress.json", {"rows": done})
