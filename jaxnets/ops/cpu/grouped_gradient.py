"""The gradient by the kernel of a 3x3 convolution in groups of few channels, by code of our own.

For each of the kernel's 9 taps the pixels' channels times their gradients are summed in 8 registers: of two vectors of
4 groups with 4 channels each, which are spread over their group's half of a vector, or of one vector of a wider group
and 8 of its channels.
"""

import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import Call, has_avx2_alone
from jaxnets.ops.cpu.machine_code import Writer

_VECTOR = 8
_SIDE = 3
_TAPS = _SIDE * _SIDE
_GROUP = 4
# Pixels that are gone through at a time, to stay in the cache.
_PIXELS = 256
# Maps no wider are done so with wider groups as well: oneDNN's vectors are along their rows.
_NARROW = 2

_NUMBERS = (
    *("image", "gradient", "result", "rows", "height", "width", "channels", "output_height", "output_width"),
    *("stride", "group", "band"),
)


def suits(kernel: Sequence[int], outputs: Sequence[int], padding: int, groups: int) -> bool:
    """Whether the gradient can be computed so, and is faster so.

    With vectors of 8 numbers it is: for [8, 56, 56, 128] in groups of 4 4.1 against 16.3 ms, for [16, 2, 2, 1024] in
    groups of 32 0.7 against 3.4 ms (two Zen 3 cores).
    """
    *window, channels, features = kernel
    if (*window, padding) != (_SIDE, _SIDE, 1) or groups == 1 or features != groups * channels or not has_avx2_alone():
        return False
    if channels == _GROUP:
        return features % (2 * _VECTOR) == 0 and uses("grouped_kernels")
    return channels % _VECTOR == 0 and outputs[2] <= _NARROW and uses("grouped_kernels")


def weight_gradient(images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int) -> Call:
    """Operands images [N, H, W, C], and the gradient by the outputs [N, H', W', C]; result [3, 3, C / groups, C]."""
    _, height, width, channels = images
    group = kernel[2]
    fixed = (math.prod(outputs[:2]), height, width, channels, *outputs[1:3], stride, group)
    arguments = (c_int64 * len(_NUMBERS))(0, 0, 0, *fixed, max(1, _PIXELS // outputs[2]))
    function = _function(group == _GROUP)

    def step(addresses: Sequence[int]) -> None:
        arguments[:3] = list(addresses)
        machine_code.run(function, arguments)

    return Call([step])


@cache
def _function(spreads: bool) -> int:
    name = "grouped_gradient_spread" if spreads else "grouped_gradient"
    return machine_code.compile(name, lambda module: _write(Writer(module, name, _NUMBERS, _VECTOR), spreads))


def _write(to: Writer, spreads: bool) -> None:
    code, given, number = to.code, to.given, to.number
    together = 2 * _VECTOR if spreads else _VECTOR
    group = number(_GROUP) if spreads else given["group"]
    begin, end = to.share(code.sdiv(given["channels"], number(together)))
    bands = code.sdiv(code.add(given["rows"], code.sub(given["band"], number(1))), given["band"])
    with to.loop(number(0), bands) as band:
        first_row = code.mul(band, given["band"])
        rows = first_row, to.smaller(code.add(first_row, given["band"]), given["rows"])
        is_first = code.icmp_signed("==", band, number(0))
        with to.loop(begin, end) as unit, to.loop(number(0), number(_TAPS)) as tap:
            feature = code.mul(unit, number(together))
            first = feature if spreads else code.mul(code.sdiv(feature, group), group)
            with to.loop(number(0), group, _GROUP if spreads else _VECTOR) as channel:
                place = code.mul(code.add(code.mul(tap, group), channel), given["channels"])
                result = code.gep(to.array(given["result"]), [code.add(place, feature)])
                places = [
                    code.add(code.mul(given["channels"], number(i)), number(half))
                    for half in range(0, together, _VECTOR)
                    for i in range(_VECTOR * _VECTOR // together)
                ]
                sums = [code.select(is_first, to.zeros(), to.load(result, own)) for own in places]
                _sum(to, tap, rows, code.add(first, channel), feature, sums, spreads)
                for own, value in zip(places, sums, strict=True):
                    to.store(value, result, own)
    code.ret_void()


def _sum(
    to: Writer, tap: Any, rows: tuple[Any, Any], channel: Any, feature: Any, sums: list[Any], spreads: bool
) -> None:
    """Adds what the rows' pixels have under a tap."""
    code, given, number = to.code, to.given, to.number
    image, gradient = (to.array(given[name]) for name in ("image", "gradient"))
    i, j = (operation(tap, number(_SIDE)) for operation in (code.sdiv, code.srem))
    # The columns of outputs under whose tap there is a pixel: x stride + j - 1 is from 0 to before the width.
    left = to.larger(code.sub(number(1), j), number(0))
    right = code.sdiv(code.add(code.sub(given["width"], j), given["stride"]), given["stride"])
    right = to.smaller(right, given["output_width"])
    with to.loop(*rows, sums=sums) as row:
        count, y = (operation(row, given["output_height"]) for operation in (code.sdiv, code.srem))
        line = code.add(code.mul(y, given["stride"]), code.sub(i, number(1)))
        inside = code.icmp_unsigned("<", line, given["height"])
        start = code.mul(code.add(code.mul(count, given["height"]), line), given["width"])
        with to.loop(left, code.select(inside, right, left), sums=sums) as x:
            column = code.add(code.mul(x, given["stride"]), code.sub(j, number(1)))
            place = code.add(code.mul(code.add(start, column), given["channels"]), channel)
            pixel = code.gep(image, [place])
            place = code.add(code.mul(row, given["output_width"]), x)
            own = code.gep(gradient, [code.add(code.mul(place, given["channels"]), feature)])
            for k in range(_VECTOR):
                half = number(k // _GROUP * _VECTOR if spreads else 0)
                if spreads:
                    places = [k % _GROUP] * _GROUP + [_GROUP + k % _GROUP] * _GROUP
                    factor = to.rearranged(to.load(pixel, half), places)
                else:
                    factor = to.repeated(pixel, number(k))
                sums[k] = to.multiplied_and_added(factor, to.load(own, half), to=sums[k])
