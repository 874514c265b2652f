"""Max-pooling in small windows and its gradient by code of our own, as `pool.py` defines them.

A vector of channels is compared under all taps of a window; the gradient of an input pixel is the sum of those of the
outputs that it won, among the windows that reach it.
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
from jaxnets.ops.cpu.library import Call, has_avx2_alone
from jaxnets.ops.cpu.machine_code import Writer

_VECTOR = 8
_LARGEST_WINDOW = 3
# No window has that tap.
_NO_TAP = 255

_NUMBERS = (
    *("image", "output", "winners", "outside", "rows", "height", "width", "channels", "output_height"),
    *("output_width", "stride", "above", "before"),
)


def suits(channels: int, window: int) -> bool:
    """Whether windows of so many pixels a side can be pooled so, and are faster so.

    With vectors of 8 numbers they are: [8, 28, 28, 256] in windows of 3 of stride 1 takes 0.9 against 2.5 ms by oneDNN,
    and its gradient 1.0 against 6.9 (two Zen 3 cores).
    """
    return channels % _VECTOR == 0 and window <= _LARGEST_WINDOW and has_avx2_alone() and uses("own_pooling")


def max_pool(
    images: Sequence[int], outputs: Sequence[int], window: int, stride: int, low: Sequence[int], *, winners: bool
) -> Call:
    """Operand images [N, H, W, C]; results outputs [N, H', W', C] and, if they are asked for, the winners' taps.

    `low` is the padding before rows and columns.
    """
    outside = np.full(images[3], -np.inf, np.float32)
    fixed = (math.prod(outputs[:2]), *images[1:], *outputs[1:3], stride, *low)
    arguments = (c_int64 * len(_NUMBERS))(0, 0, 0, outside.ctypes.data, *fixed)
    function = _function(window, winners)

    # Its memory has to live as long as the call.
    def step(addresses: Sequence[int], outside: np.ndarray = outside) -> None:
        arguments[: len(addresses)] = list(addresses)
        machine_code.run(function, arguments)

    return Call([step])


def max_pool_gradient(
    images: Sequence[int], outputs: Sequence[int], window: int, stride: int, low: Sequence[int]
) -> Call:
    """Operands the outputs' gradient and the winners; result the images' gradient."""
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


def _write(to: Writer, window: int, winners: bool) -> None:
    code, given, number = to.code, to.given, to.number
    image, output, outside = (to.array(given[name]) for name in ("image", "output", "outside"))
    begin, end = to.share(given["rows"])
    with to.loop(begin, end) as row, to.loop(number(0), given["output_width"]) as x:
        count, y = (operation(row, given["output_height"]) for operation in (code.sdiv, code.srem))
        pixels = []
        for i, j in itertools.product(range(window), repeat=2):
            line = code.sub(code.add(code.mul(y, given["stride"]), number(i)), given["above"])
            column = code.sub(code.add(code.mul(x, given["stride"]), number(j)), given["before"])
            place = _place(to, count, line, column, "height", "width")
            inside = _inside(to, line, column, "height", "width")
            pixels.append(code.select(inside, code.gep(image, [place]), outside))
        place = _place(to, count, y, x, "output_height", "output_width")
        result = code.gep(output, [place])
        taps = code.gep(to.bytes(given["winners"]), [place]) if winners else None
        with to.loop(number(0), given["channels"], _VECTOR) as channel:
            best, winner = to.load(pixels[0], channel), to.repeated_number(number(0))
            for tap, pixel in enumerate(pixels[1:], 1):
                values = to.load(pixel, channel)
                # NaN is passed on, from the first to the last.
                better = code.or_(code.fcmp_ordered(">", values, best), code.fcmp_unordered("uno", values, values))
                best = code.select(better, values, best)
                winner = code.select(better, to.repeated_number(number(tap)), winner)
            to.store(best, result, channel)
            if winners:
                to.store_bytes(winner, taps, channel)
    code.ret_void()


def _write_gradient(to: Writer, window: int, reach: int) -> None:
    code, given, number = to.code, to.given, to.number
    image, gradient, winners = to.array(given["image"]), to.array(given["output"]), to.bytes(given["winners"])
    begin, end = to.share(given["rows"])
    with to.loop(begin, end) as row, to.loop(number(0), given["width"]) as x:
        count, y = (operation(row, given["height"]) for operation in (code.sdiv, code.srem))
        line, column = code.add(y, given["above"]), code.add(x, given["before"])
        met = []
        for back in itertools.product(range(reach), repeat=2):
            i, j = (
                code.sub(code.sdiv(place, given["stride"]), number(step))
                for place, step in zip((line, column), back, strict=True)
            )
            tap_row, tap_column = (
                code.sub(place, code.mul(index, given["stride"])) for place, index in ((line, i), (column, j))
            )
            inside = _inside(to, i, j, "output_height", "output_width")
            for place in (tap_row, tap_column):
                inside = code.and_(inside, code.icmp_signed("<", place, number(window)))
            tap = code.select(inside, code.add(code.mul(tap_row, number(window)), tap_column), number(_NO_TAP))
            place = code.select(inside, _place(to, count, i, j, "output_height", "output_width"), number(0))
            met.append((to.repeated_number(tap), code.gep(gradient, [place]), code.gep(winners, [place])))
        result = code.gep(image, [_place(to, count, y, x, "height", "width")])
        with to.loop(number(0), given["channels"], _VECTOR) as channel:
            total = to.zeros()
            for tap, pulled, taps in met:
                won = code.icmp_signed("==", to.load_bytes(taps, channel), tap)
                total = code.fadd(total, code.select(won, to.load(pulled, channel), to.zeros()))
            to.store(total, result, channel)
    code.ret_void()


def _inside(to: Writer, line: Any, column: Any, height: str, width: str) -> Any:
    code, given = to.code, to.given
    return code.and_(
        code.icmp_unsigned("<", line, given[height]),
        code.icmp_unsigned("<", column, given[width]),
    )


def _place(to: Writer, count: Any, line: Any, column: Any, height: str, width: str) -> Any:
    """Where a pixel's channels begin in [N, height, width, C]."""
    code, given = to.code, to.given
    row = code.add(code.mul(count, given[height]), line)
    return code.mul(code.add(code.mul(row, given[width]), column), given["channels"])
