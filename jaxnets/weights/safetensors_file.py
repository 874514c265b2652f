"""Reads and writes safetensors files tensor by tensor. The library's writer would copy all tensors into memory."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import shown
from jaxnets.weights.tensors import (
    DTYPES,
    Spec,
    booleans,
    check_writable,
    checked,
    fill,
    replacing,
    shown_path,
    tensor_bytes,
)

# Far larger than the header of any network. Parsing a header takes many times its size in memory.
MAX_HEADER = 4 << 20
_METADATA = "__metadata__"

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class SafetensorsFile:
    """An open safetensors file, whose tensors are read on demand. Errors do not include the file's name.

    The library only validates the header. Its memory map would count as memory of the process, and would crash it if
    the file were truncated meanwhile.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        header, self._start = _read_header(file)
        try:
            with safe_open(path, framework="numpy") as opened:
                self.metadata: dict[str, str] = dict(opened.metadata() or {})
                names = [name for name in header if name != _METADATA]
                self.specs = {name: _spec(name, opened.get_slice(name)) for name in names}
        except SafetensorError as error:
            raise InputError(f"is a damaged safetensors file ({shown(str(error))})") from None
        self._starts = {name: header[name]["data_offsets"][0] for name in names}

    def read(self, name: str) -> np.ndarray:
        dtype, shape = spec = self.specs[name]
        data = np.empty(spec.nbytes, np.uint8)
        fill(self._file, data, self._start + self._starts[name])
        return booleans(data.reshape(shape)) if dtype.name == "bool" else data.view(dtype).reshape(shape)


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes the tensors that `read` returns by name.

    Keeps one tensor in memory at a time and replaces the file atomically. Raises InputError if it can't be written.
    """
    # The library's order. It aligns each tensor to the size of its dtype, as torch requires.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name in names:
        dtype, shape = check_writable(path, name, specs[name])
        start, end = end, end + specs[name].nbytes
        header[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if _METADATA in specs or len(encoded) > MAX_HEADER:
        raise InputError(
            f"{shown_path(path)}: a tensor is named {_METADATA}, or the header would exceed {MAX_HEADER} bytes; use "
            "other or shorter names"
        )
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(tensor_bytes(path, name, specs[name], read))


def _spec(name: str, tensor: Any) -> Spec:
    numpy_names, dtype = {theirs: ours for ours, theirs in _NAMES.items()}, tensor.get_dtype()
    if dtype not in numpy_names:
        raise InputError(f"has a tensor {shown(name)} that has type {dtype}; expected one of {', '.join(numpy_names)}")
    try:
        return checked(Spec(DTYPES[numpy_names[dtype]], tuple(tensor.get_shape())))
    except InputError as error:
        raise InputError(f"has a tensor {shown(name)} that {error}") from None


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Returns the header and the offset of the data. Refuses duplicate names, which the library would accept."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise InputError(f"is not a safetensors file: its header has {length} bytes; expected at most {MAX_HEADER}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError("is a damaged safetensors file (its header is not JSON)") from None
    if not isinstance(header, dict):
        raise InputError("is a damaged safetensors file (its header is not a JSON object)")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        duplicate = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InputError(f"is a damaged safetensors file (its header has {shown(duplicate)} twice)")
    return values
