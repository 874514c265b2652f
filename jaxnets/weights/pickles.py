"""Reads the pickles in torch's files without running or importing anything."""

import pickletools
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from jaxnets.errors import InputError

# Far larger than in any checkpoint. Each opcode takes bounded memory, so these limits bound the total.
MAX_BYTES = 16 << 20
MAX_OPCODES = 1_000_000
MAX_NESTING = 100
MAX_DIMENSIONS = 64  # of an array
_MAX_ARGUMENTS = 7
_MAX_INTEGER_BYTES = 64
_MAX_LINE = 1000

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
}
_CALLABLE = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_DTYPES = re.compile(r"torch\.(b?float|u?int|complex|q?u?int)\d+(x\d)?|torch\.(bool|half|float|double|short|int|long)")


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
    """A reference to an allowed global name, such as torch.Size."""

    full: str


@dataclass(frozen=True)
class Pickle:
    """The value, made of plain containers, scalars, `Tensor`s and `Name`s, and the dtype and numel of each storage."""

    value: Any
    storages: dict[str, tuple[str, int]]


class _Ordered(dict):
    """An OrderedDict. Unlike a dict it may have attributes, which are ignored."""


def read_pickle(file: BinaryIO, available: int) -> Pickle:
    """Reads one pickle from the file's position, which is followed by `available` bytes.

    Raises InputError, without the file's name, for anything but tensors and plain containers.
    """
    machine = _Machine(file, min(available, MAX_BYTES))
    value = machine.run()
    _check_nesting(value)
    return Pickle(value, machine.storages)


def shown(text: str) -> str:
    """Formats text for a message of one line: shortens it and escapes unprintable characters."""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def kind_of(value: Any) -> str:
    """The type of a value from a pickle, for messages."""
    return "dict" if isinstance(value, dict) else type(value).__name__


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"has an invalid pickle: it {reason}")


