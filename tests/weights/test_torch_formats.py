"""Files of torch and safetensors are read exactly, and both libraries read the files that jaxnets writes."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxnets.errors import InputError
from jaxnets.weights import torch_file
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensor_file import open_tensors
from jaxnets.weights.tensors import DTYPES, Spec
from jaxnets.weights.torch_file import write_torch_file

FILES = Path(__file__).parents[1] / "references" / "torch_formats"
NAMES = sorted(path.name for path in FILES.iterdir() if path.suffix != ".npz")


def expected(file: str) -> dict[str, np.ndarray]:
    """The expected tensors of a file; the part of its name before the first "." is their key."""
    what = file.split(".")[0]
    with np.load(FILES / "expected.npz") as arrays:
        found = {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith(f"{what}/")}
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array for name, array in found.items()
    }


def assert_same(array: np.ndarray, wanted: np.ndarray) -> None:
    assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
    assert array.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("file", NAMES)
def test_files_are_read_exactly(file: str) -> None:
    wanted = expected(file)
    with open_tensors(FILES / file) as tensors:
        assert tensors.path == FILES / file
        assert set(tensors) == set(tensors.specs) == set(wanted)
        assert len(tensors) == len(wanted) > 0
        # In random order: the first read of a storage reads all of it for the checksum, later reads only a part.
        for name in [*wanted, *reversed(wanted)]:
            assert_same(tensors[name], wanted[name])
            assert tensors[name].flags.c_contiguous
            assert tensors[name].flags.writeable
            assert tensors.specs[name] == Spec(wanted[name].dtype, wanted[name].shape)


def test_the_fixtures_cover_all_cases() -> None:
    assert len(NAMES) == 26
    dtypes = expected("dtypes")
    assert {array.dtype.name for array in dtypes.values()} == set(DTYPES)
    assert {array.shape for array in dtypes.values()} == {(3, 5), (2, 0, 3), ()}
    assert np.isnan(dtypes["bfloat16"][0, 0])
    assert len(expected("views")) == 15
    assert expected("module")["bn.num_batches_tracked"] == 2
    with zipfile.ZipFile(FILES / "parallel.pth") as archive:
        assert b"module.conv.weight" in archive.read("parallel/data.pkl")
        assert b"_metadata" in archive.read("parallel/data.pkl")
    assert (FILES / "views.legacy.pth").read_bytes()[:2] == b"\x80\x02"


def test_the_order_and_the_metadata_are_kept() -> None:
    with open_tensors(FILES / "module.pth") as tensors:
        assert list(tensors)[:2] == ["conv.weight", "bn.weight"]
        assert tensors.metadata == {}
    with open_tensors(FILES / "dtypes.safetensors") as tensors:
        assert tensors.metadata == {"format": "pt", "what": "every dtype, ü"}
    with open_tensors(FILES / "module.safetensors") as tensors:
        assert tensors.metadata == {}


def test_a_prefix_is_removed_only_if_every_name_has_it() -> None:
    with open_tensors(FILES / "partly_wrapped.pth") as tensors:
        assert list(tensors) == ["module.a", "b"]
        assert "a" not in tensors
        with pytest.raises(KeyError):
            tensors["a"]


@pytest.mark.parametrize("file", ["dtypes.pth", "dtypes.legacy.pth", "dtypes.safetensors"])
def test_a_tensor_is_read_on_demand(file: str, tmp_path: Path) -> None:
    wanted = expected(file)["int64"]
    content = (FILES / file).read_bytes()
    start = content.index(wanted.tobytes())
    (tmp_path / file).write_bytes(content[:start] + bytes(len(wanted.tobytes())) + content[start + wanted.nbytes :])
    with open_tensors(tmp_path / file) as tensors:
        assert_same(tensors["float64"], expected(file)["float64"])
        if file != "dtypes.pth":
            np.testing.assert_array_equal(tensors["int64"], np.zeros_like(wanted))
            return
        with pytest.raises(InputError, match=r"dtypes.pth has a tensor int64 that does not match its checksum"):
            tensors["int64"]


def test_a_storages_checksum_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected("views")
    with open_tensors(FILES / "views.pth") as tensors:
        assert_same(tensors["column"], wanted["column"])
        monkeypatch.setattr(torch_file.zlib, "crc32", None)
        assert_same(tensors["whole"], wanted["whole"])


@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_checksums_are_computed_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_CHUNK", chunk)
    for name, wanted in expected("views").items():
        with open_tensors(FILES / "views.pth") as tensors:
            assert_same(tensors[name], wanted)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    values = random.normal(size=(3, 5, 2)) * 40
    made = {f"layer.{name}": (values > 0 if name == "bool" else np.abs(values)).astype(DTYPES[name]) for name in DTYPES}
    made["layer.bfloat16"].reshape(-1)[:3] = np.nan, -np.inf, -0.0
    return made | {
        "single": np.array(-3),
        "none": np.zeros((4, 0), np.float16),
        "turned": random.normal(size=(4, 6)).astype(np.float32).T,
        "Ünïcode 🙂": np.ones((1, 1, 1), np.int8),
        "long" * 100: np.arange(300, dtype=np.int16),
    }


def specs_of(tensors: dict[str, np.ndarray]) -> dict[str, Spec]:
    return {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}


def test_written_files_can_be_read(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a.pth", specs_of(tensors), tensors.__getitem__)
    write_safetensors(tmp_path / "a.safetensors", specs_of(tensors), tensors.__getitem__, {"é": "1\n2", "empty": ""})
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        with open_tensors(path) as read:
            assert set(read) == set(tensors)
            assert read.metadata == ({} if path.suffix == ".pth" else {"é": "1\n2", "empty": ""})
            for name, array in tensors.items():
                assert_same(read[name], array)
            if path.suffix == ".pth":
                assert list(read) == list(tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "a.safetensors"}


def test_the_library_reads_the_safetensors(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, specs_of(tensors), tensors.__getitem__, {})
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        assert_same(read[name], array)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for entry in header.values():
        # torch's reader requires this alignment.
        kinds = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
        assert entry["data_offsets"][0] % kinds.get(entry["dtype"], 1) == 0


class Stub(pickle.Unpickler):
    """Replaces torch's unpickler: returns names as text, and calls as a name with its arguments."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if name.endswith("Storage"):
            return f"{module}.{name}"
        return lambda *arguments: (f"{module}.{name}", *arguments)

    def persistent_load(self, identity: Any) -> Any:
        return identity


