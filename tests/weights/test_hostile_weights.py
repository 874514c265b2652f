"""Damaged and malicious files are refused with a reason, and none of their code runs."""

import collections
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.weights.tensor_file import open_tensors

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests" / "references" / "torch_formats"
# The file that a payload creates in the worker's folder if it runs.
SENTINEL = "payload_was_here"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def name(full: str) -> bytes:
    module, _, what = full.rpartition(".")
    return f"c{module}\n{what}\n".encode()


ORDERED = name("collections.OrderedDict") + b")R"


def storage(key: str = "0", kind: str = "torch.FloatStorage", numel: int = 4, view: bytes = b"") -> bytes:
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + integer(numel) + view + b"tQ"


def tensor(
    size: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0, of: bytes | None = None
) -> bytes:
    place = integer(offset) + integers(size) + integers(stride) + b"\x89" + ORDERED
    return name("torch._utils._rebuild_tensor_v2") + b"(" + (storage() if of is None else of) + place + b"tR"


def state(**values: bytes) -> bytes:
    return b"\x80\2" + ORDERED + b"(" + b"".join(text(key) + value for key, value in values.items()) + b"u."


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """torch's zip format. Keywords have "__" for "/"."""
    content = {"data.pkl": pickled, "data/0": bytes(16), "version": b"3\n"}
    content |= {key.replace("__", "/"): value for key, value in entries.items()}
    return zipped({f"top/{key}": value for key, value in content.items()}, compression)


