"""Reads and writes torch's file formats, zip and the older stream, without torch and without running any code."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import STORAGES, Tensor, shown
from jaxnets.weights.pickles import MAX_BYTES, read_pickle
from jaxnets.weights.tensors import DTYPES, Spec, booleans, check_writable, checked, fill, replacing, tensor_bytes
from jaxnets.weights.zip_entries import EXTRA, LOCAL, Stored, locate, read_directory

_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_VERSION = 10
_ITEMSIZES = dict(STORAGES.values())
_CHUNK = 1 << 20
# Limits the total size of the tensors to this multiple of the file plus this many bytes, as views can repeat elements.
_MAX_GROWTH, _MAX_ADDED = 4, 64 << 20

_ZIP64_SIZE = 1 << 30  # larger entries have 64-bit sizes, which zipfile requires near 2 GiB
_ALIGNMENT = 64


class TorchFile:
    """A file of torch.save, whose tensors are read on demand. `value` is the content of its pickle.

    Errors do not include the file's name.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = os.fstat(file.fileno()).st_size
        self._checked: set[str] = set()
        self._storages: dict[str, Stored] = {}
        file.seek(0)
        if file.read(4) == b"PK\3\4":
            self.value = self._open_zip()
        else:
            file.seek(0)
            self.value = self._open_stream()

    def check(self, tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
        """Returns the specs. Raises InputError unless the storages contain the tensors, and the file the storages."""
        specs, total = {}, 0
        for name, tensor in tensors.items():
            try:
                specs[name] = self._check(tensor)
            except InputError as error:
                raise InputError(f"has a tensor {shown(name)} that {error}") from None
            total += specs[name].nbytes
            if total > _MAX_GROWTH * self._length + _MAX_ADDED:
                raise InputError(
                    f"has a tensor {shown(name)} that repeats elements; the tensors exceed the file's size"
                )
        return specs

    def read(self, tensor: Tensor) -> np.ndarray:
        """Reads a tensor that has passed `check` into a contiguous array."""
        dtype = DTYPES[tensor.storage.dtype]
        if 0 in tensor.size:
            return np.empty(tensor.size, dtype)
        start = (tensor.storage.start + tensor.offset) * dtype.itemsize
        data = np.empty(_span(tensor) * dtype.itemsize, np.uint8)
        self._read_into(data, tensor.storage.key, start)
        # The stride of a dimension of size 1 is arbitrary.
        pairs = zip(tensor.size, tensor.stride, strict=True)
        strides = [stride * dtype.itemsize if side > 1 else 0 for side, stride in pairs]
        view = np.ndarray(tensor.size, dtype, data.data, strides=strides)
        if dtype.name == "bool":
            return booleans(np.ascontiguousarray(view)).reshape(tensor.size)
        return np.ascontiguousarray(view).reshape(tensor.size)

    def _check(self, tensor: Tensor) -> Spec:
        storage = tensor.storage
        if storage.dtype not in DTYPES:
            raise InputError(f"has type {storage.dtype}; expected one of {', '.join(DTYPES)}")
        dtype = DTYPES[storage.dtype]
        stored = self._storages.get(storage.key)
        if stored is None:
            raise InputError(f"uses storage {shown(storage.key)}, which is missing from the file")
        if storage.numel * dtype.itemsize != stored.length:
            raise InputError(
                f"uses storage {shown(storage.key)} of {stored.length} bytes; expected {storage.numel} elements of "
                f"{dtype.name}"
            )
        if not 0 <= storage.start <= storage.start + storage.length <= storage.numel:
            raise InputError(f"uses a view that reaches beyond its storage of {storage.numel} elements")
        if len(tensor.size) != len(tensor.stride):
            raise InputError(f"has {len(tensor.size)} dimensions but {len(tensor.stride)} strides")
        if any(value < 0 for value in (tensor.offset, *tensor.size, *tensor.stride)):
            raise InputError("has a negative size, stride or offset")
        spec = checked(Spec(dtype, tensor.size))
        # torch allows an empty tensor at any offset.
        if 0 not in tensor.size and tensor.offset + _span(tensor) > storage.length:
            raise InputError(f"reaches beyond its storage of {storage.length} elements")
        return spec

    def _read_into(self, data: np.ndarray, key: str, start: int) -> None:
        """Fills `data` with a storage's bytes from `start`. The first read of a storage verifies its checksum."""
        stored = self._storages[key]
        stop = start + len(data)
        if stored.crc32 is None or key in self._checked:
            fill(self._file, data, stored.start + start)
            return
        crc32 = 0
        spare = np.empty(min(_CHUNK, stored.length), np.uint8)
        at = 0
        while at < stored.length:
            if start <= at < stop:
                piece = data[at - start :][:_CHUNK]
            else:
                piece = spare[: (start if at < start else stored.length) - at]
            fill(self._file, piece, stored.start + at)
            crc32 = zlib.crc32(piece.data, crc32)
            at += len(piece)
        if crc32 != stored.crc32:
            raise InputError("does not match its checksum; the file is damaged")
        self._checked.add(key)

    def _open_stream(self) -> Any:
        if self._pickle().value != _MAGIC_NUMBER:
            raise InputError("is a pickle, but not a file of torch.save")
        if self._pickle().value != _PROTOCOL:
            raise InputError(f"has an unknown version of torch's format; expected {_PROTOCOL}")
        system = self._pickle().value
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise InputError("was written on a big-endian machine; save it again on a little-endian one")
        pickled, keys = self._pickle(), self._pickle().value
        if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len({*keys}) < len(keys):
            raise InputError("is damaged: the keys of its storages are not a list of distinct names")
        at = self._file.tell()
        for key in keys:
            if key not in pickled.storages:
                raise InputError(f"is damaged: no tensor describes its storage {shown(key)}")
            dtype, numel = pickled.storages[key]
            self._file.seek(at)
            header = self._file.read(8)
            if len(header) < 8 or int.from_bytes(header, "little", signed=True) != numel or numel < 0:
                raise InputError(f"is damaged: its storage {shown(key)} does not have {numel} elements")
            self._storages[key] = Stored(at + 8, numel * _ITEMSIZES[dtype], None)
            at += 8 + self._storages[key].length
            if at > self._length:
                raise InputError(f"is truncated in its storage {shown(key)}; copy or download the file again")
        if at != self._length:
            raise InputError(f"is damaged: {self._length - at} bytes follow its last storage")
        return pickled.value

    def _pickle(self) -> Any:
        return read_pickle(self._file, self._length - self._file.tell())

    def _open_zip(self) -> Any:
        entries = read_directory(self._file, self._length)
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in entries):
            raise InputError(
                "is a TorchScript program; load it with torch.jit.load and save its state_dict() with torch.save"
            )
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"is a zip archive, but not of torch.save: it has {len(pickles)} entries */data.pkl")
        top = pickles[0].removesuffix("data.pkl")
        stored = locate(self._file, entries)
        order = self._entry(stored, f"{top}byteorder", 100, b"little")
        if order != b"little":
            raise InputError(f"has the byte order {order!r}; save it again on a little-endian machine")
        version = self._entry(stored, f"{top}version", 100).strip()
        if not version.isdigit() or not 1 <= int(version) <= _MAX_VERSION:
            raise InputError(f"has version {version!r} of torch's format; expected 1 to {_MAX_VERSION}")
        pickled = self._entry(stored, f"{top}data.pkl", MAX_BYTES)
        storages = f"{top}data/"
        self._storages = {name.removeprefix(storages): at for name, at in stored.items() if name.startswith(storages)}
        return read_pickle(io.BytesIO(pickled), len(pickled)).value

    def _entry(self, stored: Mapping[str, Stored], name: str, limit: int, default: bytes = b"") -> bytes:
        if name not in stored:
            return default
        start, length, crc32 = stored[name]
        if length > limit:
            raise InputError(f"has {length} bytes of {shown(name)}; expected at most {limit}")
        self._file.seek(start)
        data = self._file.read(length)
        if crc32 is not None and zlib.crc32(data) != crc32:
            raise InputError(f"has a {shown(name)} that does not match its checksum; the file is damaged")
        return data


