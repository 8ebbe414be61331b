"""Pickles are read as data: what numpy and torch write comes back bit by bit, what wants code to run is refused."""

import builtins
import collections
import io
import os
import pickle
import pickletools
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.errors import DataError, PixioError, UnsafePickle
from pixio_robot.restricted_pickle import Record, read_pickle
from pixio_robot.torch_files import TENSORS, read_torch_file

ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8),
    "fortran": np.arange(6.0).reshape(2, 3).T,
    "big endian": np.arange(4, dtype=">f4"),
    "half": np.float16([1.5]),
    "flags": np.array([True, False]),
    "text": np.array(["ab", "cde"]),
    "bytes": np.array([b"ab", b"c"]),
    "empty": np.zeros((0, 3)),
    "no axes": np.array(4),
    "objects": np.array([[1, "a"], [None, 2.5]], object),
    "complex": np.array([1 + 2j]),
}
TREE = {
    **ARRAYS,
    "number": np.float32(3),
    "ordered": OrderedDict(x=1, y=[1, 2.5, None, "é", 2**80, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]),
    "sets": [{1, 2}, frozenset("ab"), set()],
    "bytes of Python": [b"", b"x" * 3000, b"\xff"],
    "shared": [ARRAYS["half"], ARRAYS["half"]],
}


def _same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            _same(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize("protocol", range(6))
def test_data_come_back_bit_by_bit(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "data.pickle"
    path.write_bytes(pickle.dumps(TREE, protocol))
    objects = TREE["objects"]
    for found in (read_pickle(path), read_pickle(path.read_bytes())):
        assert found["objects"].tolist() == objects.tolist()
        _same({**found, "objects": None}, {**TREE, "objects": None})
        assert found["shared"][0] is found["shared"][1]


def test_large_arrays_of_a_file_are_views_into_it(tmp_path: Path) -> None:
    with open(tmp_path / "data.pickle", "wb") as file:
        pickle.dump([np.zeros((1000, 1000))], file, protocol=4)
    (found,) = read_pickle(tmp_path / "data.pickle")
    assert not found.flags.owndata and not found.flags.writeable


def _python2(shape: tuple[int, ...], code: str, raw: bytes) -> bytes:
    """A pickle as Python 2 with numpy 1 writes an array in a dictionary: protocol 2, strings for bytes."""
    state = b"(K\x01("
    for side in shape:
        state += b"K" + bytes([side])
    state += (
        b"tcnumpy\ndtype\n(U\x02"
        + code.encode()
        + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    state += b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state
    return b"\x80\x02}U\x01xq\x01" + array + b"s."


def test_arrays_of_python_2() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4))
    found = read_pickle(_python2((3, 4), "f8", array.tobytes()))
    _same(found, {"x": array})
    assert pickle.loads(_python2((3, 4), "f8", array.tobytes()), encoding="latin1")["x"].tolist() == array.tolist()


def test_strings_of_python_2_at_protocol_0() -> None:
    assert read_pickle(b"(dp0\nS'it\\'s'\np1\nS'\\x00\\xff\\n'\np2\ns.") == {"it's": "\x00\xff\n"}
    for odd in (
        b"S'a', 1\n.",
        b"S__import__('os')\n.",
        b"S''+''\n.",
        b"S'\\d\n.",
        b"S'a' 'b'\n.",
        b"S" + b"(" * 10**5 + b"\n.",
    ):
        with pytest.raises(DataError):
            read_pickle(odd)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_both_names_of_numpy_s_core(core: str, protocol: int) -> None:
    text = pickle.dumps({"a": np.arange(3), "b": np.float64(2)}, protocol)
    _same(read_pickle(text.replace(b"numpy._core", core.encode())), {"a": np.arange(3), "b": np.float64(2)})


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def _raw(*lines: str) -> bytes:
    return "".join(lines).encode("latin-1")


HOSTILE = {
    "a shell": (lambda: Calls(os.system, "touch trap"), "posix.system"),
    "eval": (lambda: Calls(eval, "open('trap', 'w')"), "builtins.eval"),
    "exec": (lambda: Calls(exec, "open('trap', 'w')"), "builtins.exec"),
    "open": (lambda: Calls(open, "trap", "w"), "open"),
    "getattr": (lambda: Calls(getattr, "text", "__class__"), "getattr"),
    "import": (lambda: Calls(__import__, "os"), "builtins.__import__"),
    "numpy.load": (lambda: Calls(np.load, "trap"), "numpy.load"),
    "a path": (lambda: Path("trap"), "pathlib"),
    "a type of Python": (lambda: collections.Counter("a"), "collections.Counter"),
    "inside an array": (lambda: np.array([Calls(os.mkdir, "trap")], object), "posix.mkdir"),
    "inside a key": (lambda: {(1, Calls(os.mkdir, "trap").parts[0]): 1}, "posix.mkdir"),
}


@pytest.mark.parametrize("what", list(HOSTILE))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_by_name_and_never_run(what: str, protocol: int, tmp_path: Path) -> None:
    make, name = HOSTILE[what]
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(make(), protocol))
    with pytest.raises(UnsafePickle, match="nothing was run") as caught:
        read_pickle(tmp_path / "x.pickle")
    assert name.rpartition(".")[2] in str(caught.value) and "x.pickle" in str(caught.value)
    assert not (tmp_path / "trap").exists()


