"""What must be known of a large file to read it at random, found once and kept in the cache."""

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
    """Return path, size and time of a file, or of all files of a folder; they tell whether it changed."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def load(index: Path) -> Arrays:
    """Return what an index holds."""
    with np.load(index) as archive:
        return dict(archive)


def index_files(files: Sequence[Path], folder: Path, kind: str, build: Callable[[Path], Arrays]) -> list[Path | None]:
    """Index files that are not indexed yet.

    Args:
        files: what to index; a file that changed since is indexed anew.
        folder: where indices are kept.
        kind: the name of this sort of index and its version; part of an index's name.
        build: makes the index of one file, or raises `DataError`.

    Returns:
        For each file its index, for `load`; None for those that cannot be used, which are logged.

    Raises:
        DataError: the first reason, if no file can be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path | None] = []
    errors: list[DataError] = []
    with FileLock(folder / f"{kind}.lock"):  # one rank indexes, the others wait and find it done
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
