"""Indexes of large files for random access, built once and kept in the cache."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from ...errors import DataError, MissingExtra
from ...files import replacing
from ...progress import stage
from ...run_folder import digest

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def state_of(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of a file, or of all files of a folder, to detect changes."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def load(index: Path) -> Arrays:
    """Return the arrays of an index."""
    with np.load(index) as archive:
        return dict(archive)


def index_files(files: Sequence[Path], folder: Path, kind: str, build: Callable[[Path], Arrays]) -> list[Path | None]:
    """Index files that are not indexed yet.

    Args:
        files: what to index; a changed file is indexed again.
        folder: where indexes are kept.
        kind: name and version of this kind of index, part of the file name.
        build: returns the index of one file, or raises `DataError`.

    Returns:
        The index of each file, for `load`; None for files that cannot be used, which are logged.

    Raises:
        DataError: if no file can be used; the first reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path | None] = []
    errors: list[DataError] = []
    with FileLock(folder / f"{kind}.lock"):  # one rank indexes, the others wait
        indices = [folder / f"{kind}-{digest(state_of(file))}.npz" for file in files]
        missing = sum(not index.is_file() for index in indices)
        with stage(f"index {kind.partition('-')[0]} files", missing) as bar:
            for file, index in zip(files, indices, strict=True):
                if not index.is_file():
                    bar.advance(1)
                    try:
                        arrays = build(file)
                    except MissingExtra:
                        raise
                    except DataError as error:
                        errors.append(error)
                        found.append(None)
                        continue
                    with replacing(index) as temporary, temporary.open("wb") as stream:
                        np.savez(stream, **arrays)  # type: ignore[arg-type]
                found.append(index)
    if len(errors) == len(files):
        raise errors[0]
    for each in errors:
        log.warning("not used: %s", each)
    return found