def zipped(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as file:
        for key, value in content.items():
            file.writestr(key, value)
    return target.getvalue()


def stream(
    pickled: bytes, *, keys: Any = ("0",), data: bytes | None = None, protocol: int = 1001, little: Any = True
) -> bytes:
    """torch's format before zip."""
    heads = (0x1950A86A20F9469CFC6C, protocol, {"protocol_version": 1001, "little_endian": little})
    storages = struct.pack("<q", 4) + bytes(16) if data is None else data
    return b"".join(pickle.dumps(head, 2) for head in heads) + pickled + pickle.dumps(list(keys), 2) + storages


def safe(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (4,), start: int = 0, stop: int = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def edited(data: bytes, record: bytes, number: int, at: int, layout: str, value: int) -> bytes:
    """The archive with `value` at an offset of the `number`-th record that begins with `record`."""
    start = -1
    for _ in range(number + 1):
        start = data.index(record, start + 1)
    changed = bytearray(data)
    struct.pack_into(layout, changed, start + at, value)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
FINE = archive(state(a=tensor()))


def called(function: str, *arguments: str) -> bytes:
    return name(function) + b"(" + b"".join(text(argument) for argument in arguments) + b"tR"


class Reduced:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class WithState:
    """Pickled as an object and its state."""

    def __setstate__(self, state: Any) -> None:
        Path(SENTINEL).touch()

    def __getstate__(self) -> Any:
        return {"x": 1}


def laughs(levels: int, opening: bytes, closing: bytes) -> bytes:
    """Nested containers with shared content: each level has the previous one ten times, 10^levels values in total."""
    data = opening + b"(" + text("lol") + closing + b"q\0"
    for level in range(levels):
        data += opening + b"(" + (b"h" + bytes([level])) * 10 + closing + b"q" + bytes([level + 1])
    return data


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for member in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(member))
    return target.getvalue()


def two_of_a_name() -> bytes:
    return archive(state(a=tensor()), data__1=bytes(16)).replace(b"top/data/1", b"top/data/0")


def overlapping() -> bytes:
    """An archive in which the valid header of the second storage is inside the first storage."""
    inner = zipped({"top/data/1": bytes(16)})
    inner = inner[: inner.index(CENTRAL)]
    outer = zipped({"top/data/0": inner, "top/data.pkl": state(), "top/data/1": bytes(16)})
    return edited(outer, CENTRAL, 2, 42, "<I", outer.index(inner))


def long_end(**fields: int) -> bytes:
    """A zip64 archive: the directory's numbers are in a 64-bit record."""
    end = FINE.index(END)
    start, size = FINE.index(CENTRAL), end - FINE.index(CENTRAL)
    values = {"count": 3, "size": size, "start": start, "at": end} | fields
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, values["count"], values["size"], values["start"])
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, values["at"], 1)
    return FINE[:end] + record + locator + struct.pack("<4s4H2LH", END, 0, 0, 3, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


VIEW = b"(" + text("v") + integer(2) + integer(2) + b"t"
BAD_VIEW = b"(" + text("v") + integer(3) + integer(2) + b"t"
SELF = b"}q\0(" + text("state_dict") + b"h\0u."

GETATTR = name("__builtin__.getattr")
BASE = GETATTR + b"(" + name("__builtin__.dict") + text("__base__") + b"tR"
CHAIN = GETATTR + b"(" + BASE + text("__subclasses__") + b"tR"

# Fault -> file, and a part of the reason.
CALLS: dict[str, tuple[bytes, str]] = {
    "os.system in a zip": (archive(b"\x80\2" + called("os.system", f"touch {SENTINEL}") + b"."), "os.system"),
    "os.system in a stream": (stream(b"\x80\2" + called("os.system", f"touch {SENTINEL}") + b"."), "no tensor"),
    "os.system for the magic number": (b"\x80\2" + called("os.system", f"touch {SENTINEL}") + b".", "not a file of"),
    "eval": (archive(pickle.dumps(Reduced(eval, f"open({SENTINEL!r}, 'w')"), 2)), "__builtin__.eval"),
    "exec, protocol 4": (archive(pickle.dumps(Reduced(exec, f"open({SENTINEL!r}, 'w')"), 4)), "builtins.exec"),
    "exec, protocol 5": (stream(pickle.dumps([Reduced(exec, "1")], 5), keys=(), data=b""), "contains a list"),
    "getattr": (archive(state(a=called("builtins.getattr", "x", "upper"))), "builtins.getattr"),
    "a chain of getattr": (archive(b"\x80\2" + CHAIN + b")R."), "contains a __builtin__.getattr"),
    "import": (archive(state(a=called("importlib.import_module", "os"))), "importlib.import_module"),
    "subprocess": (archive(state(a=called("subprocess.check_output", "id"))), "subprocess.check_output"),
    "a dotted name": (archive(b"\x80\4\x8c\5torch\x8c\x0eSize.__class__\x93."), "torch.Size.__class__"),
    "a name through an allowed module": (archive(state(a=name("collections.abc.sys"))), "collections.abc.sys"),
    "another name of torch": (archive(state(a=called("torch.load", "x"))), "torch.load"),
    "torch.storage._load_from_bytes": (archive(state(a=called("torch.storage._load_from_bytes", "x"))), "_load_from"),
    "a module's class": (archive(state(a=name("torch.nn.modules.conv.Conv2d"))), "torch.nn.modules.conv.Conv2d"),
    "numpy": (archive(pickle.dumps({"a": np.zeros(2)}, 2)), "entry a: numpy.ndarray"),
    "argparse.Namespace": (archive(state(args=name("argparse.Namespace") + b")\x81}b")), "argparse.Namespace"),
    "STACK_GLOBAL": (archive(b"\x80\4\x8c\2os\x8c\6system\x93\x8c\2id\x85R."), "os.system"),
    "STACK_GLOBAL of numbers": (archive(b"\x80\4K\1K\2\x93."), "not text"),
    "INST": (archive(b"\x80\2(" + text("id") + b"ios\nsystem\n."), "INST"),
    "INST of what is allowed": (archive(b"\x80\2(icollections\nOrderedDict\n."), "INST"),
    "OBJ": (archive(b"\x80\2(" + name("collections.OrderedDict") + b"o."), "OBJ"),
    "NEWOBJ": (
        archive(b"\x80\2" + name("collections.OrderedDict") + b")\x81."),
        "contains a collections.OrderedDict",
    ),
    "NEWOBJ_EX": (
        archive(b"\x80\4" + name("collections.OrderedDict") + b")}\x92."),
        "contains a collections.OrderedDict",
    ),
    "EXT1": (archive(b"\x80\2\x82\1."), "EXT1"),
    "EXT2": (archive(b"\x80\2\x83\1\0."), "EXT2"),
    "EXT4": (archive(b"\x80\2\x84\1\0\0\0."), "EXT4"),
    "PERSID": (archive(b"\x80\2Pstorage\n."), "PERSID"),
    "a buffer": (archive(b"\x80\5\x97."), "NEXT_BUFFER"),
    "an opcode that there is not": (archive(b"\x80\2\xfe."), "0xfe"),
    "__setstate__": (archive(pickle.dumps(WithState(), 2)), "WithState"),
    "a state for a dict": (archive(b"\x80\2}}b."), "sets the state of a dict"),
    "a state for a tensor": (archive(state(a=tensor() + b"}b")), "sets the state of a Tensor"),
    "a state for a name": (archive(state(a=name("torch.Size") + b"}b")), "sets the state of torch.Size"),
    "a call of a text": (archive(b"\x80\2" + text("x") + b")R."), "calls a str"),
    "a call of a storage's class": (archive(state(a=called("torch.FloatStorage", "x"))), "entry a: torch.FloatStorage"),
    "a name of many lines": (archive(b"\x80\4\x8c\1\n\x8c\3a\nb\x93."), r"'\n.a\nb'"),
    "a name without an end": (archive(b"\x80\2c" + b"a" * 5000), "line without an end"),
}
PICKLES: dict[str, tuple[bytes, str]] = {
    "too many opcodes": (archive(b"\x80\2" + b"]" * 1_100_000 + b"."), "more than 1000000 steps"),
    "a memo bomb": (archive(b"\x80\4]" + b"\x94" * 1_100_000 + b"."), "more than 1000000 steps"),
    "a memo at a far place": (archive(b"\x80\2]r\xff\xff\xff\xffh\0."), "reads value 0 of its memo"),
    "a memo at no number": (archive(b"\x80\2]p-1\n."), "-1 in place of a number"),
    "a huge LONG4": (archive(b"\x80\2\x8b\xff\xff\xff\x7f" + bytes(100) + b"."), "integer of 2147483647 bytes"),
    "a long LONG1": (archive(b"\x80\2\x8a\xff" + bytes(255) + b"."), "integer of 255 bytes"),
    "a negative LONG4": (archive(b"\x80\2\x8b\xff\xff\xff\xff."), "integer of 4294967295 bytes"),
    "a huge BINUNICODE8": (archive(b"\x80\4\x8d" + b"\xff" * 8 + b"x."), "truncated"),
    "a huge BINBYTES8": (archive(b"\x80\4\x8e" + struct.pack("<Q", 1 << 40) + b"x."), "truncated"),
    "a huge BINUNICODE in a stream": (stream(b"\x80\2X\xff\xff\xff\xff."), "truncated"),
    "a huge frame": (archive(b"\x80\4\x95" + struct.pack("<Q", 1 << 60) + b"]."), "frame"),
    "text that is not UTF-8": (archive(b"\x80\2X\2\0\0\0\xff\xfe."), "not UTF-8"),
    "a surrogate": (archive(b"\x80\2X\3\0\0\0\xed\xa0\x80."), "not UTF-8"),
    "a decimal number": (archive(b"\x80\2I" + b"9" * 10_000 + b"\n."), "INT"),
    "another protocol": (archive(b"\x80\x06]."), "protocol 6"),
    "deep lists": (archive(b"\x80\2" + b"]" * 300_000 + b"a" * 299_999 + b"."), "nests containers"),
    "deep tuples": (archive(b"\x80\2)" + b"\x85" * 500_000 + b"."), "nests containers"),
    "deep marks": (archive(b"\x80\2" + b"(" * 300_000 + b"t" * 300_000 + b"."), "nests containers"),
    "deep dicts": (archive(b"\x80\2" + b"}K\1" * 100_000 + b"}" + b"s" * 100_000 + b"."), "nests containers"),
    "a tuple of tuples for a key": (archive(b"\x80\2}(" + laughs(40, b"", b"t") + b"Nu."), "entry tuple"),
    "a long number for a key": (archive(b"\x80\2}(" + integer(1 << 61) + b"Nu."), "entry int"),
    "a list for a key": (archive(b"\x80\2}(]Nu."), "key of type list"),
    "a key twice": (archive(state(a=tensor())[:-2] + text("a") + tensor() + b"u."), "key a twice"),
    "a key without a value": (archive(b"\x80\2}(K\1u."), "without a value"),
    "items for a list": (archive(b"\x80\2]K\1K\2s."), "sets an item of a list"),
    "items appended to a dict": (archive(b"\x80\2}K\1a."), "appends to a dict"),
    "a set": (archive(pickle.dumps({1, 2}, 4)), "contains a set"),
    "a dict that holds itself": (archive(b"\x80\2" + SELF), "contains itself"),
    "a list that holds itself": (archive(b"\x80\2]q\0h\0a."), "contains itself"),
    "a billion laughs": (archive(b"\x80\2(" + laughs(60, b"]", b"e") + b"t."), "contains a tuple"),
    "an empty stack": (archive(b"\x80\2a."), "pops from an empty stack"),
    "a stack beneath a mark": (archive(b"\x80\2](N\x86."), "pops from an empty stack"),
    "no mark": (archive(b"\x80\2]e."), "pops a missing mark"),
    "an open mark": (archive(b"\x80\2(]."), "ends before"),
    "more than one value": (archive(b"\x80\2]]."), "ends before"),
    "no end": (archive(b"\x80\2]"), "truncated"),
    "an empty pickle": (archive(b""), "truncated"),
    "an OrderedDict of a number": (archive(b"\x80\2ccollections\nOrderedDict\nK\1\x85R."), "pairs"),
    "a huge pickle": (archive(b"\x80\2" + bytes(17 << 20)), "expected at most 16777216"),
}
TENSORS: dict[str, tuple[bytes, str]] = {
    "a negative size": (archive(state(a=tensor(size=(-2, 2)))), "tensor a that has a negative size"),
    "two negative sizes": (archive(state(a=tensor(size=(-2, -2)))), "negative size"),
    "a negative stride": (archive(state(a=tensor(stride=(-2, 1), offset=2))), "negative size, stride"),
    "a negative offset": (archive(state(a=tensor(offset=-1))), "negative size, stride or offset"),
    "an offset beyond": (archive(state(a=tensor(offset=1))), "reaches beyond its storage of 4 elements"),
    "a stride beyond": (archive(state(a=tensor(stride=(3, 1)))), "reaches beyond its storage"),
    "a size beyond": (archive(state(a=tensor(size=(3, 2)))), "reaches beyond its storage"),
    "a huge offset": (archive(state(a=tensor(offset=1 << 63))), "reaches beyond its storage"),
    "a size that overflows": (archive(state(a=tensor(size=(1 << 32, 1 << 32), stride=(0, 0)))), "no array can have"),
    "a size of nothing that overflows": (archive(state(a=tensor(size=(0, 1 << 62)))), "no array can have"),
    "a size beyond 64 bits": (archive(state(a=tensor(size=(1 << 70,), stride=(0,)))), "no array can have"),
    "an expansion to 4 TB": (archive(state(a=tensor(size=(1 << 40,), stride=(0,)))), "repeats elements"),
    "many expansions": (
        archive(state(**{f"a{i}": tensor(size=(1 << 22,), stride=(0,)) for i in range(100)})),
        "a4 that repeats",
    ),
    "too many dimensions": (archive(state(a=tensor(size=(1,) * 65, stride=(1,) * 65))), "65 dimensions"),
    "fewer strides than sides": (archive(state(a=tensor(stride=(1,)))), "2 dimensions but 1 strides"),
    "a size of texts": (
        archive(state(a=tensor(of=storage()).replace(integers((2, 2)), b"(" + text("x") + b"t"))),
        "integers",
    ),
    "a size of booleans": (archive(state(a=tensor().replace(integers((2, 2)), b"(\x88\x88t"))), "not of integers"),
    "a storage that is a number": (archive(state(a=tensor(of=b"K\1"))), "without a storage"),
    "too few values": (
        archive(state(a=name("torch._utils._rebuild_tensor_v2") + b"(K\1tR")),
        "describes a tensor by 1 values",
    ),
    "negated values": (archive(state(a=tensor()[:-2] + b"}" + text("neg") + b"\x88stR")), "negated"),
    "a parameter of a number": (
        archive(state(a=called("torch._utils._rebuild_parameter", "a", "b", "c"))),
        "parameter",
    ),
    "another reference": (archive(state(a=b"(" + text("module") + b"NNNNtQ")), "persistent ID that is not a storage"),
    "a reference of text": (archive(state(a=text("storage") + b"Q")), "persistent ID that is not a storage"),
    "a storage of no type": (archive(state(a=tensor(of=storage(kind="torch.Size")))), "without its type"),
    "a storage in two types": (
        archive(state(a=tensor(), b=tensor(of=storage(kind="torch.IntStorage")))),
        "storage 0 twice, with different types or sizes",
    ),
    "a storage in two sizes": (
        archive(state(a=tensor(), b=tensor(of=storage(numel=3)))),
        "storage 0 twice, with different types or sizes",
    ),
    "quantised": (archive(state(a=tensor(of=storage(kind="torch.QInt32Storage")))), "type qint32"),
    "a quantised tensor": (archive(state(a=called("torch._utils._rebuild_qtensor"))), "_rebuild_qtensor"),
    "complex": (archive(state(a=tensor((1, 2), of=storage(kind="torch.ComplexFloatStorage", numel=2)))), "complex64"),
    "sparse": (archive(state(a=called("torch._utils.entry a: sparse tensor"))), "entry a: sparse tensor"),
    "of a newer type": (archive(state(a=called("torch._utils._rebuild_tensor_v3"))), "_rebuild_tensor_v3"),
    "no such storage": (archive(state(a=tensor(of=storage("7")))), "storage 7, which is missing"),
    "a storage by a path": (archive(state(a=tensor(of=storage("../data.pkl")))), "../data.pkl, which is missing"),
    "a storage that is too short": (archive(state(a=tensor()), data__0=bytes(15)), "of 15 bytes"),
    "a storage that is too long": (archive(state(a=tensor()), data__0=bytes(20)), "of 20 bytes"),
    "a storage of many elements": (archive(state(a=tensor(of=storage(numel=1 << 62)))), "4611686018427387904 elements"),
    "a storage of fewer than none": (archive(state(a=tensor(of=storage(numel=-4)))), "-4 elements"),
    "a view beyond": (stream(state(a=tensor((2,), (1,), of=storage(view=BAD_VIEW)))), "beyond its storage of 4"),
    "a tensor beyond its view": (stream(state(a=tensor((3,), (1,), of=storage(view=VIEW)))), "its storage of 2"),
    "a view of texts": (stream(state(a=tensor(of=storage(view=text("v"))))), "without its bounds"),
    "no dictionary": (archive(b"\x80\2]."), "contains a list"),
    "a single tensor": (archive(b"\x80\2" + tensor() + b"."), "contains a Tensor"),
    "an empty dictionary": (archive(b"\x80\2}."), "no tensors"),
    "no tensors": (
        archive(state(epoch=b"K\1", net=b"}")),
        "expected a state dict, or one under a key such as state_dict",
    ),
    "a number for a name": (archive(b"\x80\2}K\3" + tensor() + b"s."), "whose name is of type int"),
}
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "an entry twice": (two_of_a_name(), "top/data/0 twice"),
    "overlapping entries": (overlapping(), "overlaps"),
    "an entry in two places": (edited(FINE, CENTRAL, 1, 42, "<I", 0), "overlaps"),
    "an entry of another name": (FINE.replace(b"top/data/0", b"top/data/9", 1), "different name"),
    "an entry beyond": (edited(FINE, CENTRAL, 1, 42, "<I", 1 << 30), "not at the offset"),
    "an entry without a header": (edited(FINE, CENTRAL, 2, 42, "<I", FINE.index(CENTRAL)), "not at the offset"),
    "an entry that is too long": (
        edited(edited(FINE, CENTRAL, 2, 20, "<I", 10_000), CENTRAL, 2, 24, "<I", 10_000),
        "ends beyond",
    ),
    "a path out of it": (zipped({"top/data.pkl": state(), "../../etc/passwd": b""}), "outside the archive"),
    "an absolute path": (zipped({"top/data.pkl": state(), "/etc/passwd": b""}), "outside the archive"),
    "two checkpoints": (zipped({"a/data.pkl": state(), "b/data.pkl": state()}), "2 entries"),
    "another archive": (zipped({"hello.txt": b"hello"}), "0 entries"),
    "arrays of numpy": (zipped({"a.npy": b"\x93NUMPY"}), "not of torch.save"),
    "encrypted": (edited(FINE, CENTRAL, 0, 8, "<H", 1), "encrypted"),
    "compressed": (archive(state(a=tensor()), zipfile.ZIP_DEFLATED), "compressed"),
    "a zip bomb": (archive(state(a=tensor()), zipfile.ZIP_DEFLATED, data__0=bytes(20 << 20)), "compressed"),
    "sizes that differ": (edited(FINE, CENTRAL, 1, 24, "<I", 17), "compressed"),
    "bzip2": (archive(state(a=tensor()), zipfile.ZIP_BZIP2), "compressed"),
    "another pickle": (FINE.replace(b"torch._utils", b"torch_.utils", 1), "data.pkl that does not match its checksum"),
    "another value": (FINE.replace(bytes(16), bytes(15) + b"\1", 1), "tensor a that does not match its checksum"),
    "another checksum": (edited(FINE, CENTRAL, 1, 16, "<I", 5), "tensor a that does not match its checksum"),
    "truncated zip archive": (FINE[: FINE.index(END)], "truncated zip archive"),
    "with half of its end": (FINE[:-10], "truncated zip archive"),
    "with half of its directory": (FINE[: FINE.index(CENTRAL) + 50] + FINE[FINE.index(END) :], "directory"),
    "only a start": (FINE[:30], "truncated zip archive"),
    "a directory beyond": (edited(FINE, END, 0, 16, "<I", 1 << 30), "not before its end"),
    "a huge directory": (edited(FINE, END, 0, 12, "<I", 1 << 31), "not before its end"),
    "more entries than there are": (edited(FINE, END, 0, 10, "<H", 999), "directory is damaged"),
    "more entries than there can be": (long_end(count=1 << 60), "directory is damaged"),
    "a long directory beyond": (long_end(start=1 << 63), "not before its end"),
    "a long end beyond": (long_end(at=(1 << 64) - 1), "end record is damaged"),
    "an invalid long end": (long_end(at=0), "end record is damaged"),
    "big-endian": (archive(state(a=tensor()), byteorder=b"big"), "byte order b'big'"),
    "a long byte order": (archive(state(a=tensor()), byteorder=b"l" * 1000), "1000 bytes of top/byteorder"),
    "a version of the future": (archive(state(a=tensor()), version=b"11\n"), "version b'11'"),
    "a version that is no number": (archive(state(a=tensor()), version=b"three"), "version b'three'"),
    "TorchScript": (archive(state(), constants_pkl=b"").replace(b"constants_pkl", b"constants.pkl"), "torch.jit.load"),
    "TorchScript's code": (archive(state(), code____torch__=b""), "torch.jit.load"),
}
STREAMS: dict[str, tuple[bytes, str]] = {
    "of another version": (stream(state(a=tensor()), protocol=1002), "unknown version"),
    "of a big-endian machine": (stream(state(a=tensor()), little=False), "big-endian"),
    "a machine of no byte order": (stream(state(a=tensor()), little="yes"), "big-endian"),
    "only a pickle": (pickle.dumps({"a": 1}, 2), "not a file of torch.save"),
    "only a magic number": (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "truncated"),
    "cut in its pickle": (stream(state(a=tensor()))[:150], "truncated"),
    "cut in its storage": (stream(state(a=tensor()))[:-1], "truncated in its storage 0"),
    "cut before its storage": (stream(state(a=tensor()), data=b"\4"), "does not have 4 elements"),
    "more than its storages": (stream(state(a=tensor())) + b"x", "1 bytes follow"),
    "another number of elements": (stream(state(a=tensor()), data=struct.pack("<q", 5) + bytes(20)), "4 elements"),
    "a huge storage": (
        stream(state(a=tensor(of=storage(numel=1 << 40))), data=struct.pack("<q", 1 << 40)),
        "truncated in",
    ),
    "fewer elements than none": (
        stream(state(a=tensor(of=storage(numel=-4))), data=struct.pack("<q", -4)),
        "-4 elements",
    ),
    "no storages": (stream(state(a=tensor()), keys=(), data=b""), "missing from the file"),
    "an unknown storage": (stream(state(a=tensor()), keys=("0", "1")), "no tensor describes"),
    "a storage twice in a stream": (stream(state(a=tensor()), keys=("0", "0")), "distinct names"),
    "keys that are no text": (stream(state(a=tensor()), keys=(0,)), "distinct names"),
    "keys that are a call": (
        stream(state(a=tensor())).replace(pickle.dumps(["0"], 2), b"\x80\2" + called("os.system", "id") + b"."),
        "distinct names",
    ),
}
SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "a header beyond the end": (safe({"a": entry()}, length=3_000_000), "damaged safetensors"),
    "a huge header": (safe({"a": entry()}, length=1 << 40), "has 1099511627776 bytes"),
    "a header of all bits": (safe({"a": entry()}, length=(1 << 64) - 1), "has 18446744073709551615 bytes"),
    "a header that is no JSON": (safe(b"{a: 1}"), "not JSON"),
    "a header that is cut": (safe({"a": entry()}, length=20), "not JSON"),
    "a header in another encoding": (safe(b'{"\xff": 1}'), "not JSON"),
    "a deep header": (safe(b'{"a":' + b"[" * 1_000_000), "not JSON"),
    "a deep header that ends": (safe(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "damaged safetensors"),
    "a long number in it": (safe(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "overlapping tensors": (safe({"a": entry(), "b": entry(start=8, stop=24)}, bytes(24)), "damaged safetensors"),
    "the same place twice": (safe({"a": entry(), "b": entry()}), "damaged safetensors"),
    "a hole": (safe({"a": entry(), "b": entry(start=20, stop=36)}, bytes(36)), "damaged safetensors"),
    "data beyond the end": (safe({"a": entry()}, bytes(12)), "damaged safetensors"),
    "data that belongs to none": (safe({"a": entry()}, bytes(20)), "damaged safetensors"),
    "the wrong way around": (safe({"a": entry(start=16, stop=0)}), "damaged safetensors"),
    "a negative offset in it": (safe({"a": entry(start=-16, stop=0)}), "damaged safetensors"),
    "another shape": (safe({"a": entry(shape=(5,))}), "damaged safetensors"),
    "a shape that overflows": (safe({"a": entry(shape=(1 << 62, 4))}), "damaged safetensors"),
    "a shape of nothing that overflows": (safe({"a": entry(shape=(0, 1 << 62), stop=0)}, b""), "no array can have"),
    "a shape of 65 sides": (safe({"a": entry(shape=(*(1,) * 64, 4))}), "65 dimensions"),
    "a type that there is not": (safe({"a": entry(dtype="F31")}), "damaged safetensors"),
    "of 8 bits": (safe({"a": entry(dtype="F8_E4M3", shape=(16,))}), "tensor a that has type F8_E4M3"),
    "unsigned": (safe({"a": entry(dtype="U32")}), "type U32"),
    "a tensor twice": (
        safe(json.dumps({"a": entry(), "b": entry(start=16, stop=32)}).replace('"b"', '"a"').encode(), bytes(32)),
        "has a twice",
    ),
    "a field twice": (safe(json.dumps({"a": entry()}).replace('"dtype"', '"shape": [1], "dtype"').encode()), "twice"),
    "metadata twice": (safe(b'{"__metadata__": {"a": "1", "a": "2"}}', b""), "has a twice"),
    "metadata of numbers": (safe({"__metadata__": {"a": 1}, "a": entry()}), "damaged safetensors"),
    "a list for a header": (struct.pack("<Q", 2) + b"[]" + bytes(16), "not a file of weights"),
}
OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "one byte": (b"\x80", "truncated"),
    "zeros": (bytes(1000), "not a file of weights"),
    "a web page": (b"<!DOCTYPE html><html><body>Not found", "web page"),
    "a web page with a mark": (b"\xef\xbb\xbf\r\n <html>{}", "web page"),
    "a pointer of git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n", "git lfs pull"),
    "tar": (tar(), "tar format"),
    "tar of before": (b"storages" + bytes(1000), "tar format"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a file of weights"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a file of weights"),
    "gzip": (zlib.compress(FINE, wbits=31), "not a file of weights"),
    "text": (b"weights\n" * 100, "not a file of weights"),
}
STATE = state(a=tensor())[2:-1]
# Files of weights beside which other values stand. They are read past, and none of them is built.
READ_PAST: dict[str, bytes] = {
    "a call among tensors": archive(state(a=tensor(), b=called("posix.system", f"touch {SENTINEL}"))),
    "a call beside the state dict": archive(state(state_dict=STATE, b=called("os.system", f"touch {SENTINEL}"))),
    "a call in a stream": stream(state(state_dict=STATE, b=called("os.system", f"touch {SENTINEL}"))),
    "a call of a call": archive(state(state_dict=STATE, b=CHAIN + b")R")),
    "an object with a state": archive(state(state_dict=STATE, b=pickle.dumps(WithState(), 2)[2:-1])),
    "a number among tensors": archive(state(a=tensor(), epoch=b"K\1")),
    "a dict within the state dict": archive(state(model=state(a=tensor(), b=b"}")[2:-1])),
    "a set": archive(state(state_dict=STATE, b=b"\x8f(K\1K\2\x90")),
    "a frozen set": archive(state(state_dict=STATE, b=b"(K\1K\2\x91")),
    "bytes that can change": archive(state(state_dict=STATE, b=b"\x96\2" + bytes(7) + b"ab")),
    "keys of other types": archive(state(state_dict=STATE, b=b"}(K\1K\2\x86NG" + bytes(8) + b"Nu")),
    "keyword arguments": archive(state(state_dict=STATE, b=name("a.B") + b")}\x92")),
    "a list of a class": archive(state(state_dict=STATE, b=name("a.B") + b")\x81(K\1K\2e")),
    "a dict of a class": archive(state(state_dict=STATE, b=name("a.B") + b")R(K\1K\2u}b")),
}
KINDS = {**CALLS, **PICKLES, **TENSORS, **ARCHIVES, **STREAMS, **SAFETENSORS, **OTHERS}