def _span(tensor: Tensor) -> int:
    """The number of storage elements from the tensor's first to its last element."""
    if 0 in tensor.size:
        return 0
    return 1 + sum((side - 1) * stride for side, stride in zip(tensor.size, tensor.stride, strict=True))


def write_torch_file(path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> None:
    """Writes the tensors that `read` returns by name, as torch.save writes an OrderedDict.

    Keeps one tensor in memory at a time and replaces the file atomically. Raises InputError if it can't be written.
    """
    for name, spec in specs.items():
        check_writable(path, name, spec)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_entry(file, archive, "data.pkl", memoryview(_pickled(specs)))
        _write_entry(file, archive, "byteorder", memoryview(b"little"))
        for number, (name, spec) in enumerate(specs.items()):
            _write_entry(file, archive, f"data/{number}", tensor_bytes(path, name, spec, read))
        _write_entry(file, archive, "version", memoryview(b"3\n"))


def _write_entry(file: BinaryIO, archive: zipfile.ZipFile, name: str, data: memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = data.nbytes
    zip64 = data.nbytes >= _ZIP64_SIZE
    # Storages are aligned, as torch may map them into memory. zipfile adds 64-bit sizes to the extra field.
    before = file.tell() + LOCAL.size + len(info.filename) + EXTRA.size + (EXTRA.size + 16 if zip64 else 0)
    padding = -before % _ALIGNMENT
    info.extra = EXTRA.pack(0x4246, padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=zip64) as entry:
        entry.write(data)


def _pickled(specs: Mapping[str, Spec]) -> bytes:
    ordered = b"ccollections\nOrderedDict\n)R"
    classes = {dtype: name for name, (dtype, _) in STORAGES.items()}
    parts = [b"\x80\2", ordered, b"("]
    for number, (name, (dtype, shape)) in enumerate(specs.items()):
        numel = math.prod(shape)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n("]
        parts += [b"(", _text("storage"), f"ctorch\n{classes[dtype.name]}\n".encode(), _text(str(number)), _text("cpu")]
        parts += [_integer(numel), b"tQ", _integer(0)]
        parts += [b"(", *map(_integer, shape), b"t", b"(", *map(_integer, strides), b"t"]
        # requires_grad=False, and no backward hooks.
        parts += [b"\x89", ordered, b"tR"]
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x08" + value.to_bytes(8, "little")