class _Machine:
    def __init__(self, file: BinaryIO, available: int) -> None:
        self.storages: dict[str, tuple[str, int]] = {}
        self._file, self._left = file, available
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self._take(1)
            if code == b".":
                value = self._pop()
                if self._stack or self._marks:
                    _refuse("ends before it is complete")
                return value
            action = _ACTIONS.get(code)
            if action is None:
                self._refuse_opcode(code)
            action(self)
        _refuse(f"takes more than {MAX_OPCODES} steps")

    def _take(self, count: int) -> bytes:
        if count > self._left:
            _refuse(f"is truncated, or longer than {MAX_BYTES} bytes")
        data = self._file.read(count)
        if len(data) != count:
            _refuse("is truncated")
        self._left -= count
        return data

    def _line(self) -> str:
        line = self._file.readline(min(self._left, _MAX_LINE))
        if not line.endswith(b"\n"):
            _refuse("has a line without an end")
        self._left -= len(line)
        return _text(line[:-1])

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _refuse_opcode(self, code: bytes) -> NoReturn:
        names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
        name = names.get(code.decode("latin-1"), f"{code[0]:#04x}")
        _refuse(f"has the opcode {name}; expected only tensors and plain containers")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            _refuse("pops from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            _refuse("pops a missing mark")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    # The opcodes, in the order of `_ACTIONS`.

    def proto(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            _refuse(f"has protocol {version}; expected 2 to 5")

    def frame(self) -> None:
        if self._number(8) > self._left:
            _refuse("is truncated within a frame")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def unsigned(self, width: int) -> None:
        self.push(self._number(width))

    def signed(self) -> None:
        self.push(int.from_bytes(self._take(4), "little", signed=True))

    def integer(self, width: int) -> None:
        length = self._number(width)
        if length > _MAX_INTEGER_BYTES:
            _refuse(f"has an integer of {length} bytes")
        self.push(int.from_bytes(self._take(length), "little", signed=True))

    def real(self) -> None:
        self.push(struct.unpack(">d", self._take(8))[0])

    def text(self, width: int) -> None:
        self.push(_text(self._take(self._number(width))))

    def raw_bytes(self, width: int) -> None:
        self.push(self._take(self._number(width)))

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self._pop() for _ in range(count)][::-1]))

    def tuple_since_mark(self) -> None:
        self.push(tuple(self._since_mark()))

    def append(self) -> None:
        self._extend([self._pop()])

    def appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            _refuse(f"appends to a {kind_of(target)}")
        target.extend(items)

    def setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def setitems(self) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) not in (dict, _Ordered):
            _refuse(f"sets an item of a {kind_of(target)}")
        if len(items) % 2:
            _refuse("sets a key without a value")
        _fill(target, zip(items[::2], items[1::2], strict=True))

    def put(self, width: int) -> None:
        self._memo[self._number(width)] = self._top()

    def put_line(self) -> None:
        self._memo[self._index()] = self._top()

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def get(self, width: int) -> None:
        self._recall(self._number(width))

    def get_line(self) -> None:
        self._recall(self._index())

    def _index(self) -> int:
        line = self._line()
        if not re.fullmatch(r"[0-9]{1,9}", line):
            _refuse(f"has {shown(line)} in place of a number")
        return int(line)

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            _refuse(f"reads value {index} of its memo, which is missing")
        self.push(self._memo[index])

    def global_line(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            _refuse("refers to a name that is not text")
        self._global(module, name)

    def instantiate(self) -> None:
        self.global_line()
        self._refuse_opcode(b"i")

    def _global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        allowed = full in _CALLABLE or (module == "torch" and name in STORAGES) or _DTYPES.fullmatch(full)
        if not allowed:
            _refuse(f"refers to {shown(full)}, which is not a tensor or a plain container")
        self.push(Name(full))

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Name or function.full not in _CALLABLE or type(arguments) is not tuple:
            what = shown(function.full) if type(function) is Name else f"a {kind_of(function)}"
            _refuse(f"calls {what}, which is not an allowed function")
        if len(arguments) > _MAX_ARGUMENTS:
            _refuse(f"calls {function.full} with {len(arguments)} arguments")
        # Two opcodes can copy a long list, so copies are counted.
        self._copied += sum(len(argument) for argument in arguments if isinstance(argument, list))
        if self._copied > MAX_OPCODES:
            _refuse(f"copies more than {MAX_OPCODES} values")
        self.push(_call(function.full, arguments))

    def build(self) -> None:
        self._pop()
        target = self._top()
        if type(target) is not _Ordered:
            what = target.full if type(target) is Name else f"a {kind_of(target)}"
            _refuse(f"sets the state of {what}; expected an OrderedDict")

    def persistent(self) -> None:
        storage = _storage(self._pop())
        if self.storages.setdefault(storage.key, (storage.dtype, storage.numel)) != (storage.dtype, storage.numel):
            _refuse(f"describes storage {shown(storage.key)} twice, with different types or sizes")
        self.push(storage)


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.proto,
    b"\x95": _Machine.frame,
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b")": lambda machine: machine.push(()),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push({}),
    b"(": _Machine.mark,
    b"K": lambda machine: machine.unsigned(1),
    b"M": lambda machine: machine.unsigned(2),
    b"J": _Machine.signed,
    b"\x8a": lambda machine: machine.integer(1),
    b"\x8b": lambda machine: machine.integer(4),
    b"G": _Machine.real,
    b"\x8c": lambda machine: machine.text(1),
    b"X": lambda machine: machine.text(4),
    b"\x8d": lambda machine: machine.text(8),
    # Python 2 strings: the names in the oldest checkpoints.
    b"U": lambda machine: machine.text(1),
    b"T": lambda machine: machine.text(4),
    b"C": lambda machine: machine.raw_bytes(1),
    b"B": lambda machine: machine.raw_bytes(4),
    b"\x8e": lambda machine: machine.raw_bytes(8),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"t": _Machine.tuple_since_mark,
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"s": _Machine.setitem,
    b"u": _Machine.setitems,
    b"q": lambda machine: machine.put(1),
    b"r": lambda machine: machine.put(4),
    b"p": _Machine.put_line,
    b"\x94": _Machine.memoize,
    b"h": lambda machine: machine.get(1),
    b"j": lambda machine: machine.get(4),
    b"g": _Machine.get_line,
    b"c": _Machine.global_line,
    b"\x93": _Machine.global_stack,
    b"i": _Machine.instantiate,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("has text that is not UTF-8")


def _fill(target: dict, pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        # Hashing nested tuples can take forever, and many long integers can share a hash.
        if key is not None and type(key) not in (str, bool) and not (type(key) is int and abs(key) < 1 << 32):
            _refuse(f"has a key of type {kind_of(key)}; expected text or an integer of 32 bits")
        if key in target:
            _refuse(f"has the key {shown(str(key))} twice")
        target[key] = value


def _call(function: str, arguments: tuple) -> Any:
    if function == "collections.OrderedDict":
        ordered = _Ordered()
        # Python 2 passes the items as an argument.
        pairs = arguments[0] if len(arguments) == 1 else []
        if len(arguments) > 1 or type(pairs) is not list or not all(_is_pair(pair) for pair in pairs):
            _refuse("makes an OrderedDict from items that are not pairs")
        _fill(ordered, pairs)
        return ordered
    if function == "torch.Size":
        if len(arguments) != 1 or type(arguments[0]) not in (list, tuple):
            _refuse("has a torch.Size that is not of integers")
        if len(arguments[0]) > MAX_DIMENSIONS:
            _refuse(f"has a torch.Size of {len(arguments[0])} dimensions")
        if not _integers(size := tuple(arguments[0])):
            _refuse("has a torch.Size that is not of integers")
        return size
    if function == "torch._utils._rebuild_parameter":
        if len(arguments) != 3 or type(arguments[0]) is not Tensor:
            _refuse("has a parameter without a tensor")
        return arguments[0]
    if len(arguments) not in ((4,) if function == "torch._utils._rebuild_tensor" else (6, 7)):
        _refuse(f"describes a tensor by {len(arguments)} values")
    storage, offset, size, stride = arguments[:4]
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        _refuse("has a tensor without a storage, a size or a stride")
    if max(len(size), len(stride)) > MAX_DIMENSIONS:
        _refuse(f"has a tensor of {max(len(size), len(stride))} dimensions")
    if not _integers((offset, *size, *stride)):
        _refuse("has a tensor whose size, stride or offset is not of integers")
    if len(arguments) == 7 and arguments[6]:
        _refuse("has a negated or conjugated tensor; save it with .resolve_neg() or .resolve_conj()")
    return Tensor(storage, offset, size, stride)


def _storage(identity: Any) -> Storage:
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        _refuse("has a persistent ID that is not a storage")
    _, storage_class, key, _, numel = identity[:5]
    module, _, name = (storage_class.full if type(storage_class) is Name else "").rpartition(".")
    if module != "torch" or name not in STORAGES or type(key) is not str or type(numel) is not int:
        _refuse("refers to a storage without its type, key or size")
    start, length = 0, numel
    view = identity[5] if len(identity) == 6 else None
    if view is not None:
        if type(view) is not tuple or len(view) != 3 or not _integers(view[1:]):
            _refuse(f"has a view of storage {shown(key)} without its bounds")
        _, start, length = view
    return Storage(key, STORAGES[name][0], numel, start, length)


def _is_pair(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) == 2


def _integers(values: tuple) -> bool:
    return all(type(value) is int for value in values)


def _check_nesting(value: Any) -> None:
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
                _refuse(f"nests containers more than {MAX_NESTING} deep")
        elif id(node) not in heights:
            heights[id(node)] = 0
            todo.append((node, True))
            todo.extend((child, False) for child in children)
        elif heights[id(node)] == 0:
            _refuse("has a container that contains itself")