def work(what: str, folder: Path, *count: str, cwd: Path) -> list[dict[str, Any]]:
    worker = ROOT / "tests" / "weights" / "hostile_worker.py"
    command = [sys.executable, str(worker), str(ROOT), what, str(folder), *count]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list(cwd.glob("payload*"))
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kind_is_refused_with_a_reason(tmp_path: Path) -> None:
    groups = (CALLS, PICKLES, TENSORS, ARCHIVES, STREAMS, SAFETENSORS, OTHERS)
    assert len(KINDS) == sum(map(len, groups)) > 200
    (folder := tmp_path / "files").mkdir()
    kinds = {f"{number:03}.weights": kind for number, kind in enumerate(KINDS)}
    for file, kind in kinds.items():
        (folder / file).write_bytes(KINDS[kind][0])
    for number, data in enumerate(READ_PAST.values()):
        (folder / f"{number}.fine").write_bytes(data)
    (folder / "fine.zip").write_bytes(FINE)
    (folder / "fine.stream").write_bytes(stream(state(a=tensor(), b=tensor((2,), (1,), of=storage(view=VIEW)))))
    (folder / "fine.long").write_bytes(long_end())
    (folder / "fine.safe").write_bytes(safe({"a": entry()}))
    results = {result["file"]: result for result in work("files", folder, cwd=tmp_path)}
    same = results["fine.zip"]["message"]
    assert all(results.pop(f"fine.{form}")["outcome"] == "accepted" for form in ("zip", "stream", "long", "safe"))
    for number, kind in enumerate(READ_PAST):
        assert results.pop(f"{number}.fine") | {"seconds": 0} == {
            "file": f"{number}.fine",
            "outcome": "accepted",
            "message": same,
            "seconds": 0,
        }, kind
    wrong = []
    for file, kind in kinds.items():
        outcome, message = results[file]["outcome"], results[file]["message"]
        if outcome != "refused" or KINDS[kind][1] not in message:
            wrong.append((kind, outcome, message))
        assert message.startswith(f"{folder / file} ") or outcome != "refused"
        assert "\n" not in message
        assert len(message) < len(str(folder)) + 500
    assert not wrong
    assert len(results) == len(kinds)


