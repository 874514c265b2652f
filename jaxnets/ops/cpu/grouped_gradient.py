"""The gradient by the kernel of a 3x3 convolution in groups of few channels, by generated code.

For each of the 9 taps, channels times gradients are summed over the pixels in 8 registers: for two vectors, of 4 groups
with 4 channels, where each channel is broadcast over its group's half of a vector; or for one vector of a wider group
and 8 of its channels.
"""

import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import Call, computes_by_eight
from jaxnets.ops.cpu.machine_code import Writer

_VECTOR = 8
_SIDE = 3
_TAPS = _SIDE * _SIDE
_GROUP = 4
# Pixels that are summed at a time, which stay in the cache.
_PIXELS = 256
# Maps up to this width are summed here for wider groups too: oneDNN's vectors are along their rows.
_NARROW = 2

_NUMBERS = (
    *("image", "gradient", "result", "rows", "height", "width", "channels", "output_height", "output_width"),
    *("stride", "group", "band"),
)


def suits(kernel: Sequence[int], outputs: Sequence[int], padding: int, groups: int) -> bool:
    """Whether this can compute the gradient, and is faster."""
    *window, channels, features = kernel
    if (
        (*window, padding) != (_SIDE, _SIDE, 1)
        or groups == 1
        or features != groups * channels
        or not computes_by_eight()
    ):
        return False
    if channels == _GROUP:
        return features % (2 * _VECTOR) == 0 and uses("grouped_kernels")
    return channels % _VECTOR == 0 and outputs[2] <= _NARROW and uses("grouped_kernels")


def weight_gradient(images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int) -> Call:
    """Operands images [N, H, W, C] and outputs' gradient [N, H', W', C]; result [3, 3, C / groups, C]."""
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


def _write(writer: Writer, spreads: bool) -> None:
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    together = 2 * _VECTOR if spreads else _VECTOR
    group = constant(_GROUP) if spreads else arguments["group"]
    begin, end = writer.share(code.sdiv(arguments["channels"], constant(together)))
    bands = code.sdiv(code.add(arguments["rows"], code.sub(arguments["band"], constant(1))), arguments["band"])
    with writer.loop(constant(0), bands) as band:
        first_row = code.mul(band, arguments["band"])
        rows = first_row, writer.minimum(code.add(first_row, arguments["band"]), arguments["rows"])
        is_first = code.icmp_signed("==", band, constant(0))
        with writer.loop(begin, end) as unit, writer.loop(constant(0), constant(_TAPS)) as tap:
            feature = code.mul(unit, constant(together))
            first = feature if spreads else code.mul(code.sdiv(feature, group), group)
            with writer.loop(constant(0), group, _GROUP if spreads else _VECTOR) as channel:
                place = code.mul(code.add(code.mul(tap, group), channel), arguments["channels"])
                result = code.gep(writer.array(arguments["result"]), [code.add(place, feature)])
                places = [
                    code.add(code.mul(arguments["channels"], constant(i)), constant(half))
                    for half in range(0, together, _VECTOR)
                    for i in range(_VECTOR * _VECTOR // together)
                ]
                sums = [code.select(is_first, writer.zeros(), writer.load(result, own)) for own in places]
                _sum(writer, tap, rows, code.add(first, channel), feature, sums, spreads)
                for own, value in zip(places, sums, strict=True):
                    writer.store(value, result, own)
    code.ret_void()


def _sum(
    writer: Writer, tap: Any, rows: tuple[Any, Any], channel: Any, feature: Any, sums: list[Any], spreads: bool
) -> None:
    """Adds the products of the rows' pixels under a tap to `sums`."""
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    image, gradient = (writer.array(arguments[name]) for name in ("image", "gradient"))
    i, j = (operation(tap, constant(_SIDE)) for operation in (code.sdiv, code.srem))
    # The outputs' columns x with a pixel under the tap: 0 <= x stride + j - 1 < width.
    left = writer.maximum(code.sub(constant(1), j), constant(0))
    right = code.sdiv(code.add(code.sub(arguments["width"], j), arguments["stride"]), arguments["stride"])
    right = writer.minimum(right, arguments["output_width"])
    with writer.loop(*rows, sums=sums) as row:
        count, y = (operation(row, arguments["output_height"]) for operation in (code.sdiv, code.srem))
        line = code.add(code.mul(y, arguments["stride"]), code.sub(i, constant(1)))
        inside = code.icmp_unsigned("<", line, arguments["height"])
        start = code.mul(code.add(code.mul(count, arguments["height"]), line), arguments["width"])
        with writer.loop(left, code.select(inside, right, left), sums=sums) as x:
            column = code.add(code.mul(x, arguments["stride"]), code.sub(j, constant(1)))
            place = code.add(code.mul(code.add(start, column), arguments["channels"]), channel)
            pixel = code.gep(image, [place])
            place = code.add(code.mul(row, arguments["output_width"]), x)
            own = code.gep(gradient, [code.add(code.mul(place, arguments["channels"]), feature)])
            for k in range(_VECTOR):
                half = constant(k // _GROUP * _VECTOR if spreads else 0)
                if spreads:
                    places = [k % _GROUP] * _GROUP + [_GROUP + k % _GROUP] * _GROUP
                    factor = writer.shuffle(writer.load(pixel, half), places)
                else:
                    factor = writer.broadcast(pixel, constant(k))
                sums[k] = writer.multiply_add(factor, writer.load(own, half), addend=sums[k])
