"""The values of a pickle in torch's files: tensors, plain containers, and descriptions of all other values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxnets.errors import InputError

MAX_NESTING = 100
MAX_DIMENSIONS = 64  # of an array

# torch's storage classes: the dtype of the elements, and the bytes per element.
STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexDoubleStorage": ("complex128", 16),
    "ComplexFloatStorage": ("complex64", 8),
    "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
    "UntypedStorage": ("bytes", 1),
}


@dataclass(frozen=True)
class Storage:
    """The elements [start, start + length) of the storage `key`, which has `numel` elements."""

    key: str
    dtype: str
    numel: int
    start: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as described by a pickle. Only the types of the fields are checked."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A reference to a global name, such as torch.Size. Nothing is imported."""

    full: str


@dataclass(eq=False)
class Inert:
    """A value that is not built. `what` describes it, such as "numpy.ndarray" or "sparse tensor"."""

    what: str


@dataclass(eq=False)
class Namespace(Inert):
    """An argparse.Namespace, as training scripts save their arguments. It is not built; `values` are its attributes."""

    values: dict[Any, Any]


class Ordered(dict):
    """An OrderedDict. Unlike a dict it may have attributes, which are ignored."""


@dataclass(frozen=True)
class Pickle:
    """The value of a pickle, and the dtype and numel of each storage."""

    value: Any
    storages: dict[str, tuple[str, int]]


def shown(text: str) -> str:
    """Formats text for a message of one line: shortens it and escapes unprintable characters."""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def kind_of(value: Any) -> str:
    """The type of a value from a pickle, for messages."""
    if isinstance(value, Inert):
        return shown(value.what)
    if isinstance(value, Name):
        return shown(value.full)
    return "dict" if isinstance(value, dict) else type(value).__name__


def refuse(reason: str) -> NoReturn:
    """Raises InputError for a pickle that is damaged or has an unexpected form."""
    raise InputError(f"has an invalid pickle: it {reason}")


def set_items(target: dict, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Sets items of a dict from a pickle. Keys other than text and small integers become inert values."""
    for key, value in pairs:
        if isinstance(key, dict | list):
            refuse(f"has a key of type {kind_of(key)}; expected text or a number")
        # Hashing nested tuples can take forever, and many long integers can share a hash.
        if key is not None and type(key) not in (str, bool) and not (type(key) is int and abs(key) < 1 << 32):
            key = Inert(kind_of(key))
        if key in target:
            refuse(f"has the key {shown(str(key))} twice")
        target[key] = value


def check_nesting(value: Any) -> None:
    """Refuses values that are nested too deeply. Visits shared containers once."""
    heights: dict[int, int] = {}  # 0 while a container is being visited
    todo = [(value, False)]
    while todo:
        node, leave = todo.pop()
        if not isinstance(node, dict | list | tuple):
            continue
        children = node.values() if isinstance(node, dict) else node
        if leave:
            heights[id(node)] = 1 + max((heights.get(id(child), 0) for child in children), default=0)
            if heights[id(node)] > MAX_NESTING:
                refuse(f"nests containers more than {MAX_NESTING} deep")
        elif id(node) not in heights:
            heights[id(node)] = 0
            todo.append((node, True))
            todo.extend((child, False) for child in children)
        elif heights[id(node)] == 0:
            refuse("has a container that contains itself")