ARRAY = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\1btR"
ODD = {
    "a great array": "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\1btR.",
    "another type": "cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\ndict\n(K\0tU\1btR.",
    "ndarray called": "cnumpy\nndarray\n(K\5tR.",
    "a dtype with fields": "cnumpy\ndtype\n(U\2V8K\0K\1tR.",
    "a dtype of a class": "cnumpy\ndtype\n(c__builtin__\ndict\nK\0K\1tR.",
    "a dtype with an odd state": "cnumpy\ndtype\n(U\2f8K\0K\1tR(K\3U\1<N(U\1atN}K\0K\0K\0tb.",
    "too little data": ARRAY + "(K\1(K\5tcnumpy\ndtype\n(U\2f8K\0K\1tR\x89U\4abcdtb.",
    "negative sides": ARRAY
    + "(K\1(J\xff\xff\xff\xffJ\xff\xff\xff\xfftcnumpy\ndtype\n(U\2f8K\0K\1tR\x89U\x08abcdefghtb.",
    "numbers for objects": ARRAY + "(K\1(K\1tcnumpy\ndtype\n(U\2O8K\0K\1tR\x89U\x08abcdefghtb.",
    "dunder state of an array": ARRAY + "}(U\t__class__c__builtin__\ndict\nub.",
    "dunder state of a list": "](U\0}(U\t__class__K\1ub.",
    "attributes of a class": "cnumpy\ndtype\nN}(U\x0c__setstate__c__builtin__\nlist\nu\x86b.",
    "attributes of a function": "c_codecs\nencode\n}(U\x08__code__K\1ub.",
    "a great bytearray": "c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "bytes of a number": "c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
    "another encoding": "c_codecs\nencode\n(U\1aU\5rot13tR.",
    "dict of a number": "c__builtin__\ndict\n(K\1tR.",
    "call of no function": "U\1aU\1b\x85R.",
    "a new object of data": "c__builtin__\ndict\n)\x81.",
    "an instance of old Python": "(ios\nsystem\n.",
    "an outside object": "U\3abcQ.",
    "an extension": "\x82\1.",
    "an unfinished array": ARRAY + ".",
    "a function as data": "c_codecs\nencode\n.",
    "a class as data": "cnumpy\nndarray\n.",
    "keys nested very deep": "}(U\1a" + "\x85" * 200_000 + "K\1u.",
    "items nested very deep": "c__builtin__\nset\n](U\1a" + "\x85" * 200_000 + "e\x85R.",
    "tuples nested very deep": "U\1a" + "\x85" * 200_000 + ".",
    "a name of lists": "]]\x93.",
    "a list in itself": "]q\0h\0a.",
    "items of an array": "cnumpy.core.numeric\n_frombuffer\n(]K\1acnumpy\ndtype\nU\1O\x85RK\1\x85U\1CtRK\0K\2s.",
    "items of bytes": f"C\xc8{'a' * 200}K\0K\2s.",
    "items of text": "U\1aU\1ba.",
    "an instruction for keys only": "}K\1\x90.",
    "a number as a reference": "K\1Q.",
}


