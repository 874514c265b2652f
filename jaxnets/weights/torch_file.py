"""torch's files, read and written without torch: the zip format, and the stream that was written before torch 1.6."""

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickles import STORAGE_DTYPES, BoundedReader, StorageRef, TensorRef, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_CHUNK = 1 << 20
_ALIGNMENT = 64
_ZIP_HEADER = 30


class Spec(NamedTuple):
    """A tensor's type and shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's type of that name, or bfloat16."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclass
class TorchFile:
    """What the file holds, with a `TensorRef` for each tensor, and where the storages lie in it."""

    contents: Any
    _file: BinaryIO
    _archive: zipfile.ZipFile | None
    _places: dict[str, Any]

    def read(self, tensor: TensorRef) -> np.ndarray:
        """A tensor as an array of its own; only its storage is read. Raises InputError where it is damaged."""
        storage, dtype = tensor.storage, dtype_of(tensor.storage.dtype)
        numbers = self._storage(storage).view(dtype)
        if tensor.strides == _contiguous(tensor.shape) and prod(tensor.shape) == len(numbers):
            return numbers.reshape(tensor.shape)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
        return np.array(view, order="C")

    def _storage(self, storage: StorageRef) -> np.ndarray:
        size = storage.numel * dtype_of(storage.dtype).itemsize
        data = np.empty(size, np.uint8)
        if self._archive is None:
            self._file.seek(self._places[storage.key])
            _fill(self._file, data)
            return data
        with self._archive.open(self._places[storage.key]) as entry:
            _fill(entry, data)
            entry.read(1)  # at its end the checksum is compared
        return data

    @classmethod
    def open(cls, file: BinaryIO, size: int) -> "TorchFile":
        """The file's contents; raises InputError, or ValueError and its like, for what is not as torch writes it."""
        start = file.read(2)
        file.seek(0)
        return cls._open_zip(file, size) if start == b"PK" else cls._open_stream(file, size)

    @classmethod
    def _open_zip(cls, file: BinaryIO, size: int) -> "TorchFile":
        archive = zipfile.ZipFile(file)
        entries = _entries(archive, size)
        found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise InputError(f"it is a zip archive with {len(found)} entries FOLDER/data.pkl; torch writes one")
        folder = found[0].removesuffix("data.pkl")
        if any(name == f"{folder}constants.pkl" or name.startswith(f"{folder}code/") for name in entries):
            raise InputError(
                "it is a TorchScript archive, which holds a program; save model.state_dict() with torch.save"
            )
        order = entries.get(f"{folder}byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise InputError("its numbers are not in little-endian order; save it on another machine")
        pickle = entries[found[0]]
        with archive.open(pickle) as stream:
            contents = read_pickle(BoundedReader(stream, pickle.file_size))
            while stream.read(_CHUNK):  # at its end the checksum is compared
                pass
        places = {
            name.removeprefix(f"{folder}data/"): entry
            for name, entry in entries.items()
            if name.startswith(f"{folder}data/")
        }
        return cls(contents, file, archive, places)

    @classmethod
    def _open_stream(cls, file: BinaryIO, size: int) -> "TorchFile":
        def next_pickle() -> Any:
            return read_pickle(BoundedReader(file, size - file.tell()))

        if next_pickle() != _MAGIC:
            raise InputError("it is a pickle that torch.save did not write; save the state dict with torch.save")
        if (protocol := next_pickle()) != _PROTOCOL:
            raise InputError(f"its format has the number {protocol}; expected {_PROTOCOL}")
        system = next_pickle()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise InputError("its numbers are not in little-endian order; save it on another machine")
        contents, keys = next_pickle(), next_pickle()
        storages = _storages_in(contents)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise InputError("its list of storages is damaged")
        places = {}
        place = file.tell()
        for key in keys:
            file.seek(place)
            numel = int.from_bytes(file.read(8), "little", signed=True)
            if key not in storages:
                raise InputError(f"its storage {key!r} is not one that a tensor uses")
            if numel != storages[key].numel:
                raise InputError(f"its storage {key!r} has {numel} numbers; its tensors expect {storages[key].numel}")
            places[key] = place + 8
            place += 8 + numel * dtype_of(storages[key].dtype).itemsize
            if place > size:
                raise InputError(f"it ends within the storage {key!r}, at {size:,} bytes; is it cut short?")
        if place != size:
            raise InputError(f"{size - place:,} bytes follow its last tensor")
        return cls(contents, file, None, places)

    def check(self, tensor: TensorRef) -> None:
        """Raises InputError where the file lacks the tensor's storage, or has one of another size."""
        storage = tensor.storage
        if storage.key not in self._places:
            raise InputError(f"its storage {storage.key!r} is missing")
        if self._archive is not None:
            size, there = storage.numel * dtype_of(storage.dtype).itemsize, self._places[storage.key].file_size
            if size != there:
                raise InputError(f"its storage {storage.key!r} has {there} bytes; {size} are expected")


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name; raises InputError unless each is stored as it is, in a place of its own within the file."""
    entries: dict[str, zipfile.ZipInfo] = {}
    end, before = 0, ""
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        name = entry.filename
        if name in entries:
            raise InputError(f"its entry {name!a} is there twice")
        if entry.flag_bits & 1:
            raise InputError(f"its entry {name!a} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise InputError(f"its entry {name!a} is compressed, as torch never does")
        if entry.header_offset < end:
            raise InputError(f"its entries {before!a} and {name!a} overlap")
        end, before = entry.header_offset + _ZIP_HEADER + len(name.encode()) + entry.file_size, name
        if end > size:
            raise InputError(f"its entry {name!a} reaches beyond the end of the file; is it cut short?")
        entries[name] = entry
    return entries


def _storages_in(contents: Any) -> dict[str, StorageRef]:
    """The storages of all tensors at any depth; each container is looked into once."""
    found: dict[str, StorageRef] = {}
    left, seen = [contents], set()
    while left:
        value = left.pop()
        if isinstance(value, TensorRef):
            known = found.setdefault(value.storage.key, value.storage)
            if (known.dtype, known.numel) != (value.storage.dtype, value.storage.numel):
                raise InputError(f"its storage {known.key!r} is described in two ways")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return found


def _fill(file: Any, data: np.ndarray) -> None:
    place, view = 0, data.data
    while place < len(data):
        chunk = file.read(min(_CHUNK, len(data) - place))
        if not chunk:
            raise InputError(f"it ends {len(data) - place:,} bytes too early; is it cut short?")
        view[place : place + len(chunk)] = chunk
        place += len(chunk)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def write_torch_file(path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> None:
    """Writes a state dict that `torch.load` reads, one tensor after the other; the whole file, or none."""
    new = path.with_name(f"{path.name}.new")
    folder = path.stem or "archive"
    try:
        with new.open("wb") as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            _store(archive, file, f"{folder}/data.pkl", [_state_dict_pickle(specs)])
            _store(archive, file, f"{folder}/byteorder", [b"little"])
            for number, (name, spec) in enumerate(specs.items()):
                array = np.ascontiguousarray(read(name), spec.dtype).reshape(-1)
                _store(archive, file, f"{folder}/data/{number}", [array.view(np.uint8).data] if array.size else [])
            _store(archive, file, f"{folder}/version", [b"3\n"])
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _store(archive: zipfile.ZipFile, file: BinaryIO, name: str, parts: list[Any]) -> None:
    entry = zipfile.ZipInfo(name)
    # Data begin at a multiple of 64 bytes, as torch's do, so that they can be mapped; "FB" is torch's own field.
    begin = file.tell() + _ZIP_HEADER + len(name.encode())
    padding = -(begin + 4) % _ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    size = sum(len(part) for part in parts)
    if size >= zipfile.ZIP64_LIMIT:
        entry.extra = b""  # zipfile writes a field of its own
    entry.file_size = size
    with archive.open(entry, "w") as target:
        for part in parts:
            target.write(part)


def _state_dict_pickle(specs: Mapping[str, Spec]) -> bytes:
    """An OrderedDict of contiguous tensors in protocol 2, as torch.save writes one."""
    names = {dtype_of(dtype): storage for storage, dtype in STORAGE_DTYPES.items()}
    out = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for number, (name, spec) in enumerate(specs.items()):
        if spec.dtype not in names:
            raise InputError(f"{name} is of type {spec.dtype}, which torch files are not written with here")
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += _text("storage") + f"ctorch\n{names[spec.dtype]}\n".encode() + _text(str(number)) + _text("cpu")
        out += _integer(prod(spec.shape)) + b"tQ" + _integer(0) + _integers(spec.shape)
        out += _integers(_contiguous(spec.shape)) + b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(out + b"u.")


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + number.to_bytes(4, "little", signed=True)
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


def _integers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
