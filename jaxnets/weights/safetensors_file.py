"""The safetensors format: read by its library, written tensor by tensor, as the library holds copies of all."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxnets.errors import InputError
from jaxnets.weights.pickles import shown
from jaxnets.weights.tensors import DTYPES, Spec, check_writable, checked, fill, octets, replacing, shown_path, truths

# Far beyond any network's; as Python's objects a header takes many times its size.
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
    """An open file, of which each tensor is read when it is asked for. Errors leave the file's name out.

    The library judges the header. It would map the file into memory, all of which then counts as the process's, and
    which ends the process if somebody shortens the file meanwhile; so the bytes are read here.
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
        return truths(data.reshape(shape)) if dtype.name == "bool" else data.view(dtype).reshape(shape)


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes the tensors that `read` gives by name, with one in memory at a time. The file is whole, or not there.

    Raises InputError where it can't be written.
    """
    # As the library orders them: each begins at a multiple of its type's size, or torch can't read it.
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
            f"{shown_path(path)}: these names can't stand in a safetensors file; expected shorter ones, or fewer"
        )
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            file.write(octets(path, name, specs[name], read))


def _spec(name: str, tensor: Any) -> Spec:
    kinds, kind = {kind: ours for ours, kind in _NAMES.items()}, tensor.get_dtype()
    if kind not in kinds:
        raise InputError(f"has a tensor {shown(name)} that is of type {kind}; expected one of {', '.join(kinds)}")
    try:
        return checked(Spec(DTYPES[kinds[kind]], tuple(tensor.get_shape())))
    except InputError as error:
        raise InputError(f"has a tensor {shown(name)} that {error}") from None


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header, and where the bytes begin. Of two names that are the same the library would take the last."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise InputError(f"is no safetensors file: its header would take {length} bytes")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_once_each)
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError("is a damaged safetensors file (its header is not JSON)") from None
    if not isinstance(header, dict):
        raise InputError("is a damaged safetensors file (its header is not a JSON object)")
    return header, 8 + length


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InputError(f"is a damaged safetensors file (its header has {shown(twice)} twice)")
    return values