@pytest.mark.slow
def test_mutated_files_are_refused_or_valid(tmp_path: Path) -> None:
    results = work("mutations", GOOD, "6000", cwd=tmp_path)
    outcomes = collections.Counter((result["kind"], result["outcome"], result["same"]) for result in results)
    assert len(results) == 6000
    assert not [result for result in results if result["outcome"] == "failed"]
    # An archive's checksums detect all changes to the bytes that are read.
    assert outcomes["zip", "accepted", False] == 0
    # The other mutations reach the later checks.
    for kind, least in (("repacked", 20), ("stream", 100), ("safe", 10)):
        assert outcomes[kind, "accepted", False] >= least
        assert outcomes[kind, "refused", False] > 300


@pytest.mark.fast
def test_a_plain_pickle_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the payloads above work."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(io.BytesIO(CALLS["os.system in a zip"][0])) as archived:
        pickle.loads(archived.read("top/data.pkl"))
    assert (tmp_path / SENTINEL).exists()
    with pytest.raises(InputError, match=r"contains a os\.system; expected a dictionary of tensors"):
        refusal(tmp_path, "os.system in a zip")


def refusal(folder: Path, kind: str) -> None:
    (folder / "a.pth").write_bytes(KINDS[kind][0])
    open_tensors(folder / "a.pth")


