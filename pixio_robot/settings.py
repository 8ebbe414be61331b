"""How a command declares its keys, and the keys that many commands share."""

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"  # Hydra's mark for a key without a default


def key(default: Any, help: str, least: int | None = None, free: bool = False) -> Any:
    """Return a dataclass field for a key of a command.

    Args:
        default: its default value, or `MISSING`.
        help: its line in ``--help``.
        least: the smallest value allowed.
        free: not part of a run's identity (a path, a speed, a display option); a run may resume with another value.
    """
    metadata = {"help": help, "least": least, "free": free}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Device:
    """Where to compute."""

    device: str = key("auto", "auto, cpu, cuda, mps", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Hardware(Device):
    """Where to compute, and in which precision."""

    precision: str = key("auto", "auto, fp32, bf16 (autocast); auto is bf16 on CUDA devices that have it")
