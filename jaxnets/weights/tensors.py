"""What files of tensors have in common, whatever their format: types and shapes, bytes, and that they are whole."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxnets.errors import InputError
from jaxnets.weights.pickles import MAX_DIMENSIONS, shown

# The types that both formats have, by NumPy's names (bfloat16 is of ml_dtypes).
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}


class Spec(NamedTuple):
    """What an array is, without its values."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file NAME.new beside `path` that takes its place at the end, or is removed if anything fails."""
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
    """The spec. Raises InputError for a type that the formats do not share, and for a name that is not Unicode."""
    # Of the other byte order the name is the same.
    if DTYPES.get(spec.dtype.name) != spec.dtype:
        raise InputError(
            f"{shown_path(path)}: tensor {shown(name)} is of type {spec.dtype}; expected {', '.join(DTYPES)}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown_path(path)}: tensor {shown(name)} has a name that no file can have") from None
    return spec


def octets(path: Path, name: str, spec: Spec, read: Callable[[str], np.ndarray]) -> memoryview:
    """The bytes of the tensor that `read` gives. Raises InputError where it is not as its spec says."""
    array = read(name)
    if (array.dtype, array.shape) != spec:
        what = f"tensor {shown(name)} is {array.dtype}{list(array.shape)}"
        raise InputError(f"{shown_path(path)}: {what}, not as announced")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def shown_path(path: Path) -> str:
    """The path as it may stand in a message of one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def fill(file: BinaryIO, data: np.ndarray, start: int) -> None:
    """Reads bytes into `data`. Raises InputError where there are fewer."""
    file.seek(start)
    if file.readinto(data.data) != len(data):  # type: ignore[attr-defined]
        raise InputError("is cut off; the file is damaged")


def checked(spec: Spec) -> Spec:
    """The spec, which numpy can make an array of. Raises InputError otherwise."""
    # The dimensions first: the product of very many large sides would take hours.
    if (
        len(spec.shape) > MAX_DIMENSIONS
        or math.prod(max(1, side) for side in spec.shape) * spec.dtype.itemsize >= 1 << 62
    ):
        raise InputError(f"has {len(spec.shape)} dimensions and a size that no array can have")
    return spec


def truths(array: np.ndarray) -> np.ndarray:
    """Booleans of which each byte is 0 or 1, whatever it was."""
    return np.asarray(array.view(np.uint8) != 0)
