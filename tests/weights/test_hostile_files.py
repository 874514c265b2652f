"""Files that are broken, or made to do harm: refused in one line, with nothing run and little memory taken."""

import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.weights.reading import attempt
from tests.weights.test_tensor_files import FILES, FOLDER

# Opcodes.
PROTO, MARK, STOP, REDUCE, BUILD = b"\x80\x02", b"(", b".", b"R", b"b"
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"\x89" + ORDERED + b")R"


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values: int) -> bytes:
    return MARK + b"".join(map(number, values)) + b"t"


def storage(numel: Any = 4, key: str = "0", kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    size = numel if isinstance(numel, bytes) else number(numel)
    return MARK + text("storage") + kind + text(key) + text("cpu") + size + b"tQ"


def tensor(
    source: bytes | None = None, *, offset: int = 0, shape: tuple[int, ...] = (2, 2), strides: tuple[int, ...] = (2, 1)
) -> bytes:
    place = number(offset) + numbers(*shape) + numbers(*strides)
    return REBUILD + MARK + (source or storage()) + place + HOOKS + b"tR"


def state(*items: bytes) -> bytes:
    """A pickle of an OrderedDict of values called t0, t1, ..."""
    named = b"".join(text(f"t{i}") + item for i, item in enumerate(items))
    return PROTO + ORDERED + b")R" + MARK + named + b"u" + STOP


def archive(
    pickled: bytes, storages: dict[str, bytes] | None = None, extra: dict[str, bytes] | None = None, **options: Any
) -> bytes:
    entries = {"x/data.pkl": pickled}
    entries |= {f"x/data/{k}": v for k, v in ({"0": bytes(16)} if storages is None else storages).items()}
    return zipped(list((entries | (extra or {})).items()), **options)


def zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)
    return target.getvalue()


def stream(
    pickled: bytes,
    keys: Any = ("0",),
    data: bytes | None = None,
    *,
    protocol: int = 1001,
    system: Any = None,
) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True} if system is None else system
    heads = (0x1950A86A20F9469CFC6C, protocol, system)
    body = b"".join(pickle.dumps(head, 2) for head in heads) + pickled + pickle.dumps(list(keys), 2)
    return body + (struct.pack("<q", 4) + bytes(16) if data is None else data)


def safetensors(header: Any, data: bytes = bytes(16)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype: str = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def patched(data: bytes, old: bytes, new: bytes, *, last: bool = False) -> bytes:
    assert old in data
    place = data.rindex(old) if last else data.index(old)
    return data[:place] + new + data[place + len(old) :]


class Harm:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def harmful(function: Callable[..., Any], *arguments: Any, protocol: int = 2) -> bytes:
    return pickle.dumps({"t0": Harm(function, *arguments)}, protocol)


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name))
    return target.getvalue()


def laughs() -> bytes:
    """Thirty lists, each of which holds the one before ten times over."""
    made = PROTO + b"]q\x00"
    for level in range(30):
        made += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
        made += b"0"
    return made + b"0" + ORDERED + b")R" + MARK + text("t0") + b"h\x1eu" + STOP


def encrypted(data: bytes) -> bytes:
    changed = bytearray(data)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(signature) + place] |= 1
    return bytes(changed)


def overlapping(data: bytes) -> bytes:
    """The directory's second entry begins where the first does."""
    changed = bytearray(data)
    second = changed.index(b"PK\x01\x02", changed.index(b"PK\x01\x02") + 4)
    changed[second + 42 : second + 46] = bytes(4)
    return bytes(changed)