@pytest.mark.parametrize("what", list(ODD))
def test_allowed_names_with_odd_arguments_are_refused(what: str) -> None:
    with pytest.raises(DataError, match=r"was not read|damaged"):
        read_pickle(_raw("\x80\x02", ODD[what]))


def test_refusals_leave_nothing_behind() -> None:
    """Pickles cannot change the stand-ins that later files are read with."""
    for odd in (each for each in ODD.values() if len(each) < 10**4):
        with pytest.raises(DataError):
            read_pickle(_raw("\x80\x02", odd))
    _same(read_pickle(pickle.dumps(ARRAYS["half"], 2)), ARRAYS["half"])


@pytest.mark.parametrize("protocol", [2, 4])
def test_cut_and_bent_files_are_refused_in_words(protocol: int) -> None:
    """No byte of a file can make it crash, hang or call."""
    whole = pickle.dumps({"a": [np.arange(30), "text", 1.5, None], "b": (1, OrderedDict(x=2))}, protocol)
    for end in range(len(whole)):
        with pytest.raises(DataError):
            read_pickle(whole[:end])
    random = np.random.default_rng(0)
    for _ in range(3000):
        bent = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            bent[at] = random.integers(256)
        try:
            read_pickle(bytes(bent))
        except PixioError:
            continue


