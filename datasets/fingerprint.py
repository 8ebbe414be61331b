"""The hash of a file's content, computed once and kept in a side file."""

import json
from contextlib import suppress
from pathlib import Path

from ..files import replacing, sha256_of


def stat_of(path: Path) -> list[int]:
    """Return what changes when a file is written: size [bytes] and time of change [ns]."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def fingerprint_of(path: Path) -> str:
    """Return the SHA-256 of a file. It is kept in ``.NAME.sha256`` beside the file while size and time of change stay.

    Where the folder cannot be written, it is computed each time.
    """
    side = path.with_name(f".{path.name}.sha256")
    stat = stat_of(path)
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(side.read_text())
        if known["stat"] == stat:
            return str(known["sha256"])
    found = sha256_of(path)
    with suppress(OSError), replacing(side) as temporary:
        temporary.write_text(json.dumps({"stat": stat, "sha256": found}) + "\n")
    return found
