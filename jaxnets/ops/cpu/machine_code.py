"""Small functions that LLVM (package llvmlite) compiles for the processor and OpenMP runs on all cores.

They do what no primitive of oneDNN does, on the threads of oneDNN's primitives.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64, c_uint, c_void_p
from functools import cache
from typing import Any

_INTEGER_BITS = 64


@cache
def _openmp() -> ctypes.CDLL:
    """GCC's OpenMP library, which oneDNN has loaded."""
    return ctypes.CDLL("libgomp.so.1")


@cache
def threads() -> int:
    """The number of threads that run a function."""
    count: int = _openmp().omp_get_max_threads()
    return count


class Writer:
    """Writes the code of one function, on 64-bit integers, addresses of float32, and vectors of float32.

    The function gets integers, and does its thread's share.
    """

    def __init__(self, module: Any, name: str, arguments: Sequence[str], width: int) -> None:
        """`arguments` are the names of the integers; vectors have `width` numbers."""
        from llvmlite import ir

        self._ir = ir
        self._integer = ir.IntType(_INTEGER_BITS)
        self._float = ir.FloatType()
        self._vector = ir.VectorType(self._float, width)
        self._short = ir.VectorType(ir.IntType(32), width)
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType(self._integer)]), name)
        self.code = ir.IRBuilder(function.append_basic_block())
        places = (self.code.gep(function.args[0], [self.constant(i)]) for i in range(len(arguments)))
        self.arguments = {name: self.code.load(place) for name, place in zip(arguments, places, strict=True)}

    def constant(self, value: int) -> Any:
        """An integer that is known now."""
        return self._ir.Constant(self._integer, value)

    def thread(self) -> Any:
        """The index of this thread, below `threads()`."""
        return self._from_openmp("omp_get_thread_num")

    def share(self, count: Any) -> tuple[Any, Any]:
        """The first index of this thread's share of `count` items, and the index after its last."""
        thread, threads = self.thread(), self._from_openmp("omp_get_num_threads")
        begin, end = (
            self.code.sdiv(self.code.mul(count, number), threads)
            for number in (thread, self.code.add(thread, self.constant(1)))
        )
        return begin, end

    def _from_openmp(self, name: str) -> Any:
        address = ctypes.cast(getattr(_openmp(), name), c_void_p).value
        kind = self._ir.PointerType(self._ir.FunctionType(self._ir.IntType(32), []))
        return self.code.sext(self.code.call(self.code.inttoptr(self.constant(address or 0), kind), []), self._integer)

    @contextmanager
    def loop(self, begin: Any, end: Any, step: int = 1, sums: list[Any] | None = None) -> Iterator[Any]:
        """A loop over integers from `begin` to before `end`, which carries the vectors `sums`.

        The body replaces the list's elements; after the loop the list has the last ones.
        """
        code, before = self.code, self.code.block
        sums = [] if sums is None else sums
        head, body, after = (code.function.append_basic_block() for _ in range(3))
        code.branch(head)
        code.position_at_end(head)
        number = code.phi(self._integer)
        number.add_incoming(begin, before)
        handed = [code.phi(self._vector) for _ in sums]
        for own, first in zip(handed, sums, strict=True):
            own.add_incoming(first, before)
        sums[:] = handed
        code.cbranch(code.icmp_signed("<", number, end), body, after)
        code.position_at_end(body)
        yield number
        number.add_incoming(code.add(number, self.constant(step)), code.block)
        for own, last in zip(handed, sums, strict=True):
            own.add_incoming(last, code.block)
        code.branch(head)
        code.position_at_end(after)
        sums[:] = handed

    def minimum(self, left: Any, right: Any) -> Any:
        """The smaller of two integers."""
        return self.code.select(self.code.icmp_signed("<", left, right), left, right)

    def maximum(self, left: Any, right: Any) -> Any:
        """The larger of two integers."""
        return self.code.select(self.code.icmp_signed("<", left, right), right, left)

    def zeros(self) -> Any:
        """A vector of zeros."""
        return self._ir.Constant(self._vector, [0.0] * self._vector.count)

    def broadcast(self, array: Any, index: Any) -> Any:
        """A vector whose elements are all one number of an array."""
        ir, undefined = self._ir, self._ir.Constant(self._vector, self._ir.Undefined)
        places = ir.VectorType(ir.IntType(32), self._vector.count)
        one = self.code.load(self.code.gep(array, [index]))
        alone = self.code.insert_element(undefined, one, ir.Constant(ir.IntType(32), 0))
        return self.code.shuffle_vector(alone, undefined, ir.Constant(places, [0] * self._vector.count))

    def broadcast_integer(self, value: Any) -> Any:
        """A vector whose elements are all one integer of at most 32 bits, as those of `load_bytes`."""
        ir, kind = self._ir, self._short
        undefined = ir.Constant(kind, ir.Undefined)
        alone = self.code.insert_element(
            undefined, self.code.trunc(value, kind.element), ir.Constant(ir.IntType(32), 0)
        )
        return self.code.shuffle_vector(alone, undefined, ir.Constant(kind, [0] * kind.count))

    def shuffle(self, value: Any, places: Sequence[int]) -> Any:
        """A vector of the elements of another one at these indices."""
        kind = self._ir.VectorType(self._ir.IntType(32), len(places))
        return self.code.shuffle_vector(value, value, self._ir.Constant(kind, list(places)))

    def multiply_add(self, left: Any, right: Any, addend: Any) -> Any:
        """left * right + addend, rounded once."""
        name = f"llvm.fma.v{self._vector.count}f32"
        kind = self._ir.FunctionType(self._vector, [self._vector] * 3)
        known = self.code.module.globals.get(name) or self._ir.Function(self.code.module, kind, name)
        return self.code.call(known, [left, right, addend])

    def array(self, address: Any) -> Any:
        """The float32 array at an integer address."""
        return self.code.inttoptr(address, self._ir.PointerType(self._float))

    def bytes(self, address: Any) -> Any:
        """The array of bytes at an integer address."""
        return self.code.inttoptr(address, self._ir.PointerType(self._ir.IntType(8)))

    def load_bytes(self, array: Any, index: Any) -> Any:
        """The vector of integers that begins at an index of an array of bytes."""
        found = self.code.load(self._place_of_bytes(array, index))
        found.align = 1
        return self.code.zext(found, self._short)

    def store_bytes(self, value: Any, array: Any, index: Any) -> None:
        """Writes a vector of integers at an index of an array of bytes."""
        place = self._place_of_bytes(array, index)
        self.code.store(self.code.trunc(value, place.type.pointee), place).align = 1

    def load(self, array: Any, index: Any) -> Any:
        """The vector that begins at an index of an array."""
        found = self.code.load(self._place(array, index))
        found.align = 4
        return found

    def store(self, value: Any, array: Any, index: Any) -> None:
        """Writes a vector at an index of an array."""
        self.code.store(value, self._place(array, index)).align = 4

    def _place_of_bytes(self, array: Any, index: Any) -> Any:
        kind = self._ir.VectorType(self._ir.IntType(8), self._vector.count)
        return self.code.bitcast(self.code.gep(array, [index]), self._ir.PointerType(kind))

    def _place(self, array: Any, index: Any) -> Any:
        return self.code.bitcast(self.code.gep(array, [index]), self._ir.PointerType(self._vector))


_engines: list[Any] = []  # they own the code


def compile(name: str, write: Callable[[Any], None]) -> int:
    """The address of the function `name` that `write` adds to a module of LLVM.

    LLVM's own passes are left out: such code is written as it is to run.
    """
    from llvmlite import ir

    module = ir.Module()
    write(module)
    return compile_text(name, str(module))


def compile_text(name: str, text: str) -> int:
    """The address of the function `name` of a module in LLVM's language."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    parsed = binding.parse_assembly(text)
    parsed.triple = binding.get_process_triple()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=2
    )
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    address: int = engine.get_function_address(name)
    return address


def run(function: int, arguments: "ctypes.Array[c_int64]") -> None:
    """Runs the function on all cores."""
    _openmp().GOMP_parallel(c_void_p(function), ctypes.byref(arguments), c_uint(threads()), c_uint(0))
