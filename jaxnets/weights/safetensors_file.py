"""Safetensors: read by their library, written one tensor at a time, as the library holds copies of all."""

import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxnets.errors import InputError
from jaxnets.weights.torch_file import Spec

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class SafetensorsFile:
    """The tensors of a file and its metadata. Raises InputError for what the library refuses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise InputError(f"as safetensors it is damaged ({error})") from None
        for name, (kind, _) in found.items():
            if kind not in _DTYPES:
                raise InputError(f"tensor {name!a} is of type {kind}, which is not supported")
        self.specs = {name: Spec(_DTYPES[kind], shape) for name, (kind, shape) in found.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor as an array of its own."""
        # Opened anew, so that not all of the file, which is mapped, comes into memory with time.
        with safe_open(self._path, framework="numpy") as file:
            return np.array(file.get_tensor(name), order="C", copy=None)


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes the tensors one after the other, and what is said about them; the whole file, or none."""
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    # As the library orders them, large numbers first, so that each is aligned.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    for name in names:
        dtype, shape = specs[name]
        if dtype not in kinds:
            raise InputError(f"{name} is of type {dtype}, which safetensors are not written with here")
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                array = np.ascontiguousarray(read(name), specs[name].dtype).reshape(-1)
                file.write(array.view(np.uint8).data if array.size else b"")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
