"""A key of a command: its default, its line of help, the least value it may have."""

from dataclasses import field
from typing import Any

MISSING: Any = "???"  # Hydra's mark for a key without a default


def key(default: Any, help: str, least: int | None = None, free: bool = False) -> Any:
    """Return a dataclass field.

    Args:
        default: its value, or `MISSING`.
        help: a line for ``--help``.
        least: the least value it may have.
        free: it says where, how fast or how to show; a run may go on with another value.
    """
    metadata = {"help": help, "least": least, "free": free}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