def test_pythons_unpickler_reads_the_torch_file(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a.pth", specs_of(tensors), tensors.__getitem__)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            with archive.open(entry) as file:
                assert file._orig_compress_start % 64 == 0  # type: ignore[attr-defined]
    assert content["archive/version"] == b"3\n"
    assert content["archive/byteorder"] == b"little"
    state = Stub(io.BytesIO(content["archive/data.pkl"])).load()
    assert type(state) is OrderedDict
    assert list(state) == list(tensors)
    for name, (function, storage, offset, size, stride, requires_grad, hooks) in state.items():
        array = tensors[name]
        assert function == "torch._utils._rebuild_tensor_v2"
        assert (offset, size, requires_grad, hooks) == (0, array.shape, False, OrderedDict())
        assert (
            stride == tuple(side // array.itemsize for side in np.zeros(array.shape, array.dtype).strides) or 0 in size
        )
        kind, storage_type, key, location, numel = storage
        assert (kind, location, numel) == ("storage", "cpu", array.size)
        classes = {"float32": "Float", "bfloat16": "BFloat16", "int8": "Char", "bool": "Bool", "int64": "Long"}
        if array.dtype.name in classes:
            assert storage_type == f"torch.{classes[array.dtype.name]}Storage"
        assert content[f"archive/data/{key}"] == array.tobytes()


@pytest.mark.torch
def test_torch_reads_the_torch_file(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    import torch

    write_torch_file(tmp_path / "a.pth", specs_of(tensors), tensors.__getitem__)
    for mmap in (False, True):
        state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert type(state) is OrderedDict
        assert list(state) == list(tensors)
        for name, array in tensors.items():
            tensor = state[name]
            assert tensor.is_contiguous()
            assert not tensor.requires_grad
            bits = (
                tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if array.dtype.name == "bfloat16" else tensor
            )
            assert_same(np.asarray(bits), array)


@pytest.mark.torch
def test_torch_reads_the_safetensors(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    import safetensors.torch as library
    import torch

    write_safetensors(tmp_path / "a.safetensors", specs_of(tensors), tensors.__getitem__, {"format": "pt"})
    state = library.load_file(tmp_path / "a.safetensors")
    for name, array in tensors.items():
        tensor = state[name]
        bits = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if array.dtype.name == "bfloat16" else tensor
        assert_same(np.asarray(bits), array)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failed_write_keeps_the_old_file(suffix: str, tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    given = iter(tensors.values())

    def read(name: str) -> np.ndarray:
        assert (tmp_path / f"a{suffix}.new").exists()
        if name == "turned":
            raise InputError("gone")
        return tensors[name]

    def another(name: str) -> np.ndarray:
        return next(given).astype(np.complex64)

    def interrupted(name: str) -> np.ndarray:
        raise KeyboardInterrupt

    for function, error, match in (
        (read, InputError, "gone"),
        (another, InputError, r"tensor .* is complex64\[.*; expected "),
        (interrupted, KeyboardInterrupt, None),
    ):
        with pytest.raises(error, match=match):
            write(path, specs_of(tensors), function)
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]
    write(path, specs_of(tensors), tensors.__getitem__)
    assert list(tmp_path.iterdir()) == [path]


def write(path: Path, specs: dict[str, Spec], read: Any) -> None:
    if path.suffix == ".pth":
        write_torch_file(path, specs, read)
    else:
        write_safetensors(path, specs, read, {})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unsupported_tensors_and_paths_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for dtype in (np.complex64, np.uint32, ml_dtypes.float8_e4m3fn, object):
        with pytest.raises(InputError, match=rf"a{suffix}: tensor x has type .*; expected one of float64, "):
            write(path, {"x": Spec(np.dtype(dtype), (2,))}, np.zeros)
    with pytest.raises(InputError, match=rf"none/a{suffix} can't be written \(No such file or directory\)"):
        write(tmp_path / "none" / f"a{suffix}", {}, np.zeros)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of 96 MB whose tensors have at most 8 MB."""
    folder = tmp_path_factory.mktemp("large")
    specs = {f"layer{number:02}": Spec(np.dtype(np.float32), (2, 1 << 20)) for number in range(12)}
    write_torch_file(folder / "large.pth", specs, lambda name: np.ones((2, 1 << 20), np.float32))
    write_safetensors(folder / "large.safetensors", specs, lambda name: np.ones((2, 1 << 20), np.float32), {})
    yield folder
    for path in folder.iterdir():
        path.unlink()


CONVERT = """
import resource, sys, types
for name in ("jaxnets", "jaxnets.weights"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [name.replace(".", "/")]
from pathlib import Path
from jaxnets.weights.tensor_file import open_tensors
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.torch_file import write_torch_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source, target = map(Path, sys.argv[1:])
with open_tensors(source) as tensors:
    if target.suffix == ".pth":
        write_torch_file(target, tensors.specs, tensors.__getitem__)
    else:
        write_safetensors(target, tensors.specs, tensors.__getitem__, {})
assert "jax" not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_conversion_takes_little_memory(large: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CONVERT, large / "large.pth", large / "again.safetensors"]
    taken = int(subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout)
    # Two tensors of 8 MiB at a time, the previous and the next one.
    assert taken < 30 << 10
    command[3:] = [large / "again.safetensors", large / "again.pth"]
    taken = int(subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout)
    assert taken < 30 << 10
    assert (large / "again.pth").read_bytes() == (large / "large.pth").read_bytes()
