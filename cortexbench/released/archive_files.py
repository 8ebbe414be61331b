"""The files of a released archive: a zip file, an unpacked folder or a single file."""

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ...errors import DataError
from ...files import replacing, require_space
from ...restricted_pickle import content, refusals

_CHUNK = 2**22  # [bytes]


@dataclass(frozen=True)
class ArchiveFile:
    """One file: in a folder, or in a zip archive.

    Attributes:
        name: its path with the archive's or folder's own name in front.
        path: the file, or the zip archive that holds it.
        info: its entry in the zip archive; None for a plain file.
    """

    name: str
    path: Path
    info: zipfile.ZipInfo | None = None

    @property
    def size(self) -> int:
        """Return the size of the content [bytes]."""
        return self.path.stat().st_size if self.info is None else self.info.file_size

    def read(self) -> bytes:
        """Return the whole content; meant for small files."""
        if self.info is None:
            return self.path.read_bytes()
        with _opened(self.path) as archive:
            return archive.read(self.info)

    def crc(self) -> int:
        """Return the CRC-32 of the content, the same in a zip archive and unpacked."""
        if self.info is not None:
            return self.info.CRC
        with refusals(self.name, "file"):
            return zlib.crc32(content(self.path))

    @contextmanager
    def on_disk(self, beside: Path) -> Iterator[Path]:
        """Yield a plain file with the content; one out of a zip archive is unpacked beside a path, then removed.

        Raises:
            OSError: if the disk has no room to unpack it.
            DataError: if the zip archive is damaged.
        """
        if self.info is None:
            yield self.path
            return
        unpacked = beside.with_name(f"{beside.name}.unpacked")
        require_space(unpacked, self.size)
        try:
            with (
                _opened(self.path) as archive,
                archive.open(self.info) as packed,
                replacing(unpacked) as temporary,
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
        return [
            ArchiveFile(str(each.relative_to(root.parent)), each) for each in sorted(root.rglob("*")) if each.is_file()
        ]
    if not source.is_file():
        raise DataError(f"no file or folder {source}")
    with open(source, "rb") as file:
        if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
            return [ArchiveFile(source.name, source)]
    with _opened(source) as archive:
        members = sorted((each for each in archive.infolist() if not each.is_dir()), key=lambda each: each.filename)
    return [ArchiveFile(f"{source.stem}/{each.filename}", source, each) for each in members]


def matching(files: Sequence[ArchiveFile], pattern: str) -> list[tuple[str, ArchiveFile]]:
    """Return the files whose name ends in `pattern`, each with what the pattern's group or all of it matched."""
    found = [(re.search(rf"(?:^|/){pattern}$", each.name), each) for each in files]
    return [(match[match.lastindex or 0], each) for match, each in found if match]


def identity(files: Sequence[ArchiveFile]) -> str:
    """Return a digest of the files' contents; it does not depend on where they are."""
    return sha256(json.dumps([(each.size, each.crc()) for each in files]).encode()).hexdigest()[:16]


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is a damaged zip archive, or one of a kind that cannot be read: {error}") from error