@pytest.mark.fast
def test_shared_values_are_accepted(tmp_path: Path) -> None:
    values = b"]" + b"(" + laughs(60, b"]", b"e") + b"e"
    (tmp_path / "a.pth").write_bytes(archive(state(history=values, state_dict=state(a=tensor())[2:-1])))
    with open_tensors(tmp_path / "a.pth") as tensors:
        np.testing.assert_array_equal(tensors["a"], np.zeros((2, 2)))


def read(folder: Path, data: bytes) -> dict[str, np.ndarray]:
    (folder / "a").write_bytes(data)
    with open_tensors(folder / "a") as tensors:
        return dict(tensors)


def test_files_of_the_oldest_versions_are_accepted(tmp_path: Path) -> None:
    """Python 2 wrote names as byte strings, and the items of an OrderedDict as an argument."""
    old = storage().replace(text("storage"), b"U\x07storage").replace(text("0"), b"T\1\0\0\x000")
    first = name("torch._utils._rebuild_tensor") + b"(" + old + integer(1) + integers((3,)) + integers((1,)) + b"tR"
    size = name("torch.Size") + b"(" + integers((2,)) + b"tR"
    second = tensor((7,), (2,), of=old).replace(integers((7,)), size)
    parameter = name("torch._utils._rebuild_parameter") + b"(" + second + b"\x88" + ORDERED + b"tR"
    pairs = b"](](U\1a" + first + b"e](U\1b" + parameter + b"p7\neU\1c" + b"g7\n\x86e"
    values = np.arange(4, dtype=np.float32)
    pickled = b"\x80\2" + name("collections.OrderedDict") + pairs + b"\x85R}" + text("_metadata") + ORDERED + b"sb."
    tensors = read(tmp_path, stream(pickled, data=struct.pack("<q", 4) + values.tobytes()))
    assert {key: array.tolist() for key, array in tensors.items()} == {"a": [1, 2, 3], "b": [0, 2], "c": [0, 2]}


