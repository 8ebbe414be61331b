"""The files inside a released archive, whether it is a zip, an unpacked folder or one file."""

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from ...errors import DataError
from ...files import replacing, require_space

_CHUNK = 2**22  # [bytes]


@dataclass(frozen=True)
class ArchiveFile:
    """One file: in a folder, or in a zip archive.

    Attributes:
        name: its path with the archive's or folder's own name in front.
        path: the file, or the zip archive that holds it.
        member: its name in the zip archive; None for a plain file.
    """

    name: str
    path: Path
    member: str | None = None

    @cached_property
    def checksum(self) -> tuple[int, int]:
        """Return size and CRC-32 of the content, the same in a zip archive and unpacked."""
        if self.member is not None:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(self.member)
                return info.file_size, info.CRC
        size, crc = 0, 0
        with open(self.path, "rb") as file:
            while chunk := file.read(_CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        return size, crc

    def read(self) -> bytes:
        """Return the whole content; meant for small files."""
        if self.member is None:
            return self.path.read_bytes()
        with _zip_errors(self.path), zipfile.ZipFile(self.path) as archive:
            return archive.read(self.member)

    @contextmanager
    def on_disk(self, beside: Path) -> Iterator[Path]:
        """Yield a plain file with the content; one out of a zip archive is unpacked beside a path, then removed.

        Raises:
            OSError: if the disk has no room to unpack it.
            DataError: if the zip archive is damaged.
        """
        if self.member is None:
            yield self.path
            return
        unpacked = beside.with_name(f"{beside.name}.unpacked")
        require_space(unpacked, self.checksum[0])
        try:
            with (
                _zip_errors(self.path),
                zipfile.ZipFile(self.path) as archive,
                replacing(unpacked) as temporary,
                archive.open(self.member) as packed,
                open(temporary, "wb") as file,
            ):
                shutil.copyfileobj(packed, file, _CHUNK)
            yield unpacked
        finally:
            unpacked.unlink(missing_ok=True)


def files_of(source: Path) -> list[ArchiveFile]:
    """Return the files of a zip archive or folder, or the one file that `source` is, sorted by name.

    Raises:
        DataError: if there is nothing, or the zip archive is damaged.
    """
    if source.is_dir():
        root = source.resolve()
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return [ArchiveFile(str(path.relative_to(root.parent)), path) for path in found]
    if not source.is_file():
        raise DataError(f"no file or folder {source}")
    if not _is_zip(source):
        return [ArchiveFile(source.name, source)]
    with _zip_errors(source), zipfile.ZipFile(source) as archive:
        names = sorted(each.filename for each in archive.infolist() if not each.is_dir())
    return [ArchiveFile(f"{source.stem}/{name}", source, name) for name in names]


def matching(files: Sequence[ArchiveFile], pattern: str) -> list[tuple[str, ArchiveFile]]:
    """Return the files whose name ends in `pattern`, each with what the pattern's group or all of it matched."""
    found = [(re.search(rf"(?:^|/){pattern}$", each.name), each) for each in files]
    return [(match[match.lastindex or 0], each) for match, each in found if match]


def identity(files: Sequence[ArchiveFile]) -> str:
    """Return what tells files of one content from those of another, wherever they lie."""
    return sha256(json.dumps([each.checksum for each in files]).encode()).hexdigest()[:16]


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is a damaged zip archive, or one of a kind that cannot be read: {error}") from error