GOOD = archive(state(tensor()))
BOMB = 1 << 40
# What is wrong -> the file, and a word of what is said about it.
# fmt: off
HOSTILE: dict[str, tuple[bytes, str]] = {
    # Calls of functions.
    "os.system": (archive(PROTO + b"cos\nsystem\n(" + text("touch harmed") + b"tR."), "os.system"),
    "posix.system, stream": (stream(PROTO + b"cposix\nsystem\n(" + text("touch harmed") + b"tR."), "posix.system"),
    "system at the start": (PROTO + b"cos\nsystem\n(" + text("touch harmed") + b"tR.", "os.system"),
    "eval": (archive(harmful(eval, "open('harmed', 'w')")), "__builtin__.eval"),
    "exec, protocol 4": (archive(harmful(exec, "open('harmed', 'w')", protocol=4)), "builtins.exec"),
    "eval, protocol 5": (archive(harmful(eval, "1", protocol=5)), "builtins.eval"),
    "getattr": (archive(harmful(getattr, "x", "upper")), "getattr"),
    "subprocess": (archive(harmful(subprocess.Popen, "true")), "commands.Popen"),
    "a call within a tensor": (archive(state(tensor(b"cos\nsystem\n(" + text("true") + b"tR"))), "os.system"),
    "a module of torch": (archive(PROTO + b"ctorch.nn.modules.linear\nLinear\n)\x81."), "torch.nn.modules.linear"),
    "a function of torch": (archive(PROTO + b"ctorch.hub\nload\n."), "torch.hub.load"),
    "torch.load in torch.load": (archive(PROTO + b"ctorch.storage\n_load_from_bytes\n(C\x01xtR."), "_load_from_bytes"),
    "numpy": (archive(harmful(np.zeros, 3)), "numpy"),
    "a dotted name": (archive(PROTO + b"ccollections\nOrderedDict.__init__\n."), "OrderedDict.__init__"),
    "a name from the stack": (archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "os.system"),
    "a name that is no text": (archive(b"\x80\x04K\x01K\x02\x93."), "1.2"),
    "INST": (archive(b"(" + text("true") + b"ios\nsystem\n."), "INST"),
    "OBJ": (archive(PROTO + b"(" + ORDERED + b"o."), "OBJ"),
    "NEWOBJ": (archive(PROTO + ORDERED + b")\x81."), "NEWOBJ"),
    "NEWOBJ_EX": (archive(b"\x80\x04" + ORDERED + b")}\x92."), "NEWOBJ_EX"),
    "EXT1": (archive(PROTO + b"\x82\x01."), "EXT1"),
    "PERSID": (archive(b"Pstorage\n."), "PERSID"),
    "NEXT_BUFFER": (archive(b"\x80\x05\x97."), "NEXT_BUFFER"),
    "a call of a text": (archive(PROTO + text("upper") + b")R."), "calls upper"),
    "a call of a storage type": (archive(PROTO + b"ctorch\nFloatStorage\n)R."), "calls torch.FloatStorage"),
    "a state of a list": (archive(PROTO + b"]}b."), "sets the state of a list"),
    "a state of a tensor": (archive(state(tensor() + b"}b")), "sets the state of a TensorRef"),
    "a state that is a call": (archive(PROTO + ORDERED + b")Rcos\nsystem\nb."), "os.system"),
    # Pickles that are no pickles, or too large.
    "a mark for a value": (archive(PROTO + b"(R."), "mark"),
    "an empty stack": (archive(PROTO + b"0."), "damaged"),
    "no end": (archive(PROTO + b"]"), "damaged"),
    "two values": (archive(PROTO + b"]]."), "ends with 2 values"),
    "an unknown memo": (archive(PROTO + b"h\x07."), "damaged"),
    "a huge LONG4": (archive(PROTO + b"\x8b\xff\xff\xff\x7f."), "announced"),
    "a negative LONG4": (archive(PROTO + b"\x8b\xff\xff\xff\xff."), "damaged"),
    "a huge text": (archive(b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"."), "announced"),
    "a huge text, stream": (stream(PROTO + b"X\xff\xff\xff\x7f."), "announced"),
    "a text without end, stream": (stream(b"V" + b"a" * 100_000), "damaged"),
    "a long decimal number": (archive(b"I" + b"9" * 60_000 + b"\n."), "damaged"),
    "too many opcodes": (archive(PROTO + b"]0" * 600_000 + b"]."), "opcodes"),
    "deep nesting": (archive(PROTO + b"]" * 100_000 + b"a" * 99_999 + b"."), "holds a list"),
    "a deep key": (archive(PROTO + b"})" + b"\x85" * 100_000 + b"Ns."), "for a key"),
    "a list that holds itself": (archive(PROTO + b"}" + text("state_dict") + b"]q\x00h\x00as."), "is a list"),
    "a dict that holds itself": (archive(PROTO + b"}q\x00" + text("model") + b"h\x00s."), "is a dict"),
    "laughs": (archive(laughs()), "is a list"),
    "laughs, stream": (stream(laughs(), [], b""), "is a list"),
    # Tensors that are none.
    "a list": (archive(PROTO + b"]."), "holds a list"),
    "no tensors": (archive(state()), "no tensors"),
    "a number for a tensor": (archive(state(tensor(), number(3))), "'t1' is a int"),
    "a number for a name": (archive(PROTO + b"}" + number(3) + tensor() + b"s."), "for a name"),
    "a negative side": (archive(state(tensor(shape=(-2, 2)))), "shape"),
    "a negative stride": (archive(state(tensor(strides=(-2, 1), offset=2))), "strides"),
    "a negative offset": (archive(state(tensor(offset=-1))), "offset"),
    "a huge shape": (archive(state(tensor(shape=(BOMB, BOMB)))), "reaches to"),
    "an overflow": (archive(state(tensor(shape=(1 << 61, 8), strides=(0, 0)))), "too often"),
    "beyond 64 bits": (archive(state(tensor(shape=(1 << 70, 1)))), "shape"),
    "repeated too often": (archive(state(tensor(shape=(BOMB,), strides=(0,)))), "too often"),
    "fewer strides": (archive(state(tensor(strides=(1,)))), "strides"),
    "a hundred axes": (archive(state(tensor(shape=(1,) * 100, strides=(1,) * 100))), "shape"),
    "beyond its storage": (archive(state(tensor(offset=1))), "reaches to 5"),
    "a tensor of a number": (archive(state(tensor(number(3)))), "damaged"),
    "a shape of texts": (
        archive(state(REBUILD + MARK + storage() + number(0) + text("ab") * 2 + HOOKS + b"tR")), "shape"
    ),
    "too few arguments": (archive(state(REBUILD + b"(tR")), "damaged"),
    "quantised": (archive(state(tensor(storage(kind=b"ctorch\nQInt8Storage\n")))), "torch.QInt8Storage"),
    "complex": (archive(state(tensor(storage(kind=b"ctorch\nComplexFloatStorage\n")))), "torch.ComplexFloatStorage"),
    "sparse": (archive(PROTO + b"ctorch._utils\n_rebuild_sparse_tensor\n."), "_rebuild_sparse_tensor"),
    "another reference": (archive(PROTO + MARK + text("module") + b"tQ."), "no storage"),
    "a storage of a negative size": (archive(state(tensor(storage(-4)))), "damaged"),
    "a storage that is missing": (archive(state(tensor(storage(key="7")))), "'7' is missing"),
    "a storage that is too short": (archive(state(tensor()), {"0": bytes(15)}), "15 bytes; 16"),
    "a storage that is announced huge": (archive(state(tensor(storage(BOMB)))), "bytes; 4398046511104"),
    "another path for a key": (archive(state(tensor(storage(key="../data.pkl")))), "missing"),
    # Zip archives.
    "an empty archive": (zipped([]), "0 entries"),
    "two pickles": (zipped([("x/data.pkl", state()), ("y/data.pkl", state())]), "2 entries"),
    "an entry twice": (
        patched(archive(state(tensor()), extra={"x/data/1": b""}), b"x/data/1", b"x/data/0", last=True), "twice"
    ),
    "encrypted": (encrypted(GOOD), "encrypted"),
    "compressed": (archive(state(tensor()), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a zip bomb": (archive(state(tensor()), {"0": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "overlapping entries": (overlapping(GOOD), "overlap"),
    "a cut archive": (GOOD[:-30], "damaged"),
    "a cut in the middle": (GOOD[: len(GOOD) // 2], "damaged"),
    "only a signature": (b"PK\x03\x04" + bytes(60), "damaged"),
    "a changed number": (patched(GOOD, bytes(16), bytes(15) + b"\1"), "CRC"),
    "a changed pickle": (patched(GOOD, b"t0", b"t9"), "CRC"),
    "big-endian": (archive(state(tensor()), extra={"x/byteorder": b"big"}), "little-endian"),
    "TorchScript": (archive(state(tensor()), extra={"x/constants.pkl": b"", "x/code/x.py": b""}), "TorchScript"),
    # The older stream.
    "another protocol": (stream(state(tensor()), protocol=1000), "the number 1000"),
    "big-endian, stream": (stream(state(tensor()), system={"little_endian": False}), "little-endian"),
    "a plain pickle": (pickle.dumps({"t0": 1}, 2), "torch.save did not write"),
    "cut in the data": (stream(state(tensor()))[:-1], "cut short"),
    "cut in the pickle": (stream(state(tensor()))[:120], "damaged"),
    "bytes at the end": (stream(state(tensor())) + b"x", "1 bytes follow"),
    "another count": (stream(state(tensor()), data=struct.pack("<q", 3) + bytes(12)), "has 3 numbers"),
    "a negative count": (stream(state(tensor()), data=struct.pack("<q", -4) + bytes(16)), "has -4 numbers"),
    "a huge storage, stream": (stream(state(tensor(storage(BOMB))), data=struct.pack("<q", BOMB)), "cut short"),
    "an unknown storage": (stream(state(tensor()), ["1"]), "not one that a tensor uses"),
    "a storage twice": (stream(state(tensor()), ["0", "0"]), "list of storages"),
    "no storage": (stream(state(tensor()), [], b""), "missing"),
    "a list of numbers": (stream(state(tensor()), [0]), "list of storages"),
    "a storage of two types": (
        stream(state(tensor(), tensor(storage(kind=b"ctorch\nIntStorage\n")))), "in two ways"
    ),
    "a view beyond its storage": (
        stream(state(tensor(storage()[:-2] + MARK + text("1") + number(2) + number(4) + b"ttQ"))), "damaged"
    ),
    "tar": (tar(), "tar format"),
    # Safetensors.
    "a header beyond the end": (struct.pack("<Q", 1 << 40) + b"{}", "cut short"),
    "a header that is no JSON": (safetensors(b"{nonsense}"), "damaged"),
    "overlapping tensors": (safetensors({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)), "damaged"),
    "a hole": (safetensors({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)), "damaged"),
    "data beyond the end": (safetensors({"a": entry(offsets=(16, 32))}), "damaged"),
    "data left over": (safetensors({"a": entry()}, bytes(32)), "damaged"),
    "another size than its shape": (safetensors({"a": entry(shape=(2, 3))}), "damaged"),
    "an overflowing shape": (safetensors({"a": entry(shape=(1 << 62, 1 << 62))}), "damaged"),
    "offsets the wrong way": (safetensors({"a": entry(offsets=(16, 0))}), "damaged"),
    "a negative offset, safetensors": (safetensors({"a": entry(offsets=(-16, 0))}), "damaged"),
    "an unknown type": (safetensors({"a": entry("F128")}), "damaged"),
    "an unsupported type": (safetensors({"a": entry("F8_E4M3", shape=(16,))}), "type F8_E4M3"),
    "a name twice": (safetensors(b'{"a":' + b",".join([json.dumps(entry()).encode()] * 1) + b',"a":1}'), "damaged"),
    "metadata that are no texts": (safetensors({"__metadata__": {"x": [1]}, "a": entry()}), "damaged"),
    # Files of another kind.
    "empty": (b"", "empty"),
    "a web page": (b"<!DOCTYPE html><html>Not found</html>", "web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
    "text": (b"these are no weights, however long the line that says so may be", "neither"),
    "zeros": (bytes(1000), "neither"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither"),
}
# fmt: on


def work(*arguments: object, folder: Path) -> list[dict[str, Any]]:
    """What tests.weights.reading says, in a process of its own that must end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.reading", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:], done.stdout[-500:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hostile_files_are_refused_by_name_and_reason(tmp_path: Path) -> None:
    assert len(HOSTILE) >= 60
    names = {f"{number:03}.pth": kind for number, kind in enumerate(HOSTILE)}
    for name, kind in names.items():
        (tmp_path / name).write_bytes(HOSTILE[kind][0])
    (tmp_path / "good.pth").write_bytes(GOOD)
    (tmp_path / "good-stream.pth").write_bytes(stream(state(tensor())))
    (tmp_path / "good.safetensors").write_bytes(safetensors({"a": entry()}))
    found = {row["file"]: row for row in work("hostile", tmp_path, folder=tmp_path)}
    assert {name: found.pop(name)["outcome"] for name in list(found) if name.startswith("good")} == {
        "good.pth": "read",
        "good-stream.pth": "read",
        "good.safetensors": "read",
    }
    for name, kind in names.items():
        row = found[name]
        assert row["outcome"] == "refused", (kind, row)
        assert row["message"].startswith(f"{tmp_path / name}: "), (kind, row)
        assert HOSTILE[kind][1] in row["message"], (kind, row)
        assert "\n" not in row["message"]
        assert len(row["message"]) < len(str(tmp_path)) + 400
    assert not (Path(__file__).parents[2] / "harmed").exists()


def test_mutations_of_good_files_are_refused_or_read_whole(tmp_path: Path) -> None:
    rows = work("mutated", FOLDER, 3000, tmp_path / "mutated", folder=tmp_path)
    assert len(rows) == 3000
    assert {row["outcome"] for row in rows} == {"read", "refused"}
    refused = [row for row in rows if row["outcome"] == "refused"]
    assert len(refused) > 2000
    assert all(row["message"].startswith(f"{tmp_path / 'mutated'}: ") for row in refused)
    # Checksums guard all of an archive that is read: what is accepted is as it was. (The other formats have none.)
    originals = {name: attempt(FOLDER / name)["message"] for name in FILES}
    for row in rows:
        name = row["file"].split(" of ")[1]
        if row["outcome"] == "read" and ("zip" in name or "protocol4" in name):
            assert row["message"] == originals[name], row


@pytest.mark.parametrize(
    ("place", "reason"), [("none.pth", "No such file"), (".", "it is a folder, not a file"), ("pipe", "regular file")]
)
def test_what_is_no_file_is_refused(place: str, reason: str, tmp_path: Path) -> None:
    import os

    if place == "pipe":
        os.mkfifo(tmp_path / "pipe")
    found = attempt(tmp_path / place)
    assert found["outcome"] == "refused"
    assert reason in found["message"]


@pytest.mark.parametrize("length", [0x80, 0x180, 0x3C, 0x4B50, 0x76])
def test_the_length_of_a_header_may_look_like_another_format(length: int, tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header + b" " * (length - len(header))))
    assert attempt(path)["outcome"] == "read"


def test_a_tensor_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(HOSTILE["a changed number"][0])
    assert attempt(path)["message"].startswith(f"{path}: tensor 't0': it is damaged (BadZipFile: Bad CRC-32")
