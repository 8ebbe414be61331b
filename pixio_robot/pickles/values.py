"""Stand-ins for what pickles of numpy arrays name: each checks its arguments, none runs code of the file.

`ALLOWED` maps the names that a file may use to these. They only hold what they were given; `resolve` makes arrays of
them once the file is read, so numpy's own unpickling, which trusts its input, is never called.
"""

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DataError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_CODE = re.compile(r"[<>|=]?([?bBhHiIlLqQefdgFDG]|[biufcSU]\d+|O[48]?)")
_DEEPEST = 100  # containers inside each other


class OddArguments(Exception):
    """An allowed name was called, or an object filled, with what no honest file has."""


class NdarrayName:
    """`numpy.ndarray` as an argument; never made."""

    def __init__(self, *arguments: Any) -> None:
        raise OddArguments("numpy.ndarray is not called by files")


class PickledDtype:
    """Stands for a `numpy.dtype` of numbers, bools, strings or objects."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise OddArguments(f"dtype {code!r} is not one of numbers, bools, strings or objects")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise OddArguments("a dtype's state is not what numpy writes")
        if any(each is not None for each in state[2:5]):
            raise OddArguments("a dtype has fields; only plain ones are read")
        if state[1] != "|":
            self.value = self.value.newbyteorder(state[1])


class PickledArray:
    """Stands for a `numpy.ndarray`; also for `numpy.core.multiarray._reconstruct`, which makes an empty one."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not NdarrayName or shape not in ((0,), [0]):
            raise OddArguments("only an empty numpy.ndarray is made")
        self.value: np.ndarray | None = None
        self.objects: list[Any] | None = None  # of an array of objects, still to be resolved

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise OddArguments("an array's state is not what numpy writes")
        _, shape, dtype, fortran, data = state
        self._fill(data, dtype, shape, "F" if fortran else "C")

    def _fill(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, PickledDtype) or order not in ("C", "F"):
            raise OddArguments("an array's dtype or order is not what numpy writes")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise OddArguments(f"an array has the shape {shape!r}")
        if dtype.value.hasobject:
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise OddArguments("an array of objects holds no list of its size")
            self.value, self.objects = np.empty(shape, object), data
            return
        if isinstance(data, str):  # written by Python 2, whose strings were bytes
            data = data.encode("latin-1")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise OddArguments("an array's data are not bytes")
        if len(data) != math.prod(shape) * dtype.value.itemsize:
            raise OddArguments(f"an array {shape} of {dtype.value} has {len(data)} bytes of data")
        flat = np.frombuffer(data, dtype.value) if len(data) else np.empty(math.prod(shape), dtype.value)
        self.value = flat.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray(NdarrayName, (0,), b"b")
    array._fill(data, dtype, shape, order)
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if isinstance(dtype, PickledDtype) and dtype.value.hasobject:
        raise OddArguments("a number is an object")
    array = _from_buffer(data, dtype, (), "C")
    assert array.value is not None
    return array.value[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "latin_1"):
        raise OddArguments(f"_codecs.encode is for bytes written as latin1, not {encoding!r}")
    return text.encode("latin-1")


def _bytes(*arguments: Any) -> bytes:
    if len(arguments) == 2:
        return _encode(*arguments)
    if len(arguments) > 1 or not all(isinstance(each, (bytes, memoryview)) for each in arguments):
        raise OddArguments("bytes are made of bytes")
    return bytes(*arguments)


def _bytearray(*arguments: Any) -> bytearray:
    return bytearray(_bytes(*arguments))


def checked_keys(keys: Sequence[Any]) -> Sequence[Any]:
    """Return keys of a dictionary or items of a set if they are plain, or tuples of plain values.

    Raises:
        TypeError: for others; hashing tuples nested very deep ends the process.
    """
    for each in keys:
        inner = each if type(each) is tuple else (each,)
        if not all(isinstance(part, (*_PLAIN, np.generic)) for part in inner):
            raise TypeError(f"a {type(each).__name__} is no key")
    return keys


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        if len(arguments) > 1 or not all(isinstance(each, (list, tuple, dict)) for each in arguments):
            raise OddArguments(f"{getattr(kind, '__name__', kind)} takes one container")
        items = arguments[0] if arguments else ()
        if kind in (set, frozenset):
            checked_keys(items)
        elif kind in (dict, OrderedDict) and not isinstance(items, dict):
            checked_keys([key for key, _ in items])
        return kind(*arguments)

    return make


def _complex(*arguments: Any) -> complex:
    if len(arguments) > 2 or not all(isinstance(each, (int, float)) for each in arguments):
        raise OddArguments("complex takes two numbers")
    return complex(*arguments)


_NUMPY: dict[str, Any] = {"ndarray": NdarrayName, "dtype": PickledDtype}
for _core in ("core", "_core"):
    _NUMPY[f"{_core}.multiarray._reconstruct"] = PickledArray
    _NUMPY[f"{_core}.multiarray.scalar"] = _scalar
    _NUMPY[f"{_core}.numeric._frombuffer"] = _from_buffer

_BUILTINS: dict[str, Any] = {
    **{kind.__name__: _container(kind) for kind in (list, tuple, dict, set, frozenset)},
    "bytes": _bytes,  # Python 3's empty ones, in protocol 2
    "bytearray": _bytearray,
    "complex": _complex,
}

ALLOWED: dict[str, Any] = {
    **{f"numpy.{name}": value for name, value in _NUMPY.items()},
    **{f"{module}.{name}": value for module in ("builtins", "__builtin__") for name, value in _BUILTINS.items()},
    "collections.OrderedDict": _container(OrderedDict),
    "_codecs.encode": _encode,
}


class Record:
    """An object of a class that is not at hand: its name, what it was made with, and its attributes as data."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Record({self.name!r}, {len(self.state)} attributes)"


def resolve(value: Any) -> Any:
    """Return `value` with every stand-in replaced by what it stands for; torch tensors become arrays.

    Raises:
        DataError: if something is left that is no data, or containers hold themselves.
    """
    return _resolve(value, {}, 0)


_UNDER_WAY = object()


def _resolve(value: Any, known: dict[int, Any], depth: int) -> Any:
    if isinstance(value, (*_PLAIN, np.generic, np.ndarray)):
        return value
    if id(value) in known:
        if known[id(value)] is _UNDER_WAY:
            raise DataError("a container holds itself")
        return known[id(value)]
    if depth > _DEEPEST:
        raise DataError(f"containers are nested deeper than {_DEEPEST}")
    known[id(value)] = value if isinstance(value, Record) else _UNDER_WAY  # objects may well know each other
    known[id(value)] = made = _resolved(value, known, depth + 1)
    return made


def _resolved(value: Any, known: dict[int, Any], depth: int) -> Any:
    def inner(values: Sequence[Any]) -> list[Any]:
        return [_resolve(each, known, depth) for each in values]

    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, PickledArray):
        if value.value is None:
            raise DataError("an array was never filled")
        if value.objects is not None:
            for index, each in enumerate(inner(value.objects)):
                value.value.flat[index] = each
        return value.value
    if isinstance(value, PickledDtype):
        return value.value
    if isinstance(value, Record):
        value.arguments = tuple(inner(value.arguments))
        value.state = {name: _resolve(each, known, depth) for name, each in value.state.items()}
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(inner(list(value)))
    if isinstance(value, dict):
        return type(value)(zip(inner(list(value)), inner(list(value.values())), strict=True))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach().numpy()
    raise DataError(f"there is a {type(value).__name__} among the data, which is no data")
