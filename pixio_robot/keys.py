"""A key of a command: its default, its line of help, the least value it may have; and the keys that many share."""

from dataclasses import dataclass, field
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


@dataclass
class Device:
    """Where numbers are computed."""

    device: str = key("auto", "auto, cpu, cuda, mps", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Hardware(Device):
    """Where and how exactly numbers are computed."""

    precision: str = key("auto", "auto, fp32, bf16 (autocast); auto is bf16 on CUDA devices that have it")
