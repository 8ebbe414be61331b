"""Pickles read as data: containers, strings, numbers and numpy arrays come out of a file, none of its code is ever run.

Python's own unpickler parses the file, without the instructions that import modules, set attributes or call what a file
names. Names are looked up in a table of functions that check their arguments; numpy's unpickling, which trusts its
input, is not used. Large arrays are views into the file.
"""

import codecs
import io
import math
import mmap
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, UnsafePickle

_SCALARS = (type(None), bool, int, float, str, bytes, np.generic)
_DTYPE = re.compile(r"[<>|=]?([?bBhHiIlLqQefdgFDG]|[biufc]\d+|[SU][1-9]\d*|O[48]?)")
_QUOTED = re.compile(rb"""'(?:[^'\\]++|\\[\\'"nrtx])*+'|"(?:[^"\\]++|\\[\\'"nrtx])*+\"""")  # as Python 2 writes text
_MAX_DEPTH = 100  # containers inside each other
_VIEW_FROM = 1024  # larger bytes are views into the file [bytes]
_NDARRAY = object()  # stands for `numpy.ndarray`, an argument that files never call


class Record:
    """An object of a class that is not available: its name, its constructor's arguments, its attributes as data."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.state = name, dict[str, Any]()
        self.arguments = tuple(a() if isinstance(a, partial) and a.func is Record else a for a in arguments)

    def describe(self, *state: Any) -> None:
        """Set attributes: pairs of name and value."""
        if odd := [name for name, _ in state if not isinstance(name, str) or name.startswith("__")]:
            raise ValueError(f"the attribute {odd[0]!r:.60}")
        self.state.update(state)

    def __repr__(self) -> str:
        return f"Record({self.name!r}, {len(self.state)} attributes)"


class _Pending:
    """A dtype or array that a file first makes, then describes; its value replaces it once the file is read."""

    def __init__(self, value: np.dtype | np.ndarray | None) -> None:
        self.value = value

    def describe(self, version: Any, *state: Any) -> None:
        """Do what ``__setstate__`` of numpy's dtypes and arrays would."""
        if not isinstance(self.value, np.dtype):
            shape, dtype, fortran, data = state
            self.value = _array(data, dtype, shape, "F" if fortran else "C")
        elif state[0] not in ("<", ">", "|", "=") or len(state) < 4 or any(each is not None for each in state[1:4]):
            raise ValueError("only plain dtypes are read")
        elif state[0] != "|":
            self.value = self.value.newbyteorder(state[0])


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _Pending:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise ValueError("only numbers, bools, strings or objects are read")
    return _Pending(np.dtype(code))


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Pending:
    if kind is not _NDARRAY or shape not in ((0,), [0]):
        raise ValueError("only an empty numpy.ndarray is made")
    return _Pending(None)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Return an array of `data`: bytes, text by Python 2, or a list of objects."""
    if not isinstance(dtype, _Pending) or not isinstance(dtype.value, np.dtype) or order not in ("C", "F"):
        raise ValueError("its dtype or order is not what numpy writes")
    data = data.encode("latin-1") if isinstance(data, str) else data
    size = math.prod(sides(shape))
    if dtype.value.hasobject and isinstance(data, list) and len(data) == size:
        array = np.empty(shape, object)
        for index, each in enumerate(data):
            array.flat[index] = each
        return array
    if dtype.value.hasobject or not isinstance(data, (bytes, memoryview)) or len(data) != size * dtype.value.itemsize:
        raise ValueError("its data do not fit its shape and dtype")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _from_buffer(*arguments: Any) -> _Pending:
    return _Pending(_array(*arguments))  # files cannot write to it


def sides(shape: Any) -> tuple[int, ...]:
    """Return `shape` if it is one: a short tuple of integers from 0."""
    if not isinstance(shape, tuple) or len(shape) > 64:
        raise ValueError("a shape is a short tuple")
    if not all(type(each) is int and 0 <= each < 2**62 for each in shape):
        raise ValueError("a shape is of numbers from 0")
    return shape


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "latin_1"):
        raise ValueError("only bytes written as latin1 are decoded")
    return text.encode("latin-1")


def _collection(kind: Callable[[Any], Any], items: Any = ()) -> Any:
    if not isinstance(items, (list, tuple)):
        raise ValueError("its items are no list")
    _check_keys([key for key, _ in items] if kind is OrderedDict else items)
    return kind(items)


def _check_keys(keys: Sequence[Any]) -> None:
    """Refuse keys of dictionaries and items of sets that can have equal hashes, or hashes that end the process."""
    for each in keys:
        is_text = isinstance(each, (str, bytes)) and len(each) < 2**12
        if not is_text and each is not None and not (isinstance(each, int) and abs(each) < 2**16):
            raise TypeError(f"a key is text or a small number; got {type(each).__name__}")


ALLOWED: dict[str, Any] = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _dtype,
    "collections.OrderedDict": partial(_collection, OrderedDict),
    "_codecs.encode": _encode,
}
for _module in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_module}.multiarray._reconstruct"] = _reconstruct
    ALLOWED[f"{_module}.multiarray.scalar"] = _scalar
    ALLOWED[f"{_module}.numeric._frombuffer"] = _from_buffer
for _module in ("builtins", "__builtin__"):
    ALLOWED |= {f"{_module}.{kind.__name__}": partial(_collection, kind) for kind in (set, frozenset)}
    ALLOWED[f"{_module}.bytes"] = lambda: b""  # as Python 3 writes them in protocol 2


class Reader(pickle._Unpickler):
    """Reads one pickle after another.

    It does not derive from `pickle.Unpickler`, which is compiled: that one ends the process at deeply nested keys,
    allocates what small files claim to need, and lets them set attributes of all that they can reach.

    Args:
        data: the file in memory, or mapped into it.
        table: the names that it may use, with the checked functions for them.
        storage: called with persistent references, which other files may not have.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    def __init__(
        self, data: bytes | mmap.mmap, table: Mapping[str, Any], storage: Callable[..., Any] | None = None
    ) -> None:
        self.file = io.BytesIO(data) if isinstance(data, bytes) else data
        self._data, self._table, self._storage = memoryview(data), table, storage
        self._left = 2**20 + 16 * len(data)  # see `_spend`
        self._known: dict[int, tuple[Any, int]] = {}  # by the identity of a value: what it becomes, what it costs
        super().__init__(self.file, encoding="latin-1")

    def data(self) -> Any:
        """Return the data of the next pickle."""
        return self._resolved(self.load(), 0)

    def view(self, size: int) -> memoryview:
        """Return the next `size` bytes without copying them."""
        at = self.file.tell()
        if size > len(self._data) - at:
            raise EOFError("it ends too early")
        self.file.seek(at + size)
        return self._data[at : at + size]

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in self._table:
            raise UnsafePickle(f"asks for {full[:200]}, which is no data")
        return self._table[full]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None or not isinstance(pid, tuple):
            raise UnsafePickle("refers to an object outside of it")
        return self._storage(*pid)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = next((name for name, each in self._table.items() if each is function), None)
        if name is None or not isinstance(arguments, tuple):
            raise UnsafePickle(f"calls a {type(function).__name__}")
        self.append(self._called(f"calls {name}", function, arguments))

    def load_newobj(self) -> None:
        self.load_reduce()
        if not isinstance(self.stack[-1], Record):
            raise UnsafePickle("makes an object that is no data")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Pending) and isinstance(state, tuple):
            self._called("describes an array or dtype", target.describe, state)
        elif isinstance(target, Record) and isinstance(state, dict):
            self._called("describes an object", target.describe, tuple(state.items()))
        elif not isinstance(target, OrderedDict) or not isinstance(state, dict):  # torch's have attributes
            raise UnsafePickle(f"sets attributes of a {type(target).__name__}")

    def load_string(self) -> None:
        text = self.readline().rstrip(b"\r\n")
        if not text.isascii() or not _QUOTED.fullmatch(text):
            raise ValueError("a string has no quotes")
        self.append(codecs.escape_decode(text[1:-1])[0].decode("latin-1"))

    def load_binbytes(self, width: int = 4) -> None:
        view = self.view(int.from_bytes(self.read(width), "little"))
        self.append(view if len(view) > _VIEW_FROM else bytes(view))

    def load_binbytes8(self) -> None:
        self.load_binbytes(8)

    load_bytearray8 = load_binbytes8

    def load_frame(self) -> None:
        self.read(8)  # frames serve reading in blocks only

    def _called(self, what: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._spend(sum(len(a) for a in arguments if isinstance(a, (str, bytes, memoryview, list, tuple))))
        try:
            return function(*arguments)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise UnsafePickle(f"{what} with odd arguments ({error})") from error

    def _spend(self, amount: int) -> None:
        """Refuse a file that has the same content copied, or listed, again and again."""
        self._left -= amount
        if self._left < 0:
            raise DataError("it uses the same content again too often")

    def _resolved(self, value: Any, depth: int) -> Any:
        """Return `value` with arrays and bytes in their places; refuse what is no data."""
        self._spend(1)
        if isinstance(value, _SCALARS) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            return value
        if depth > _MAX_DEPTH:
            raise DataError(f"containers hold themselves, or are nested deeper than {_MAX_DEPTH}")
        if id(value) in self._known:
            made, cost = self._known[id(value)]
            self._spend(cost)
            return made
        if isinstance(value, Record):  # these may refer to each other
            self._known[id(value)] = value, 0
        before = self._left
        made = self._converted(value, partial(self._resolved, depth=depth + 1))
        self._known[id(value)] = made, before - self._left
        return made

    def _converted(self, value: Any, inner: Callable[[Any], Any]) -> Any:
        if isinstance(value, memoryview):
            return bytes(value)
        if isinstance(value, _Pending) and value.value is not None:
            return value.value if isinstance(value.value, np.dtype) else inner(value.value)
        if isinstance(value, np.ndarray):
            for index, each in enumerate(value.flat):
                value.flat[index] = inner(each)
            return value
        if isinstance(value, Record):
            value.arguments = tuple(map(inner, value.arguments))
            value.state = {name: inner(each) for name, each in value.state.items()}
            return value
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(map(inner, value))
        if isinstance(value, dict):
            return type(value)((key, inner(each)) for key, each in value.items())
        raise DataError(f"there is a {type(value).__name__} among the data, which is no data")


_INSTRUCTIONS = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_LIST EMPTY_DICT EMPTY_TUPLE EMPTY_SET LIST TUPLE TUPLE1 TUPLE2 TUPLE3 DICT FROZENSET APPEND APPENDS
    SETITEM SETITEMS ADDITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE
    NEWOBJ BUILD
    """.split()  # noqa: SIM905
)
_ALL, _EVERY_SECOND = slice(None), slice(None, None, 2)
_KEYS = dict(SETITEM=slice(-2, -1), SETITEMS=_EVERY_SECOND, DICT=_EVERY_SECOND, ADDITEMS=_ALL, FROZENSET=_ALL)


def _load(name: str, method: str, reader: Reader) -> None:
    """Carry out an instruction by Python's method or ours; keys are still on the stack and are checked before."""
    if name not in _INSTRUCTIONS:
        raise UnsafePickle(f"uses pickle's instruction {name}")
    if name in _KEYS:
        _check_keys(reader.stack[_KEYS[name]])
    getattr(reader, method)()


Reader.dispatch = {
    code: partial(_load, name, Reader.dispatch[code].__name__)
    for code, name in ((ord(each.code), each.name) for each in pickletools.opcodes)
}


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
        allowed: further names, with the checked functions for them.
        where: what to call the file in messages; None for its path.

    Raises:
        UnsafePickle: naming what the file wanted that is no data; nothing of it was run.
        DataError: if it is no pickle, or damaged.
    """
    table = {**ALLOWED, **(allowed or {}), **{name: partial(Record, name) for name in records}}
    with refusals(where or ("the pickle" if isinstance(source, bytes) else str(source)), "pickle"):
        data = content(source)
        if data[:4] == b"PK\x03\x04":
            raise DataError("it is a zip archive, no pickle")
        return Reader(data, table).data()


def content(source: Path | bytes) -> bytes | mmap.mmap:
    """Return bytes as they are, a file mapped into memory."""
    if isinstance(source, bytes):
        return source
    if not source.is_file():
        raise DataError("there is no such file")
    if source.stat().st_size == 0:
        raise DataError("it is empty")
    with open(source, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextmanager
def refusals(where: str, kind: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into our errors, with the name and the kind of the file."""
    try:
        yield
    except UnsafePickle as error:
        hint = "Files of data need none of that; nothing was run"
        raise UnsafePickle(f"{where} was not read: it {error}. {hint}") from None
    except DataError as error:
        raise DataError(f"{where} was not read: {error}") from error
    except (
        *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, LookupError, ArithmeticError, AttributeError),
        *(TypeError, ValueError, EOFError, MemoryError, RuntimeError),
    ) as error:
        raise DataError(f"{where} is no {kind}, or is damaged ({type(error).__name__}: {error})") from error