def test_every_instruction_is_read_or_refused() -> None:
    for instruction in pickletools.opcodes:
        if instruction.name != "STOP":
            with pytest.raises(DataError):
                read_pickle(instruction.code.encode("latin-1") * 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"some text\n", "no pickle, or is damaged"),
        (b"PK\3\4" + bytes(50), "a zip archive"),
        (None, "no such"),
    ],
)
def test_files_of_other_kinds(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.pickle").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pickle(tmp_path / "x.pickle")


def test_lengths_are_not_believed() -> None:
    """A file of a few bytes that claims to hold many gigabytes costs nothing."""
    for claim in (
        b"\x8e" + (2**62).to_bytes(8, "little"),
        b"B\xff\xff\xff\xff",
        b"X\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\x7f",
    ):
        with pytest.raises(DataError):
            read_pickle(b"\x80\x04" + claim + b"abc.")


def _again(text: bytes, times: int) -> bytes:
    """Make a list of the function and the value that `text` leaves in the memo at 0 and 1, called again and again."""
    return b"\x80\x02" + text + b"00(" + b"h\0h\1\x85R" * times + b"l."


def _doubled(levels: int) -> bytes:
    """Make tuples that hold the one before twice: few bytes, 2 ** levels items."""
    pairs = [b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(levels)]
    return b"\x80\x02N\x85q\0" + b"".join(pairs)


def _colliding(count: int, behind: bytes = b"") -> bytes:
    """Make integers that all have the hash 0, with an instruction behind each."""
    return b"".join(b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + behind for n in range(1, count))


BOMBS = {
    "a list copied": _again(b"c__builtin__\nlist\nq\0](" + b"N" * 10**5 + b"eq\1", 10**4),
    "a set copied": _again(b"c__builtin__\nset\nq\0](" + b"K\1" * 10**5 + b"eq\1", 10**4),
    "text copied": _again(b"c_codecs\nencode\nq\0X" + (10**5).to_bytes(4, "little") + b"a" * 10**5 + b"q\1", 10**5),
    "items that double": _doubled(80) + b".",
    "items that double, for a dtype": b"\x80\x02cnumpy\ndtype\nq\x7f0" + _doubled(80)[2:] + b"h\x7fh\x50\x85R.",
    "items that double, for a reference": _doubled(80) + b"Q.",
    "items that double, for a name": _doubled(80) + b"h\x50\x93.",
    "equal hashes in a dictionary": b"\x80\x02}(" + _colliding(30_000, b"N") + b"u.",
    "equal hashes in a set": b"\x80\x04\x8f(" + _colliding(30_000) + b"\x90.",
    "equal hashes called": b"\x80\x02c__builtin__\nset\n](" + _colliding(30_000) + b"e\x85R.",
    "a shape of great numbers": _raw("\x80\x02", ARRAY, "(K\1(")
    + b"\x8a\x07\xff\xff\xff\xff\xff\xff\x0f" * 10**5
    + b"tcnumpy\ndtype\n(U\2f8K\0K\1tR\x89U\4abcdtb.",
    "items of no size": _raw("\x80\x02", ARRAY, "(K\1(\x8a\6\0\0\0\0\0\1tcnumpy\ndtype\n(U\2S0K\0K\1tR\x89U\0tb."),
    "many digits": b"I" + b"9" * 10**6 + b"\n.",
}


@pytest.mark.parametrize("what", list(BOMBS))
def test_files_that_cost_more_than_their_size_are_refused_quickly(what: str) -> None:
    started = time.process_time()
    with pytest.raises(DataError):
        read_pickle(BOMBS[what])
    assert time.process_time() - started < 10


def test_a_memo_index_costs_nothing() -> None:
    assert read_pickle(b"\x80\x02K\1r\xff\xff\xff\xff.") == 1


def test_objects_of_named_classes_are_records() -> None:
    text = pickle.dumps(Calls(builtins.getattr, 1, "x"), 2)
    found = read_pickle(text, records=["__builtin__.getattr"])
    assert isinstance(found, Record) and found.name == "__builtin__.getattr" and found.arguments == (1, "x")
    with pytest.raises(UnsafePickle, match=r"__builtin__\.getattr"):
        read_pickle(text)
    odd = b"\x80\x02cmod\nClass\n)\x81}(U\t__class__K\1ub."
    with pytest.raises(UnsafePickle, match="__class__"):
        read_pickle(odd, records=["mod.Class"])


TENSOR = {"data": torch.arange(6.0).reshape(2, 3).T, "array": np.arange(3), "words": ["a", 1], "n": np.float64(2)}


@pytest.mark.parametrize("zipped", [True, False])
def test_files_by_torch_save(zipped: bool, tmp_path: Path) -> None:
    torch.save(TENSOR, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    for source in (tmp_path / "x.pth", (tmp_path / "x.pth").read_bytes()):
        found = read_torch_file(source, "x.pth")
        assert found["data"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["data"].dtype == np.float32
        assert found["words"] == ["a", 1] and found["n"] == 2 and found["array"].dtype == np.int64
    if not zipped:
        old = (tmp_path / "x.pth").read_bytes().replace(b"numpy._core", b"numpy.core")
        assert read_torch_file(old, "old.pth")["array"].tolist() == [0, 1, 2]
    torch.save({"x": Calls(np.dtype, "V8")}, tmp_path / "odd.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafePickle, match=r"odd\.pth was not read: .* odd arguments"):
        read_torch_file(tmp_path / "odd.pth", "odd.pth")
    for what in ("a shell", "eval"):
        torch.save({"x": HOSTILE[what][0]()}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafePickle, match=r"evil\.pth was not read: it asks for .*(system|eval)"):
            read_torch_file(tmp_path / "evil.pth", "evil.pth")
    assert not (tmp_path / "trap").exists()
    whole = (tmp_path / "x.pth").read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2]):
        with pytest.raises(DataError, match=r"x\.pth"):
            read_torch_file(broken, "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_all_kinds_come_back(zipped: bool, tmp_path: Path) -> None:
    whole = torch.arange(24).reshape(2, 3, 4)
    tensors = {str(kind): whole.to(kind) for kind in (torch.float16, torch.float32, torch.float64, torch.bool)}
    tensors |= {str(kind): whole.to(kind) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)}
    tensors |= {
        "part": whole[:, 1:, ::2],
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "wide": whole[:1].expand(2, 3, 4),
    }
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(3)), "same storage": whole[1]}
    torch.save({**tensors, "ordered": OrderedDict(tensors)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "x.pth", "x.pth")
    for key, tensor in tensors.items():
        for each in (found[key], found["ordered"][key]):
            assert each.dtype == tensor.detach().numpy().dtype and each.shape == tensor.shape
            assert np.array_equal(each, tensor.detach().numpy()) and not each.flags.writeable


def _archive(content: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, each in {"data.pkl": content, **more}.items():
            archive.writestr(f"archive/{name}", each)
    return file.getvalue()


DEEP_KEY = b"\x80\x02}U\1a" + b"\x85" * 200_000 + b"Ns."
STORAGE = b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02NtQ."
HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02M\xe9\x03.\x80\x02}."  # before version 1.6
HOSTILE_TORCH = {
    "deep keys in an archive": _archive(DEEP_KEY),
    "deep keys in a stream": HEAD + DEEP_KEY + b"\x80\x02].",
    "deep names of storages": HEAD + b"\x80\x02N.\x80\x02](U\1a" + b"\x85" * 200_000 + b"e.",
    "a compressed archive": _archive(b"\x80\x02N.", zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}),
    "two pickles": _archive(b"\x80\x02N.", **{"more/data.pkl": b"\x80\x02N."}),
    "no storage": _archive(STORAGE),
    "a short storage": _archive(STORAGE, **{"data/0": bytes(7)}),
    "a long storage": _archive(STORAGE, **{"data/0": bytes(12)}),
    "a storage elsewhere": _archive(STORAGE.replace(b"U\x010", b"U\x0a../../../x"), **{"data/0": bytes(8)}),
    "big-endian numbers": _archive(STORAGE, **{"data/0": bytes(8), "byteorder": b"big"}),
    "a view of a storage": _archive(STORAGE.replace(b"NtQ", b"K\1tQ"), **{"data/0": bytes(8)}),
    "a storage of no class": _archive(STORAGE.replace(b"ctorch\nFloatStorage\n", b"N"), **{"data/0": bytes(8)}),
    "a storage called": _archive(b"\x80\x02ctorch\nFloatStorage\n(K\1tR."),
    "a storage's class as data": _archive(b"\x80\x02ctorch\nFloatStorage\n."),
    "a great storage in a stream": HEAD + STORAGE + b"\x80\x02]U\x010a." + (2**61).to_bytes(8, "little") + bytes(8),
    "more behind a stream": HEAD + STORAGE + b"\x80\x02]U\x010a." + (2).to_bytes(8, "little") + bytes(9),
}


