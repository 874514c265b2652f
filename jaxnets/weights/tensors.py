"""Types, shapes and bytes of tensors, and atomic writing, for all file formats."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import MAX_DIMENSIONS, shown

# The dtypes of both formats, by their NumPy names (bfloat16 is from ml_dtypes).
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}


class Spec(NamedTuple):
    """The dtype and shape of an array."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens PATH.new for writing. It replaces `path` at the end, or is removed if an exception occurs."""
    new = path.with_name(f"{path.name}.new")
    try:
        file = new.open("wb")
    except OSError as error:
        raise InputError(f"{shown_path(path)} can't be written ({error.strerror or error})") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{shown_path(path)} can't be written ({error.strerror or error})") from None
        raise


def check_writable(path: Path, name: str, spec: Spec) -> Spec:
    """Returns the spec. Raises InputError for a dtype that some format lacks, and for a name that is not Unicode."""
    # Dtypes of either byte order have the same name, so the dtypes are compared.
    if DTYPES.get(spec.dtype.name) != spec.dtype:
        raise InputError(
            f"{shown_path(path)}: tensor {shown(name)} has type {spec.dtype}; expected one of {', '.join(DTYPES)}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown_path(path)}: the name of tensor {shown(name)} is not Unicode; rename it") from None
    return spec


def tensor_bytes(path: Path, name: str, spec: Spec, read: Callable[[str], np.ndarray]) -> memoryview:
    """The bytes of the tensor that `read` returns. Raises InputError if it differs from its spec."""
    array = read(name)
    if (array.dtype, array.shape) != spec:
        raise InputError(
            f"{shown_path(path)}: tensor {shown(name)} is {array.dtype}{list(array.shape)}; "
            f"expected {spec.dtype}{list(spec.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def shown_path(path: Path) -> str:
    """Formats a path for a message of one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def fill(file: BinaryIO, data: np.ndarray, start: int) -> None:
    """Reads bytes from `start` into `data`. Raises InputError if the file is too short."""
    file.seek(start)
    if file.readinto(data.data) != len(data):  # type: ignore[attr-defined]
        raise InputError("is truncated; the file is damaged")


def checked(spec: Spec) -> Spec:
    """Returns the spec. Raises InputError if no NumPy array can have it."""
    # Checks the number of dimensions first, as the product of very many integers is slow.
    if (
        len(spec.shape) > MAX_DIMENSIONS
        or math.prod(max(1, side) for side in spec.shape) * spec.dtype.itemsize >= 1 << 62
    ):
        raise InputError(f"has {len(spec.shape)} dimensions and a size that no array can have")
    return spec


def booleans(array: np.ndarray) -> np.ndarray:
    """Converts bytes to booleans; any byte but 0 is True."""
    return np.asarray(array.view(np.uint8) != 0)
