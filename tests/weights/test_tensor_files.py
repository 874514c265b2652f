"""Files that torch and safetensors wrote, read exactly, and files for them to read."""

import collections
import io
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxnets.errors import InputError
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensor_file import open_tensors
from jaxnets.weights.torch_file import Spec, write_torch_file

FOLDER = Path(__file__).parents[1] / "references" / "torch_files"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".npz")


@cache
def expected() -> dict[str, dict[str, np.ndarray]]:
    """For each file of torch (all its forms hold the same) its tensors."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FOLDER / "expected.npz") as stored:
        for place, array in stored.items():
            name, dtype, key = place.split("/")
            found.setdefault(name, {})[key] = array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array
    return found


def assert_same(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
    assert actual.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("file", FILES)
def test_tensors_are_read_exactly(file: str) -> None:
    wanted = expected()[file.split(".")[0]]
    with open_tensors(FOLDER / file) as tensors:
        assert set(tensors) == set(wanted)
        for name, array in wanted.items():
            assert tensors.specs[name] == Spec(array.dtype, array.shape)
            read = tensors[name]
            assert_same(read, array)
            assert read.flags.c_contiguous
            assert read.flags.writeable
        assert tensors.metadata == ({"about": "types"} if file == "dtypes.safetensors" else {})


def test_the_files_are_what_they_are_meant_to_be() -> None:
    assert len(FILES) == 15
    for file in FILES:
        start = (FOLDER / file).read_bytes()[:16]
        kind = "zip" if start[:2] == b"PK" else "stream" if start[:2] == b"\x80\x02" else "safetensors"
        assert kind in file or "protocol4" in file
    layouts = {name: array.strides for name, array in expected()["layouts"].items()}
    assert len(layouts) == 8
    names = pickle_names((FOLDER / "module.zip.pth").read_bytes())
    assert "bn.num_batches_tracked" in names
    assert any(name.startswith("module.") for name in pickle_names((FOLDER / "checkpoint.zip.pth").read_bytes()))


def pickle_names(archive: bytes) -> set[Any]:
    import pickletools

    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        name = next(name for name in file.namelist() if name.endswith("data.pkl"))
        return {argument for _, argument, _ in pickletools.genops(file.read(name)) if isinstance(argument, str)}


def all_types() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    dtypes = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8)
    tensors = {f"layer.{np.dtype(d).name}": random.integers(0, 99, (3, 4, 2)).astype(d) for d in (*dtypes, np.bool_)}
    return {
        **tensors,
        "transposed": random.standard_normal((5, 3)).T,
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "ünïcode.weight": np.ones(1, np.float32),
    }


def specs_of(tensors: dict[str, np.ndarray]) -> dict[str, Spec]:
    return {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}


def write(path: Path, specs: dict[str, Spec], read: Any) -> None:
    if path.suffix == ".pth":
        write_torch_file(path, specs, read)
    else:
        write_safetensors(path, specs, read, {"a": "ü"})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read_back(suffix: str, tmp_path: Path) -> None:
    tensors, path = all_types(), tmp_path / f"mine{suffix}"
    write(path, specs_of(tensors), tensors.__getitem__)
    if suffix == ".safetensors":
        assert set(safetensors.numpy.load_file(path)) == set(tensors)
        for name, array in safetensors.numpy.load_file(path).items():
            assert_same(array, np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape))
    with open_tensors(path) as file:
        assert set(file) == set(tensors)
        for name, array in tensors.items():
            assert_same(file[name], np.ascontiguousarray(array).reshape(array.shape))
        assert file.metadata == ({} if suffix == ".pth" else {"a": "ü"})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


class Stub(pickle.Unpickler):
    """Calls torch's functions as pickle would, with stand-ins that tell what they were given."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return (lambda *given: (name, *given)) if name.startswith("_") else f"{module}.{name}"

    def persistent_load(self, pid: Any) -> Any:
        return pid


def test_the_torch_file_is_laid_out_as_torch_does(tmp_path: Path) -> None:
    tensors, path = (
        {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(5, np.int64)},
        tmp_path / "x.pth",
    )
    write_torch_file(path, specs_of(tensors), tensors.__getitem__)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.read("x/version") == b"3\n"
        assert file.read("x/byteorder") == b"little"
        for entry in file.infolist():
            extra = int.from_bytes(data[entry.header_offset + 28 : entry.header_offset + 30], "little")
            assert (entry.header_offset + 30 + len(entry.filename) + extra) % 64 == 0
        state = Stub(io.BytesIO(file.read("x/data.pkl"))).load()
        assert file.read("x/data/0") == tensors["a.weight"].tobytes()
    assert isinstance(state, collections.OrderedDict)
    hooks: Any = collections.OrderedDict()
    assert state["a.weight"] == (
        "_rebuild_tensor_v2",
        ("storage", "torch.FloatStorage", "0", "cpu", 6),
        *(0, (2, 3), (3, 1), False, hooks),
    )
    assert state["b"][1:5] == (("storage", "torch.LongStorage", "1", "cpu", 1), 0, (), ())


def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch")
    tensors, path = all_types(), tmp_path / "mine.pth"
    write_torch_file(path, specs_of(tensors), tensors.__getitem__)
    state = torch.load(path, weights_only=True)
    assert list(state) == list(tensors)
    for name, array in tensors.items():
        tensor = state[name]
        assert tensor.is_contiguous()
        bits = tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()
        wanted = np.ascontiguousarray(array).reshape(array.shape)
        assert_same(bits, wanted.view(np.uint16) if wanted.dtype == ml_dtypes.bfloat16 else wanted)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_can_not_be_finished_is_not_begun(suffix: str, tmp_path: Path) -> None:
    def read(name: str) -> np.ndarray:
        raise InputError(f"{name} is gone")

    path = tmp_path / f"mine{suffix}"
    with pytest.raises(InputError, match="a is gone"):
        write(path, specs_of({"a": np.zeros(2)}), read)
    with pytest.raises(InputError, match="a is of type complex128"):
        write(path, specs_of({"a": np.zeros(2, complex)}), read)
    assert not list(tmp_path.iterdir())
