"""Files that are complete or absent: written to a temporary name, then renamed."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on any error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(path: Path, size: int) -> None:
    """Check that a file fits on the disk before writing it.

    Args:
        path: the file to be written.
        size: its expected size [bytes].

    Raises:
        OSError: with `errno.ENOSPC` if the disk has less than `size` plus a small margin.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < 1.02 * size + 2**20:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free", str(path))


def reserve(path: Path) -> None:
    """Allocate the whole of a sparse file on the disk, where the system supports it.

    Raises:
        OSError: with `errno.ENOSPC` if there is not enough.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def explain(error: OSError) -> str:
    """Return a readable message for an operating system error; HDF5 hides the error number in its message."""
    if error.errno == errno.ENOSPC or f"errno = {errno.ENOSPC}" in str(error):
        place = os.path.abspath(error.filename or ".")
        return f"no space left for {place} ({error.strerror or error}); free some, or choose another out= or cache="
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission to write {error.filename}; choose another out="
    return str(error)
