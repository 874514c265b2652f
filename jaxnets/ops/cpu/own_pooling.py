"""Max-pooling in small windows and its gradient by generated code, as `jaxnets.ops.pool` defines them.

A vector of channels is compared under all taps of a window. The gradient of an input pixel is the sum over the windows
in which it is the maximum.
"""

import itertools
import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

import numpy as np

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import Call, computes_by_eight
from jaxnets.ops.cpu.machine_code import Writer

_VECTOR = 8
_LARGEST_WINDOW = 3
# A tap that no window has.
_NO_TAP = 255

_NUMBERS = (
    *("image", "output", "winners", "outside", "rows", "height", "width", "channels", "output_height"),
    *("output_width", "stride", "above", "before"),
)


def suits(channels: int, window: int) -> bool:
    """Whether this can pool windows of `window` pixels a side, and is faster."""
    return channels % _VECTOR == 0 and window <= _LARGEST_WINDOW and computes_by_eight() and uses("own_pooling")


def max_pool(
    images: Sequence[int], outputs: Sequence[int], window: int, stride: int, low: Sequence[int], *, winners: bool
) -> Call:
    """Operand images [N, H, W, C]; results outputs [N, H', W', C] and, with `winners`, their taps.

    `low` is the padding before rows and columns.
    """
    outside = np.full(images[3], -np.inf, np.float32)
    fixed = (math.prod(outputs[:2]), *images[1:], *outputs[1:3], stride, *low)
    arguments = (c_int64 * len(_NUMBERS))(0, 0, 0, outside.ctypes.data, *fixed)
    function = _function(window, winners)

    # The default argument keeps `outside` alive as long as the call.
    def step(addresses: Sequence[int], outside: np.ndarray = outside) -> None:
        arguments[: len(addresses)] = list(addresses)
        machine_code.run(function, arguments)

    return Call([step])


def max_pool_gradient(
    images: Sequence[int], outputs: Sequence[int], window: int, stride: int, low: Sequence[int]
) -> Call:
    """Operands outputs' gradient and winners; result the images' gradient."""
    fixed = (math.prod(images[:2]), *images[1:], *outputs[1:3], stride, *low)
    arguments = (c_int64 * len(_NUMBERS))(0, 0, 0, 0, *fixed)
    function = _gradient_function(window, -(-window // stride))

    def step(addresses: Sequence[int]) -> None:
        arguments[1], arguments[2], arguments[0] = addresses
        machine_code.run(function, arguments)

    return Call([step])


@cache
def _function(window: int, winners: bool) -> int:
    name = f"max_pool_{window}{'_winners' * winners}"
    return machine_code.compile(name, lambda module: _write(Writer(module, name, _NUMBERS, _VECTOR), window, winners))


@cache
def _gradient_function(window: int, reach: int) -> int:
    name = f"max_pool_gradient_{window}_{reach}"
    return machine_code.compile(
        name, lambda module: _write_gradient(Writer(module, name, _NUMBERS, _VECTOR), window, reach)
    )


def _write(writer: Writer, window: int, winners: bool) -> None:
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    image, output, outside = (writer.array(arguments[name]) for name in ("image", "output", "outside"))
    begin, end = writer.share(arguments["rows"])
    with writer.loop(begin, end) as row, writer.loop(constant(0), arguments["output_width"]) as x:
        count, y = (operation(row, arguments["output_height"]) for operation in (code.sdiv, code.srem))
        pixels = []
        for i, j in itertools.product(range(window), repeat=2):
            line = code.sub(code.add(code.mul(y, arguments["stride"]), constant(i)), arguments["above"])
            column = code.sub(code.add(code.mul(x, arguments["stride"]), constant(j)), arguments["before"])
            place = _place(writer, count, line, column, "height", "width")
            inside = _inside(writer, line, column, "height", "width")
            pixels.append(code.select(inside, code.gep(image, [place]), outside))
        place = _place(writer, count, y, x, "output_height", "output_width")
        result = code.gep(output, [place])
        taps = code.gep(writer.bytes(arguments["winners"]), [place]) if winners else None
        with writer.loop(constant(0), arguments["channels"], _VECTOR) as channel:
            best, winner = writer.load(pixels[0], channel), writer.broadcast_integer(constant(0))
            for tap, pixel in enumerate(pixels[1:], 1):
                values = writer.load(pixel, channel)
                # NaN wins, and the last NaN is the winner.
                better = code.or_(code.fcmp_ordered(">", values, best), code.fcmp_unordered("uno", values, values))
                best = code.select(better, values, best)
                winner = code.select(better, writer.broadcast_integer(constant(tap)), winner)
            writer.store(best, result, channel)
            if winners:
                writer.store_bytes(winner, taps, channel)
    code.ret_void()


def _write_gradient(writer: Writer, window: int, reach: int) -> None:
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    image, gradient, winners = (
        writer.array(arguments["image"]),
        writer.array(arguments["output"]),
        writer.bytes(arguments["winners"]),
    )
    begin, end = writer.share(arguments["rows"])
    with writer.loop(begin, end) as row, writer.loop(constant(0), arguments["width"]) as x:
        count, y = (operation(row, arguments["height"]) for operation in (code.sdiv, code.srem))
        line, column = code.add(y, arguments["above"]), code.add(x, arguments["before"])
        met = []
        for back in itertools.product(range(reach), repeat=2):
            i, j = (
                code.sub(code.sdiv(place, arguments["stride"]), constant(step))
                for place, step in zip((line, column), back, strict=True)
            )
            tap_row, tap_column = (
                code.sub(place, code.mul(index, arguments["stride"])) for place, index in ((line, i), (column, j))
            )
            inside = _inside(writer, i, j, "output_height", "output_width")
            for place in (tap_row, tap_column):
                inside = code.and_(inside, code.icmp_signed("<", place, constant(window)))
            tap = code.select(inside, code.add(code.mul(tap_row, constant(window)), tap_column), constant(_NO_TAP))
            place = code.select(inside, _place(writer, count, i, j, "output_height", "output_width"), constant(0))
            met.append((writer.broadcast_integer(tap), code.gep(gradient, [place]), code.gep(winners, [place])))
        result = code.gep(image, [_place(writer, count, y, x, "height", "width")])
        with writer.loop(constant(0), arguments["channels"], _VECTOR) as channel:
            total = writer.zeros()
            for tap, pulled, taps in met:
                won = code.icmp_signed("==", writer.load_bytes(taps, channel), tap)
                total = code.fadd(total, code.select(won, writer.load(pulled, channel), writer.zeros()))
            writer.store(total, result, channel)
    code.ret_void()


def _inside(writer: Writer, line: Any, column: Any, height: str, width: str) -> Any:
    code, arguments = writer.code, writer.arguments
    return code.and_(
        code.icmp_unsigned("<", line, arguments[height]),
        code.icmp_unsigned("<", column, arguments[width]),
    )


def _place(writer: Writer, count: Any, line: Any, column: Any, height: str, width: str) -> Any:
    """The index of a pixel's first channel in [N, height, width, C]."""
    code, arguments = writer.code, writer.arguments
    row = code.add(code.mul(count, arguments[height]), line)
    return code.mul(code.add(code.mul(row, arguments[width]), column), arguments["channels"])
