"""The inner loops of antialiased resizing, which LLVM (package llvmlite) compiles for the processor.

Three functions, each for a number of pairs of taps: the weights of an axis, and the two passes. Weights are 16-bit
integers, a pair of which processors multiply with pixels and add in one instruction.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxnets.ops.cpu import machine_code

# Bytes of a row that the second pass computes at a time.
_CHUNK = 16
# Rows that the first pass computes at a time.
_ROWS = 4
# Bytes beyond the end of a row that the code may read or write.
SLACK = 8


class _Writer:
    """Writes one function of 64-bit integers, addresses and double-precision numbers."""

    def __init__(self, module: Any, name: str, integers: int, doubles: int = 0) -> None:
        from llvmlite import ir

        self.ir, self.i8, self.i16, self.i32, self.i64 = ir, *(ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.double, self._module = ir.DoubleType(), module
        kinds = [self.i64] * integers + [self.double] * doubles
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.arguments, self.code = function.args, ir.IRBuilder(function.append_basic_block())

    def number(self, value: int) -> Any:
        return self.ir.Constant(self.i64, value)

    @contextmanager
    def loop(self, begin: Any, end: Any, step: int = 1) -> Iterator[Any]:
        """A loop over integers from `begin` to before `end`."""
        code, before = self.code, self.code.block
        head, body, after = (code.function.append_basic_block() for _ in range(3))
        code.branch(head)
        code.position_at_end(head)
        counter = code.phi(self.i64)
        counter.add_incoming(begin, before)
        code.cbranch(code.icmp_signed("<", counter, end), body, after)
        code.position_at_end(body)
        yield counter
        counter.add_incoming(code.add(counter, self.number(step)), code.block)
        code.branch(head)
        code.position_at_end(after)

    def sum(self, *terms: Any) -> Any:
        total = terms[0]
        for term in terms[1:]:
            total = self.code.add(total, self.number(term) if isinstance(term, int) else term)
        return total

    def times(self, left: Any, right: int | Any) -> Any:
        return self.code.mul(left, self.number(right) if isinstance(right, int) else right)

    def smaller(self, left: Any, right: Any) -> Any:
        return self.code.select(self.code.icmp_signed("<", left, right), left, right)

    def larger(self, left: Any, right: Any) -> Any:
        return self.code.select(self.code.icmp_signed(">", left, right), left, right)

    def vector(self, kind: Any, count: int) -> Any:
        return self.ir.VectorType(kind, count)

    def load(self, kind: Any, address: Any) -> Any:
        return self.code.load(self.code.inttoptr(address, self.ir.PointerType(kind)), align=1)

    def store(self, value: Any, address: Any) -> None:
        self.code.store(value, self.code.inttoptr(address, self.ir.PointerType(value.type)), align=1)

    def shuffle(self, left: Any, right: Any, places: list[int]) -> Any:
        mask = self.ir.Constant(self.vector(self.i32, len(places)), places)
        return self.code.shuffle_vector(left, right, mask)

    def broadcast(self, value: Any, count: int) -> Any:
        empty = self.ir.Constant(self.vector(value.type, count), self.ir.Undefined)
        alone = self.code.insert_element(empty, value, self.ir.Constant(self.i32, 0))
        return self.shuffle(alone, empty, [0] * count)

    def multiply_pairs(self, values: Any, weights: Any) -> Any:
        """The sums of two products each: 16 unsigned bytes as 16-bit integers times a 32-bit pair of weights."""
        pairs = self.code.bitcast(self.broadcast(weights, 8), self.vector(self.i16, 16))
        wide = self.vector(self.i32, 16)
        # LLVM makes one instruction of it, where the processor has one.
        products = self.code.mul(self.code.zext(values, wide), self.code.sext(pairs, wide))
        first, second = (self.shuffle(products, products, list(range(begin, 16, 2))) for begin in range(2))
        return self.code.add(first, second)

    def shift(self, bits: Any) -> Any:
        return self.broadcast(self.code.trunc(bits, self.i32), 8)

    def rounded(self, sums: Any, shift: Any) -> Any:
        """Eight sums, which include a half, as bytes."""
        return self.code.trunc(self.code.lshr(sums, shift), self.vector(self.i8, 8))

    def half(self, bits: Any) -> Any:
        one = self.code.shl(self.number(1), self.code.sub(bits, self.number(1)))
        return self.broadcast(self.code.trunc(one, self.i32), 8)


def _write_weights(module: Any, name: str, pairs: int) -> None:
    """Writes starts [outputs] and weights [outputs, 2 pairs] of a triangle filter, as Pillow computes them."""
    write = _Writer(module, name, 4, 4)
    code = write.code
    starts, weights, inputs, outputs, first, scale, width, unit = write.arguments
    real = lambda value: write.ir.Constant(write.double, value)  # noqa: E731
    taps = 2 * pairs
    with write.loop(write.number(0), outputs) as output:
        place = code.fadd(code.sitofp(output, write.double), real(0.5))
        centre = code.fadd(first, code.fmul(place, scale))
        lowest = code.fptosi(code.fadd(code.fsub(centre, width), real(0.5)), write.i64)
        start = write.smaller(write.larger(lowest, write.number(0)), code.sub(inputs, write.number(taps)))
        write.store(code.trunc(start, write.i32), write.sum(starts, write.times(output, 4)))
        begin = code.fsub(code.fadd(code.sitofp(start, write.double), real(0.5)), centre)
        heights, total = [], real(0.0)
        for tap in range(taps):
            distance = code.fadd(begin, real(float(tap)))
            far = code.fsub(real(0.0), distance)
            distance = code.select(code.fcmp_ordered("<", distance, real(0.0)), far, distance)
            height = code.fsub(width, distance)
            height = code.select(code.fcmp_ordered("<", height, real(0.0)), real(0.0), height)
            total = code.fadd(total, height)
            heights.append(height)
        factor = code.fdiv(unit, total)
        row = write.sum(weights, write.times(output, 2 * taps))
        for tap, height in enumerate(heights):
            weight = code.fptosi(code.fadd(code.fmul(height, factor), real(0.5)), write.i64)
            weight = write.smaller(weight, write.number(0x7FFF))
            write.store(code.trunc(weight, write.i16), write.sum(row, 2 * tap))
    code.ret_void()


def _write_across(module: Any, name: str, pairs: int) -> None:
    """Shrinks rows: four rows at a time, one output pixel after the other."""
    write = _Writer(module, name, 10)
    code = write.code
    source, stride, rows, last, target, target_stride, outputs, starts, weights, bits = write.arguments
    eight, zeros = write.vector(write.i8, 8), write.ir.Constant(write.vector(write.i8, 8), [0] * 8)
    # The red, green and blue of two neighbouring pixels, in pairs.
    pixels = [0, 3, 1, 4, 2, 5, 8, 8]
    end = code.sub(rows, write.number(1))
    half, shift = write.half(bits), write.shift(bits)
    with write.loop(write.number(0), rows, _ROWS) as row:
        numbers = [write.smaller(write.sum(row, below), end) for below in range(_ROWS)]
        # The last row is a copy with bytes after its end.
        sources = [
            code.select(code.icmp_signed("==", number, end), last, write.sum(source, write.times(number, stride)))
            for number in numbers
        ]
        targets = [write.sum(target, write.times(number, target_stride)) for number in numbers]
        with write.loop(write.number(0), outputs) as output:
            start = code.sext(write.load(write.i32, write.sum(starts, write.times(output, 4))), write.i64)
            places = [write.sum(address, write.times(start, 3)) for address in sources]
            sums = [half] * (_ROWS // 2)
            for pair in range(pairs):
                weight = write.load(write.i32, write.sum(weights, write.times(output, 4 * pairs), 4 * pair))
                values = [
                    write.shuffle(write.load(eight, write.sum(place, 6 * pair)), zeros, pixels) for place in places
                ]
                for two in range(_ROWS // 2):
                    both = write.shuffle(values[2 * two], values[2 * two + 1], list(range(16)))
                    sums[two] = code.add(sums[two], write.multiply_pairs(both, weight))
            for number, address in enumerate(targets):
                found = write.rounded(sums[number // 2], shift)
                first = number % 2 * 4
                four = write.shuffle(found, found, list(range(first, first + 4)))
                write.store(four, write.sum(address, write.times(output, 3)))
    code.ret_void()


def _write_down(module: Any, name: str, pairs: int) -> None:
    """Shrinks columns: the bytes of a row in chunks, the last of which overlaps the one before it."""
    write = _Writer(module, name, 8)
    code = write.code
    source, stride, target, size, outputs, starts, weights, bits = write.arguments
    chunk = write.vector(write.i8, _CHUNK)
    half, shift = write.half(bits), write.shift(bits)
    with write.loop(write.number(0), outputs) as output:
        start = code.sext(write.load(write.i32, write.sum(starts, write.times(output, 4))), write.i64)
        first = write.sum(source, write.times(start, stride))
        with write.loop(write.number(0), size, _CHUNK) as counter:
            place = write.smaller(counter, code.sub(size, write.number(_CHUNK)))
            sums = [half] * 2
            for pair in range(pairs):
                weight = write.load(write.i32, write.sum(weights, write.times(output, 4 * pairs), 4 * pair))
                upper, lower = (
                    write.load(chunk, write.sum(first, place, write.times(stride, 2 * pair + row))) for row in range(2)
                )
                for part in range(2):
                    mixed = [place for byte in range(8 * part, 8 * part + 8) for place in (byte, _CHUNK + byte)]
                    values = write.shuffle(upper, lower, mixed)
                    sums[part] = code.add(sums[part], write.multiply_pairs(values, weight))
            for part in range(2):
                at = write.sum(target, write.times(output, size), place, 8 * part)
                write.store(write.rounded(sums[part], shift), at)
    code.ret_void()


def compiled(pairs: int) -> tuple[Callable[..., None], ...]:
    """The functions for weights, for rows and for columns, with a number of pairs of taps."""
    return tuple(
        _compiled(write, pairs, kinds)
        for write, kinds in (
            (_write_weights, [ctypes.c_int64] * 4 + [ctypes.c_double] * 4),
            (_write_across, [ctypes.c_int64] * 10),
            (_write_down, [ctypes.c_int64] * 8),
        )
    )


def _compiled(write: Callable[[Any, str, int], None], pairs: int, kinds: list[Any]) -> Callable[..., None]:
    name = f"{write.__name__.removeprefix('_write_')}_{pairs}"
    address = machine_code.compile(name, lambda module: write(module, name, pairs))
    return ctypes.CFUNCTYPE(None, *kinds)(address)