def test_a_view_of_a_storage_is_read_from_its_start(tmp_path: Path) -> None:
    data = struct.pack("<q4f", 4, 0, 1, 2, 3)
    tensors = read(tmp_path, stream(state(a=tensor((1,), (1,), 1, of=storage(view=VIEW))), data=data))
    assert tensors["a"].tolist() == [3]


def test_the_stride_of_a_dimension_of_size_one_is_ignored(tmp_path: Path) -> None:
    tensors = read(tmp_path, archive(state(a=tensor((1, 4), (1 << 62, 1)), b=tensor((4, 1), (1, 1 << 70)))))
    assert (tensors["a"].shape, tensors["b"].shape) == ((1, 4), (4, 1))


def test_booleans_are_0_or_1(tmp_path: Path) -> None:
    booleans = storage(kind="torch.BoolStorage")
    made = archive(state(a=tensor((4,), (1,), of=booleans), b=tensor((), (), 3, of=booleans)), data__0=b"\0\1\2\xff")
    tensors = read(tmp_path, made)
    assert tensors["a"].view(np.uint8).tolist() == [0, 1, 1, 1]
    assert (tensors["b"].view(np.uint8), tensors["b"].shape) == (1, ())
    array = read(tmp_path, safe({"a": entry("BOOL", (4,), 0, 4)}, b"\0\1\2\xff"))["a"]
    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        ({"model": "other", "state_dict": "a"}, "a"),
        ({"model_ema": "other", "state_dict_ema": "a", "epoch": None}, "a"),
        ({"model_state_dict": "a", "model_ema": "other"}, "a"),  # of another network
        ({"state_dict": None, "model": "a"}, "a"),
        ({"module._orig_mod.module.a": None}, "a"),
    ],
)
def test_the_state_dict_is_found(outer: dict[str, str | None], expected: str, tmp_path: Path) -> None:
    values: dict[str, bytes] = {}
    for key, inner in outer.items():
        values[key] = b"K\1" if inner is None else state(**{inner: tensor()})[2:-1]
    if len(outer) == 1:
        values = {key: tensor() for key in outer}
    assert list(read(tmp_path, archive(state(**values)))) == [expected]


