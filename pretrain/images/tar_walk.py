"""The members of a tar file in order, and their offsets; contents are not read."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class Member(NamedTuple):
    """One file inside a tar file."""

    name: str
    offset: int  # of the content [bytes]
    size: int  # [bytes]
    header: int  # offset of its first header block, including that of a long name [bytes]


class TarWalk:
    """Iterates over the complete regular files of an uncompressed tar file; links and sparse files are skipped.

    Args:
        path: the tar file. Iteration opens it and raises `OSError` if it cannot be read.
        start: offset of a header [bytes].
    """

    def __init__(self, path: str | Path, start: int = 0) -> None:
        self.cut = False  # after iterating: whether the archive ends before its end mark, or is damaged
        self.path, self._start = path, start

    def __iter__(self) -> Iterator[Member]:
        self.cut = True
        with open(self.path, "rb") as file, suppress(tarfile.TarError, ValueError, OverflowError, MemoryError):
            end = os.fstat(file.fileno()).st_size
            file.seek(self._start)
            archive = tarfile.TarFile(fileobj=file)
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all, and there may be millions
                regular = member.type in _FILES and not member.issparse()
                if member.size < 0 or (regular and member.offset_data + member.size > end):
                    return
                if regular:
                    yield Member(member.name, member.offset_data, member.size, member.offset)
            file.seek(archive.offset)
            block = file.read(tarfile.BLOCKSIZE)
            self.cut = len(block) < tarfile.BLOCKSIZE or any(block)
