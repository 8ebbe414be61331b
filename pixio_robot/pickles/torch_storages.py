"""Tensors inside plain pickles, as old versions of torch wrote them, read as arrays without torch.

Such a tensor names a storage, which is a file by ``torch.save`` of its own: five pickles, then the numbers.
`TENSORS` goes to `read_pickle(allowed=...)`.
"""

import math
from typing import Any

import numpy as np

from .restricted import read_stream
from .values import OddArguments

_MAGIC = 0x1950A86A20F9469CFC6C  # begins every file by torch.save before version 1.6
_KINDS = {
    f"torch.{name}Storage": np.dtype(code)
    for name, code in dict(
        Float="<f4", Double="<f8", Half="<f2", Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1", Bool="?"
    ).items()
}


def _storage(data: Any) -> np.ndarray:
    """Stand for ``torch.storage._load_from_bytes``: a storage as a flat array."""
    if not isinstance(data, (bytes, memoryview)):
        raise OddArguments("a storage is made of bytes")
    found: list[np.dtype] = []

    def persistent(reference: tuple[Any, ...]) -> str:
        if len(reference) < 5 or reference[0] != "storage" or not isinstance(reference[1], np.dtype):
            raise OddArguments("a storage refers to something else")
        found.append(reference[1])
        return str(reference[2])

    (magic, _, _, key, keys), rest = read_stream(data, 5, _KINDS, persistent)
    if magic != _MAGIC or len(found) != 1 or keys != [key]:
        raise OddArguments("the bytes of a storage hold none")
    numbers, count = rest[8:], int.from_bytes(rest[:8], "little")
    if len(numbers) != count * found[0].itemsize:
        raise OddArguments(f"a storage of {count} numbers has {len(numbers)} bytes")
    return np.frombuffer(numbers, found[0])


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Stand for ``torch._utils._rebuild_tensor_v2``: part of a storage, as an array of its own."""
    whole = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
    if not isinstance(storage, np.ndarray) or not all(type(each) is int and each >= 0 for each in whole):
        raise OddArguments("a tensor has no storage, offset, size and stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.size or (math.prod(size) and last >= storage.size):
        raise OddArguments(f"a tensor {size} reaches beyond its storage of {storage.size} numbers")
    steps = tuple(each * storage.itemsize for each in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


def _parameter(data: Any, *_: Any) -> np.ndarray:
    """Stand for ``torch._utils._rebuild_parameter``."""
    if not isinstance(data, np.ndarray):
        raise OddArguments("a parameter is no tensor")
    return data


TENSORS: dict[str, Any] = {
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
