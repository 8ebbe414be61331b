"""A stack machine for pickle's instructions, protocols 0 to 5, that can look names up in a table and nothing worse.

There is no instruction that sets an attribute, imports a module or calls anything but the table's functions.
"""

import ast
import mmap
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UnsafePickle
from .values import OddArguments, PickledArray, PickledDtype, Record, checked_keys

_INSTRUCTIONS = {each.code.encode("latin-1"): each for each in pickletools.opcodes}
_VIEWED = {"BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}  # width of the length that goes before the bytes
_QUOTED = re.compile(r"'([^'\\]|\\.)*'|\"([^\"\\]|\\.)*\"")
_MARK = object()


class _Name:
    """An allowed name that was looked up: a function or class of ours."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function


class PickleBytes:
    """A file in memory or mapped into it: reads do not allocate more than there is, large bytes are views."""

    def __init__(self, data: bytes | memoryview | mmap.mmap) -> None:
        self._data = bytes(data) if isinstance(data, memoryview) else data
        self._whole, self._at = memoryview(self._data), 0

    def read(self, size: int) -> bytes:
        return bytes(self.view(size))

    def view(self, size: int) -> memoryview:
        part = self._whole[self._at : self._at + max(size, 0)]
        self._at += len(part)
        return part

    def readline(self) -> bytes:
        return self.read(self._data.find(b"\n", self._at) + 1 - self._at)


class Machine:
    """Runs the instructions of one pickle on a stack."""

    def __init__(
        self,
        file: PickleBytes,
        table: Mapping[str, Any],
        records: frozenset[str],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._file, self._table, self._records, self._persistent = file, table, records, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self._file.read(1)
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise ValueError(f"no instruction {code!r}" if code else "it ends too early")
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            argument = self._argument(name, instruction.arg)
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            else:
                raise UnsafePickle(f"uses pickle's instruction {name}" + (f" for {argument}" if argument else ""))

    def _argument(self, name: str, kind: pickletools.ArgumentDescriptor | None) -> Any:
        """Read what follows an instruction, in the cases that matter not as pickletools would."""
        if name in _VIEWED:
            return self._view(_VIEWED[name])
        if name == "STRING":
            return _old_text(self._file.readline())
        if name in ("GLOBAL", "INST"):
            return ".".join(self._file.readline().decode().strip() for _ in ("module", "name"))
        file: Any = self._file  # the readers want no more than read and readline
        return None if kind is None or name == "PERSID" else kind.reader(file)

    def _view(self, width: int) -> Any:
        size = int.from_bytes(self._file.read(width), "little")
        view = self._file.view(size)
        if len(view) != size:
            raise ValueError("it ends too early")
        return view if size > 1024 else bytes(view)

    def _to_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:  # an IndexError where there is none
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _take(self, count: int) -> list[Any]:
        items = self._stack[len(self._stack) - count :]
        if len(items) != count or any(each is _MARK for each in items):
            raise IndexError("the stack is too short")
        del self._stack[len(self._stack) - count :]
        return items

    def _target(self, kinds: type | tuple[type, ...]) -> Any:
        target = self._stack[-1]
        if not isinstance(target, kinds):
            raise TypeError(f"items are added to a {type(target).__name__}")
        return target

    def _append(self, items: list[Any]) -> None:
        self._target(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._target(dict)
        target.update(zip(checked_keys(items[::2]), items[1::2], strict=True))

    def _dict(self, items: list[Any]) -> None:
        self._stack.append({})
        self._set_items(items)

    def _add_items(self, items: list[Any]) -> None:
        self._target(set).update(checked_keys(items))

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def _global(self, text: Any) -> None:
        """Look a name up. This is the only way from a file to a function."""
        full = text if text is not None else "{}.{}".format(*self._take(2))
        if full not in self._table:
            raise UnsafePickle(f"asks for {full[:200]}, which is no data")
        self._stack.append(_Name(full, self._table[full]))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise UnsafePickle(f"calls a {type(function).__name__}")
        plain = tuple(each.function() if self._is_record(each) else _bare(each) for each in arguments)
        try:
            self._stack.append(function.function(*plain))
        except (OddArguments, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise UnsafePickle(f"calls {function.name} with odd arguments ({error})") from error

    def _is_record(self, value: Any) -> bool:
        return isinstance(value, _Name) and value.name in self._records

    def _load_persistent(self) -> None:
        (reference,) = self._take(1)
        if self._persistent is None or not isinstance(reference, tuple):
            raise UnsafePickle(f"refers to an object outside of it ({str(reference)[:80]})")
        self._stack.append(self._persistent(tuple(_bare(each) for each in reference)))

    def _reduce(self) -> None:
        function, arguments = self._take(2)
        self._call(function, arguments)

    def _new_object(self) -> None:
        self._reduce()
        if not isinstance(self._stack[-1], (Record, OrderedDict)):
            raise UnsafePickle("makes an object that is no data")

    def _build(self) -> None:
        (state,) = self._take(1)
        target = self._stack[-1]
        if isinstance(target, (PickledArray, PickledDtype)):
            try:
                target.__setstate__(state)
            except (OddArguments, TypeError, ValueError, OverflowError, MemoryError) as error:
                raise UnsafePickle(f"fills an array or dtype with an odd state ({error})") from error
            return
        if isinstance(target, OrderedDict) and isinstance(state, dict):
            return  # attributes of a dictionary, as torch writes them; no data
        if not isinstance(target, Record) or not isinstance(state, dict):
            raise UnsafePickle(f"sets attributes of a {type(target).__name__}")
        if odd := [each for each in state if not isinstance(each, str) or each.startswith("__")]:
            raise UnsafePickle(f"sets the attribute {odd[0]!r}")
        target.state.update(state)


def _old_text(line: bytes) -> str:
    """Return a string of Python 2 that was written as its literal."""
    text = line.decode("ascii").rstrip("\r\n")
    if not _QUOTED.fullmatch(text):
        raise ValueError("a string has no quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes, in damaged files
        return ast.literal_eval(f"b{text}").decode("latin-1")


def _bare(value: Any) -> Any:
    return value.function if isinstance(value, _Name) else value


_LITERALS = frozenset(
    """
    NONE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT BINSTRING SHORT_BINSTRING
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 STRING
    """.split()  # noqa: SIM905
)
_ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda _, __: None,
    "FRAME": lambda _, __: None,
    "MARK": lambda m, _: m._stack.append(_MARK),
    "POP": lambda m, _: m._stack.pop(),
    "POP_MARK": lambda m, _: m._to_mark(),
    "NEWTRUE": lambda m, _: m._stack.append(True),
    "NEWFALSE": lambda m, _: m._stack.append(False),
    "EMPTY_LIST": lambda m, _: m._stack.append([]),
    "EMPTY_DICT": lambda m, _: m._stack.append({}),
    "EMPTY_TUPLE": lambda m, _: m._stack.append(()),
    "EMPTY_SET": lambda m, _: m._stack.append(set()),
    "LIST": lambda m, _: m._stack.append(m._to_mark()),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._to_mark())),
    "FROZENSET": lambda m, _: m._stack.append(frozenset(checked_keys(m._to_mark()))),
    "DICT": lambda m, _: m._dict(m._to_mark()),
    "TUPLE1": lambda m, _: m._stack.append(tuple(m._take(1))),
    "TUPLE2": lambda m, _: m._stack.append(tuple(m._take(2))),
    "TUPLE3": lambda m, _: m._stack.append(tuple(m._take(3))),
    "APPEND": lambda m, _: m._append(m._take(1)),
    "APPENDS": lambda m, _: m._append(m._to_mark()),
    "SETITEM": lambda m, _: m._set_items(m._take(2)),
    "SETITEMS": lambda m, _: m._set_items(m._to_mark()),
    "ADDITEMS": lambda m, _: m._add_items(m._to_mark()),
    **{name: lambda m, index: m._put(index) for name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")},
    **{name: lambda m, index: m._get(index) for name in ("GET", "BINGET", "LONG_BINGET")},
    **{name: lambda m, text: m._global(text) for name in ("GLOBAL", "STACK_GLOBAL")},
    "BINPERSID": lambda m, _: m._load_persistent(),
    "REDUCE": lambda m, _: m._reduce(),
    "NEWOBJ": lambda m, _: m._new_object(),
    "BUILD": lambda m, _: m._build(),
}
