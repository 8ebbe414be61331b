"""Tensors of files by ``torch.save``, and of plain pickles by old versions of torch, read as arrays without torch.

`TENSORS` is for `read_pickle(allowed=...)`. torch's own reader for weights runs no code either, but a file of 1 MB with
deeply nested keys ends its process, and simulators must not load torch.
"""

import io
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .restricted_pickle import ALLOWED, Reader, content, refusals, sides

_MAGIC = 0x1950A86A20F9469CFC6C  # begins every file by torch.save before version 1.6
_DTYPES = dict(
    Float="<f4", Double="<f8", Half="<f2", Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1", Bool="?"
)
_STORAGES = {f"torch.{name}Storage": np.dtype(code) for name, code in _DTYPES.items()}


def read_torch_file(source: Path | bytes, where: str) -> Any:
    """Return the data in a file by ``torch.save``: containers, numbers, arrays (read-only); tensors become arrays.

    Args:
        source: the file, or its bytes.
        where: its name in messages.

    Raises:
        UnsafePickle: naming what the file wanted that is no data; nothing of it was run.
        DataError: if it is no such file, or damaged.
    """
    with refusals(where, "file by torch.save"):
        data, table = content(source), {**ALLOWED, **TENSORS, **_STORAGES}
        return _read_archive(data, table) if data[:4] == b"PK\x03\x04" else _read_stream(data, table)


def _read_archive(data: bytes | mmap.mmap, table: Mapping[str, Any]) -> Any:
    """Read a file of torch 1.6 or later: a zip archive of a pickle and the storages, not compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {each.filename: each for each in archive.infolist()}
        packed = any(each.compress_type != zipfile.ZIP_STORED for each in members.values())
        if packed or sum(each.file_size for each in members.values()) > len(data):
            raise DataError("its members are compressed, or lie over each other")
        (name,) = (each for each in members if each.endswith("/data.pkl"))
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise DataError("its numbers are big-endian")
        storages = cache(lambda key: archive.read(f"{folder}data/{key}"))
        return Reader(archive.read(name), table, partial(_numbers, storages)).data()


def _read_stream(data: bytes | mmap.mmap, table: Mapping[str, Any]) -> Any:
    """Read a file of torch before 1.6: five pickles, then the storages, for which the fourth pickle is read again."""
    dtypes: dict[str, np.dtype] = {}
    storages: dict[str, memoryview] = {}

    def note(*reference: Any) -> None:
        key, dtypes[key], _ = _referenced(*reference)

    reader = Reader(data, {**table, **dict.fromkeys(TENSORS, lambda *_: None)}, note)
    if reader.load() != _MAGIC:
        raise ValueError("it does not begin like one")
    _ = reader.load(), reader.load()  # of the version and the machine
    start = reader.file.tell()
    _, keys = reader.load(), reader.load()
    for key in keys:
        if not isinstance(key, str):
            raise TypeError("the name of a storage is no text")
        storages[key] = reader.view(int.from_bytes(reader.view(8), "little") * dtypes[key].itemsize)
    if reader.read(1):
        raise ValueError("there is more behind its storages")
    reader = Reader(data, table, partial(_numbers, storages.__getitem__))
    reader.file.seek(start)
    return reader.data()


def _referenced(
    label: Any, dtype: Any, key: Any, device: Any, size: Any, view: Any = None
) -> tuple[str, np.dtype, int]:
    """Return the name, dtype and size of a storage that a pickle refers to."""
    if label != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or view is not None:
        raise ValueError("it refers to something else than a storage")
    return key, dtype, sides((size,))[0]


def _numbers(storages: Callable[[str], bytes | memoryview], *reference: Any) -> np.ndarray:
    key, dtype, size = _referenced(*reference)
    if len(data := storages(key)) != size * dtype.itemsize:
        raise ValueError(f"a storage of {size} numbers has {len(data)} bytes")
    return np.frombuffer(data, dtype)


def _storage(data: Any) -> np.ndarray:
    """Return the flat array for ``torch.storage._load_from_bytes``: a file by ``torch.save`` of one storage."""
    if not isinstance(data, (bytes, memoryview)):
        raise ValueError("a storage is made of bytes")
    if not isinstance(storage := _read_stream(bytes(data), _STORAGES), np.ndarray):
        raise ValueError("the bytes of a storage hold none")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = 0, hooks: Any = (), bits: Any = ()) -> Any:
    """Return part of a storage for ``torch._utils._rebuild_tensor_v2``; `bits` say whether its numbers are negated."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or bits:
        raise ValueError("a tensor has no storage, or is a negated view of one")
    shape, steps, (first,) = sides(size), sides(stride), sides((offset,))
    items, last = math.prod(shape), first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if items > storage.size or (items and last >= storage.size):
        raise ValueError(f"a tensor reaches beyond its storage of {storage.size} numbers")
    strides = tuple(each * storage.itemsize for each in steps)
    return np.lib.stride_tricks.as_strided(storage[first:], shape, strides, writeable=False)


def _parameter(data: Any, *_: Any) -> np.ndarray:
    """Return the tensor of ``torch._utils._rebuild_parameter``."""
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter is no tensor")
    return data


TENSORS: dict[str, Any] = {
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
