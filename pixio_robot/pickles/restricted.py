"""Pickles as data: containers, strings, numbers and arrays come out of a file, nothing of it is ever run.

Python's own unpickler calls whatever a file names and sets whatever attributes it gives. This one looks names up in a
table and calls checked stand-ins only; `machine.py` has the instructions, `values.py` the stand-ins.
Large arrays of files on disk are views into the file, so that reading one needs little memory.
"""

import mmap
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError, UnsafePickle
from .machine import Machine, PickleBytes
from .values import ALLOWED, Record, resolve


def read_pickle(
    source: Path | bytes,
    records: Collection[str] = (),
    allowed: Mapping[str, Any] | None = None,
    where: str | None = None,
) -> Any:
    """Return the data in a pickle: containers, strings, numbers and numpy arrays (read-only).

    Args:
        source: the file, or its bytes.
        records: names of classes and functions whose objects become `Record`; they are not called.
        allowed: further names, with the checked functions that stand for them.
        where: what to call the file in messages; None for its path.

    Raises:
        UnsafePickle: naming what the file wanted that is no data; nothing of it was run.
        DataError: if it is no pickle, or damaged.
    """
    where = where or ("the pickle" if isinstance(source, bytes) else str(source))
    table = {**ALLOWED, **(allowed or {}), **{name: partial(_record, name) for name in records}}
    try:
        data = source if isinstance(source, bytes) else _mapped(source)
        return resolve(Machine(PickleBytes(data), table, frozenset(records)).run())
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{where} was not read: it {error}. Files of data need none of that; nothing was run"
        ) from None
    except DataError as error:
        raise DataError(f"{where} was not read: {error}") from error
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
        SyntaxError,
    ) as error:
        raise DataError(f"{where} is no pickle, or is damaged ({type(error).__name__}: {error})") from error


def read_stream(
    data: bytes | memoryview, count: int, allowed: Mapping[str, Any], persistent: Callable[[Any], Any]
) -> tuple[list[Any], memoryview]:
    """Return the first `count` pickles in `data`, one after the other, and the bytes behind them.

    Args:
        data: pickles and what follows.
        count: how many there are.
        allowed: the names they may use, with what stands for them.
        persistent: turns a persistent id into an object, as torch's storages are referred to.
    """
    file = PickleBytes(data)
    values = [Machine(file, allowed, frozenset(), persistent).run() for _ in range(count)]
    return values, file.view(len(data))


def _mapped(path: Path) -> bytes | mmap.mmap:
    if not path.is_file():
        raise DataError("there is no such file")
    if path.stat().st_size == 0:
        raise DataError("it is empty")
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise DataError("it is a zip archive, no pickle")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _record(name: str, *arguments: Any) -> Record:
    return Record(name, arguments)
