"""Reads the pickles in torch's files without running or importing anything."""

import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from jaxnets.weights.pickle_calls import call, make, storage
from jaxnets.weights.pickle_values import (
    Inert,
    Name,
    Namespace,
    Ordered,
    Pickle,
    check_nesting,
    kind_of,
    refuse,
    set_items,
    shown,
)

# Far larger than in any checkpoint. Each opcode takes bounded memory, so these limits bound the total.
MAX_BYTES = 16 << 20
MAX_OPCODES = 1_000_000
_MAX_INTEGER_BYTES = 64
_MAX_LINE = 1000


def read_pickle(file: BinaryIO, available: int) -> Pickle:
    """Reads one pickle from the file's position, which is followed by `available` bytes.

    Tensors and plain containers are read. Other objects are read past: their classes and functions are neither
    imported nor called, and `Inert` values stand in their place. Raises InputError, without the file's name, for a
    damaged pickle.
    """
    machine = _Machine(file, min(available, MAX_BYTES))
    value = machine.run()
    check_nesting(value)
    return Pickle(value, machine.storages)


class _Machine:
    def __init__(self, file: BinaryIO, available: int) -> None:
        self.storages: dict[str, tuple[str, int]] = {}
        self._file, self._left = file, available
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = self._name_length = 0

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self._take(1)
            if code == b".":
                value = self._pop()
                if self._stack or self._marks:
                    refuse("ends before it is complete")
                return value
            action = _ACTIONS.get(code)
            if action is None:
                self._refuse_opcode(code)
            action(self)
        refuse(f"takes more than {MAX_OPCODES} steps")

    def _take(self, count: int) -> bytes:
        if count > self._left:
            refuse(f"is truncated, or longer than {MAX_BYTES} bytes")
        data = self._file.read(count)
        if len(data) != count:
            refuse("is truncated")
        self._left -= count
        return data

    def _line(self) -> str:
        line = self._file.readline(min(self._left, _MAX_LINE))
        if not line.endswith(b"\n"):
            refuse("has a line without an end")
        self._left -= len(line)
        return _text(line[:-1])

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _refuse_opcode(self, code: bytes) -> NoReturn:
        names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
        name = names.get(code.decode("latin-1"), f"{code[0]:#04x}")
        refuse(f"has the opcode {name}, which torch does not write")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            refuse("pops from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            refuse("pops a missing mark")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    # The opcodes, in the order of `_ACTIONS`.

    def proto(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            refuse(f"has protocol {version}; expected 2 to 5")

    def frame(self) -> None:
        if self._number(8) > self._left:
            refuse("is truncated within a frame")

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
            refuse(f"has an integer of {length} bytes")
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
        if isinstance(target, Inert):
            return
        if type(target) is not list:
            refuse(f"appends to a {kind_of(target)}")
        target.extend(items)

    def inert_set(self) -> None:
        self.push(Inert("set"))

    def add_items(self) -> None:
        self._since_mark()
        if not isinstance(target := self._top(), Inert):
            refuse(f"adds items to a {kind_of(target)}")

    def frozen_set(self) -> None:
        self._since_mark()
        self.push(Inert("frozenset"))

    def setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def setitems(self) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            return
        if type(target) not in (dict, Ordered):
            refuse(f"sets an item of a {kind_of(target)}")
        if len(items) % 2:
            refuse("sets a key without a value")
        set_items(target, zip(items[::2], items[1::2], strict=True))

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
            refuse(f"has {shown(line)} in place of a number")
        return int(line)

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            refuse(f"reads value {index} of its memo, which is missing")
        self.push(self._memo[index])

    def global_line(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            refuse("refers to a name that is not text")
        self._global(module, name)

    def _global(self, module: str, name: str) -> None:
        # Two opcodes can join long texts of the memo again and again, so all names together are limited.
        self._name_length += len(module) + len(name)
        if len(module) + len(name) > _MAX_LINE or self._name_length > MAX_BYTES:
            refuse(f"refers to names of {self._name_length} characters")
        self.push(Name(f"{module}.{name}"))

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            refuse(f"calls {kind_of(function)} with a {kind_of(arguments)}; expected a tuple of arguments")
        # Two opcodes can copy a long list, so copies are counted.
        self._copied += sum(len(argument) for argument in arguments[:8] if isinstance(argument, list))
        if self._copied > MAX_OPCODES:
            refuse(f"copies more than {MAX_OPCODES} values")
        self.push(call(function, arguments) if type(function) is Name else make(function))

    def new_object(self) -> None:
        self._pop()
        self.push(make(self._pop()))

    def new_object_with_keywords(self) -> None:
        self._pop()
        self.new_object()

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Namespace) and isinstance(state, dict):
            target.values = state
        elif not isinstance(target, Inert | Ordered):
            refuse(f"sets the state of {target.full if type(target) is Name else f'a {kind_of(target)}'}")

    def persistent(self) -> None:
        described = storage(self._pop())
        kind = described.dtype, described.numel
        if self.storages.setdefault(described.key, kind) != kind:
            refuse(f"describes storage {shown(described.key)} twice, with different types or sizes")
        self.push(described)


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
    b"\x96": lambda machine: machine.raw_bytes(8),  # a bytearray
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"t": _Machine.tuple_since_mark,
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"\x8f": _Machine.inert_set,
    b"\x90": _Machine.add_items,
    b"\x91": _Machine.frozen_set,
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
    b"\x81": _Machine.new_object,
    b"\x92": _Machine.new_object_with_keywords,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        refuse("has text that is not UTF-8")