@pytest.mark.parametrize("what", list(HOSTILE_TORCH))
def test_torch_files_that_no_torch_wrote_are_refused(what: str) -> None:
    for good in (_archive(STORAGE, **{"data/0": bytes(8)}), HOSTILE_TORCH["more behind a stream"][:-1]):
        assert read_torch_file(good, "x.pth").tolist() == [0, 0]
    with pytest.raises(DataError, match=r"x\.pth"):
        read_torch_file(HOSTILE_TORCH[what], "x.pth")


class _Storage:
    """Pickles as torch before 1.6 pickled a tensor's numbers: a file by torch.save inside."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        storage, file = self.tensor.untyped_storage(), io.BytesIO()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=self.tensor.dtype, _internal=True)
        torch.save(typed, file, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (file.getvalue(),)


def _old_tensor(tensor: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    parts = (_Storage(tensor), offset, size, stride, False, OrderedDict())
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, *parts), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_in_plain_pickles(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).to(dtype)
    found = read_pickle(_old_tensor(tensor, (2, 3), (1, 4), 1), allowed=TENSORS)
    expected = tensor.as_strided((2, 3), (1, 4), 1).numpy()
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((13,), (1,), 0), ((2,), (12,), 0), ((2,), (-1,), 3), ((2,), (1,), 11), ((2**40,), (0,), 0), ((1,), (1,), -1)],
)
def test_tensors_beyond_their_storage_are_refused(size: Any, stride: Any, offset: int) -> None:
    with pytest.raises(UnsafePickle, match="odd arguments"):
        read_pickle(_old_tensor(torch.arange(12.0), size, stride, offset), allowed=TENSORS)


def test_storages_that_are_none_are_refused() -> None:
    whole = _Storage(torch.arange(12.0)).__reduce__()[1][0]
    evil = io.BytesIO()
    torch.save(Calls(os.mkdir, "trap"), evil, _use_new_zipfile_serialization=False)
    for inner in (b"", b"text", whole[:-4], whole[:40], evil.getvalue(), pickle.dumps(os.mkdir)):
        with pytest.raises(DataError):
            read_pickle(pickle.dumps(Calls(torch.storage._load_from_bytes, inner), 3), allowed=TENSORS)
    assert not Path("trap").exists()
