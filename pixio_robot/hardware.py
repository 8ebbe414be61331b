"""Device, precision, threads and seeds."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .errors import BadInput, UnknownName

PRECISIONS = ("fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "mps".

    Raises:
        UnknownName: for another name.
        BadInput: if this machine does not have the device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if name not in available:
        raise UnknownName(f"no device {name!r}; there are: auto, {', '.join(available)}")
    if not available[name]:
        there = ", ".join(kind for kind, there in available.items() if there)
        raise BadInput(f"device {name!r} was asked for; this machine has: {there}. Use device=auto")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16" for "auto", "fp32" or "bf16".

    Raises:
        UnknownName: for another name.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in PRECISIONS:
        raise UnknownName(f"no precision {name!r}; there are: auto, {', '.join(PRECISIONS)}")
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context that computes in `precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads inside; small networks are faster with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seed PyTorch's CPU generator from `parts` inside the context, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(combine(*parts))
        yield


def keep_memory() -> None:
    """Make glibc keep freed memory: training on a CPU allocates the same arrays every step, and new pages are slow.

    Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD [bytes]
        malloc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def combine(*parts: int) -> int:
    """Mix integers into one seed; different parts give unrelated seeds."""
    import numpy as np

    return int(np.random.SeedSequence([part % 2**63 for part in parts]).generate_state(1, np.uint64)[0] >> 1)
