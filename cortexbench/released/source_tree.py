"""Writes nested dictionaries, lists and arrays to HDF5 groups, and reads them bit by bit.

Arrays are datasets under their own names. Other values have an attribute ``kind``; short plain values (text,
numbers, lists of them) are JSON. Names are percent-quoted where HDF5 would read them as paths.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import h5py
import numpy as np

from ...datasets.writer import image_options
from ...errors import DataError

_DEEPEST = 16
_OVERHEAD = 1024  # of a dataset or group, about [bytes]


def put(group: h5py.Group, name: str, value: Any) -> None:
    """Write a value under `name`; images, (T, H, W, C) uint8, are compressed.

    Raises:
        DataError: for what cannot be kept.
    """
    name = _quoted(name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        images = value.ndim == 4 and value.dtype == np.uint8 and 0 not in value.shape
        group.create_dataset(name, data=value, **(image_options(value.shape[1:]) if images else {}))
    elif isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        made = group.create_dataset(name, data=np.frombuffer(value.tobytes(), np.uint8))
        made.attrs.update(kind="text array", dtype=value.dtype.str, shape=value.shape)
    elif isinstance(value, np.generic) and value.dtype.kind in "biufc":
        group.create_dataset(name, data=value).attrs["kind"] = "number"
    elif isinstance(value, bytes):
        group.create_dataset(name, data=np.frombuffer(value, np.uint8)).attrs["kind"] = "bytes"
    elif _is_json(value):
        group.create_dataset(name, data=json.dumps(value)).attrs["kind"] = "json"
    else:
        parts = list(_parts(value))
        inner = group.create_group(name)
        if not isinstance(value, dict):
            inner.attrs["kind"] = {list: "list", tuple: "tuple", np.ndarray: "object array"}[type(value)]
        if isinstance(value, np.ndarray):
            inner.attrs["shape"] = value.shape
        for key, part in parts:
            put(inner, key, part)


def get(item: h5py.Group | h5py.Dataset) -> Any:
    """Return what `put` wrote."""
    kind = item.attrs.get("kind")
    if isinstance(item, h5py.Dataset):
        if kind is None:
            return np.asarray(item[()])
        if kind == "json":
            return json.loads(item.asstr()[()])
        if kind == "bytes":
            return item[()].tobytes()
        if kind == "text array":
            return np.frombuffer(item[()].tobytes(), np.dtype(item.attrs["dtype"])).reshape(item.attrs["shape"])
        return item[()]
    if kind is None:
        return {unquote(name): get(each) for name, each in item.items()}
    values = [get(item[str(index)]) for index in range(len(item))]
    if kind == "object array":
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(item.attrs["shape"])
    return tuple(values) if kind == "tuple" else values


def size_of(value: Any, depth: int = 0) -> int:
    """Return about how much space a value takes, uncompressed [bytes].

    Raises:
        DataError: for what cannot be kept.
    """
    if depth > _DEEPEST:
        raise DataError(f"containers are nested deeper than {_DEEPEST}")
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSU":
        return value.nbytes + _OVERHEAD
    if isinstance(value, bytes) or _is_json(value):
        return len(value if isinstance(value, bytes) else json.dumps(value)) + _OVERHEAD
    return _OVERHEAD + sum(size_of(part, depth + 1) for _, part in _parts(value))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str) or not key]:
            raise DataError(f"a dictionary has the key {odd[0]!r}; only names can be kept")
        yield from value.items()
    elif isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        flat = value.ravel() if isinstance(value, np.ndarray) else value
        yield from ((str(index), each) for index, each in enumerate(flat))
    else:
        raise DataError(f"a {type(value).__name__} cannot be kept")


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_json(each) for each in value)
    return value is None or type(value) in (str, int, bool, float)


def _quoted(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E") if name.strip(".") == "" else quote(name, safe=" .,:;-+()[]=@#")