@pytest.mark.parametrize(("place", "reason"), [("none", "No such file"), (".", "a folder"), ("pipe", "a pipe")])
def test_other_paths_than_files_are_refused(place: str, reason: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=reason) as raised:
        open_tensors(tmp_path / place)
    assert str(raised.value).startswith(f"{tmp_path / place} ")


def test_a_file_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(FINE)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a.pth can't be read \(Permission denied\)"):
        open_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("make", [lambda: FINE, lambda: stream(state(a=tensor())), lambda: safe({"a": entry()})])
def test_a_file_truncated_anywhere_is_refused(make: Callable[[], bytes], tmp_path: Path) -> None:
    data = make()
    for length in range(len(data)):
        (tmp_path / "a").write_bytes(data[:length])
        with pytest.raises(InputError, match=f"{tmp_path}/a "):
            open_tensors(tmp_path / "a")


@pytest.mark.fast
def test_a_file_truncated_while_it_is_open_is_refused(tmp_path: Path) -> None:
    numel = 1 << 16  # larger than the read buffer
    pickled, data = state(a=tensor((numel,), (1,), of=storage(numel=numel))), bytes(4 * numel)
    files = [archive(pickled, data__0=data), stream(pickled, data=struct.pack("<q", numel) + data)]
    files.append(safe({"a": entry("F32", (numel,), 0, len(data))}, data))
    for number, data in enumerate(files):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        with open_tensors(path) as tensors:
            os.truncate(path, numel)
            with pytest.raises(InputError, match=rf"{number} has a tensor a that is truncated"):
                tensors["a"]


def test_a_storage_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    numel = 1 << 58
    path.write_bytes(stream(state(a=tensor((numel,), (1,), of=storage(numel=numel))), data=struct.pack("<q", numel)))
    size = path.stat().st_size + 4 * numel
    real = os.fstat

    def fstat(number: int) -> Any:
        found = real(number)
        return os.stat_result((*found[:6], size, *found[7:10])) if found.st_size < 1 << 20 else found

    monkeypatch.setattr("jaxnets.weights.torch_file.os.fstat", fstat)
    with open_tensors(path) as tensors, pytest.raises(InputError, match="does not fit into the available memory"):
        tensors["a"]


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    chance = random.Random(0)
    for start in (b"", b"PK\3\4", b"\x80\2", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x30\0\0\0\0\0\0\0{"):
        for _ in range(100):
            (tmp_path / "a").write_bytes(start + chance.randbytes(chance.randrange(1, 300)))
            with pytest.raises(InputError, match=f"{tmp_path}/a "):
                open_tensors(tmp_path / "a")
