"""Pickles as torch writes them, read without running them.

Opcodes are interpreted one by one, and build nothing but plain containers and descriptions of tensors. A pickle names
functions that are to be called; here a name is only a name, known or refused.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import IO, Any

from jaxnets.errors import InputError

# Far beyond what a checkpoint of a network takes: ResNet-152's pickle has some 40,000 opcodes in 100 kB.
_MOST_BYTES = 32 << 20
_MOST_OPCODES = 1_000_000
_MOST_AXES = 32
# A tensor may have more numbers than its storage, where strides are 0; so many at most.
_MOST_EXPANDED = 1 << 22

# torch's storage classes -> NumPy's names of their types (bfloat16 is of ml_dtypes).
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


@dataclass(frozen=True)
class StorageRef:
    """A storage by its key: `numel` numbers of type `dtype`; or of those `view_numel` from `view_offset` on."""

    key: str
    dtype: str
    numel: int
    view_offset: int = 0
    view_numel: int | None = None


@dataclass(frozen=True)
class TensorRef:
    """A tensor: where it lies in its storage, counted in numbers."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _OrderedDict(dict[Any, Any]):
    """What an OrderedDict becomes; the one thing that may be given attributes, which are dropped."""


class _Mark:
    pass


class BoundedReader:
    """Reads from a file no more than is there, nor than a pickle may have; raises ValueError beyond."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = min(size, _MOST_BYTES)

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 1 << 16) + 1)
        self._take(len(line))
        return line

    def _take(self, count: int) -> None:
        if not 0 <= count <= self._left:
            raise ValueError(f"{count} bytes are announced where {self._left} are left")
        self._left -= count


def read_pickle(file: BoundedReader) -> Any:
    """What the next pickle of the file describes; raises InputError, or ValueError and its like for broken ones."""
    machine = _Machine()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if number > _MOST_OPCODES:
            raise InputError(f"its pickle has more than {_MOST_OPCODES:,} opcodes")
        if opcode.name == "STOP":
            return machine.result()
        machine.take(opcode.name, argument)
    raise ValueError("the pickle has no end")


class _Machine:
    """The stack and the memo of the pickle machine."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise ValueError(f"the pickle ends with {len(self._stack)} values")
        return self._pop()

    def take(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self._stack.append(_Mark)
        elif action := _ACTIONS.get(name):
            action(self, argument)
        else:
            raise InputError(f"its pickle uses {name}, which no tensor or plain container needs")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _Mark:
            raise ValueError("a mark where a value should be")
        return value

    def _pop_to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _Mark:
            place -= 1
            if place < 0:
                raise ValueError("no mark on the stack")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise ValueError(f"a {kind.__name__} is expected on the stack, not {_shown(top)}")
        return top

    def _put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        _fill(self._top(dict), values)

    def _name(self, module: Any, name: Any) -> None:
        found = _Name(str(module), str(name))
        storage = found.module == "torch" and found.name.removesuffix("Storage") != found.name
        if storage and found.name not in STORAGE_DTYPES:
            raise InputError(f"its pickle asks for {_shown(found)}, a type of storage that is not supported")
        if not storage and found not in _CALLS:
            raise InputError(f"its pickle asks for {_shown(found)}, which is neither a tensor nor a plain container")
        self._stack.append(found)

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        call = _CALLS.get(function) if isinstance(function, _Name) else None
        if call is None or not isinstance(arguments, tuple):
            raise InputError(f"its pickle calls {_shown(function)}, which can't be")
        self._stack.append(call(*arguments))

    def _build(self) -> None:
        state = self._pop()
        # A state dict's _metadata; torch's modules write nothing else in this way.
        if not isinstance(self._stack[-1], _OrderedDict) or not isinstance(state, dict):
            raise InputError(f"its pickle sets the state of {_shown(self._stack[-1])}, which only an OrderedDict has")

    def _storage(self) -> None:
        given = self._pop()
        if not (isinstance(given, tuple) and len(given) in (5, 6) and given[0] == "storage"):
            raise InputError(f"its pickle refers to {_shown(given)}, which is no storage")
        kind, key, _, numel = given[1:5]
        if not (isinstance(kind, _Name) and kind.name in STORAGE_DTYPES and isinstance(key, str) and _is_count(numel)):
            raise ValueError("a storage is described in a way that torch does not use")
        view = given[5] if len(given) == 6 else None
        offset, view_numel = 0, None
        if view is not None:
            _, offset, view_numel = view
            if not (_is_count(offset) and _is_count(view_numel) and offset + view_numel <= numel):
                raise ValueError(f"a view of the storage {key!a} lies beyond its {numel} numbers")
        self._stack.append(StorageRef(key, STORAGE_DTYPES[kind.name], numel, offset, view_numel))


def _fill(target: dict[Any, Any], values: list[Any]) -> None:
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Others, such as tuples of tuples, may take for ever to hash.
        if not isinstance(key, str | int | float | bool | None):
            raise InputError(f"its pickle has {_shown(key)} for a key, where a name or a number is expected")
        target[key] = value


def _dict(values: list[Any]) -> dict[Any, Any]:
    filled: dict[Any, Any] = {}
    _fill(filled, values)
    return filled


def _ordered_dict(items: Any = ()) -> _OrderedDict:
    values = _OrderedDict()
    for key, value in items:
        _fill(values, [key, value])
    return values


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    # What may follow: requires_grad, backward hooks, metadata.
    if not isinstance(storage, StorageRef):
        raise ValueError(f"a tensor is made of {_shown(storage)}, not of a storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_AXES):
        raise InputError(f"it has a tensor of shape {_shown(shape)} with strides {_shown(strides)}")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise InputError(f"it has a tensor of shape {shape}, strides {strides} and offset {_shown(offset)}")
    there = storage.numel if storage.view_numel is None else storage.view_numel
    count = prod(shape)
    end = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1 if count else 0
    if end > there:
        raise InputError(f"a tensor of shape {shape} reaches to {end} in a storage of {there} numbers")
    if count > max(there, _MOST_EXPANDED):
        raise InputError(f"a tensor of shape {shape} repeats a storage of {there} numbers too often")
    return TensorRef(storage, offset + storage.view_offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> TensorRef:
    if not isinstance(tensor, TensorRef):
        raise ValueError(f"a parameter is made of {_shown(tensor)}, not of a tensor")
    return tensor


def _size(values: Any) -> tuple[Any, ...]:
    return tuple(values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _shown(value: Any) -> str:
    """A value in an error's line; containers by their type alone, as they may hold themselves."""
    if isinstance(value, _Name | str | int | float | bytes | None):
        return ascii(str(value))[1:-1][:100]
    return f"a {type(value).__name__.lstrip('_')}"


_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _ordered_dict,
    _Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    _Name("torch", "Size"): _size,
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "POP": lambda machine, _: machine._stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine._pop_to_mark().clear(),
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._pop_to_mark())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._stack.append(machine._pop_to_mark()),
    "DICT": lambda machine, _: machine._stack.append(_dict(machine._pop_to_mark())),
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "PUT": lambda machine, index: machine._put(index),
    "BINPUT": lambda machine, index: machine._put(index),
    "LONG_BINPUT": lambda machine, index: machine._put(index),
    "MEMOIZE": lambda machine, _: machine._put(None),
    "GET": lambda machine, index: machine._get(index),
    "BINGET": lambda machine, index: machine._get(index),
    "LONG_BINGET": lambda machine, index: machine._get(index),
    "GLOBAL": lambda machine, names: machine._name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._stack_name(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._storage(),
}
