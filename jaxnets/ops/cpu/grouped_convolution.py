"""3x3 convolutions of padding 1 in groups of 4 channels, by generated code.

A vector has the 8 outputs of two groups. It is summed in registers for several neighbouring pixels, over the taps and
the groups' channels; each channel is broadcast over its group's half of a vector.
"""

import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

import numpy as np

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import Call, aligned, array_at, computes_by_eight
from jaxnets.ops.cpu.machine_code import Writer

_VECTOR = 8
_SIDE = 3
_TAPS = _SIDE * _SIDE
# Pixels of a row that are summed together, and the shortest rows for which this is faster.
_PIXELS = 8
_SHORTEST = 4
_NUMBER = 4
_GROUP = 4

_NUMBERS = (
    *("image", "kernel", "result", "zeros", "spare", "rows", "height", "width", "channels", "output_height"),
    *("output_width", "stride"),
)


def suits(kernel: Sequence[int], outputs: Sequence[int], padding: int, groups: int) -> bool:
    """Whether this can compute a convolution, and is faster."""
    *window, channels, features = kernel
    if (*window, channels, padding) != (_SIDE, _SIDE, _GROUP, 1) or features != groups * _GROUP or groups % 2:
        return False
    return outputs[2] >= _SHORTEST and computes_by_eight() and uses("grouped_kernels")


def convolution(images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int) -> Call:
    """Operands images [N, H, W, C] and kernel [3, 3, 4, C]; result the outputs [N, H', W', C]."""
    return _convolution(images, kernel, outputs, stride, by_inputs=False)


def input_gradient(images: Sequence[int], kernel: Sequence[int]) -> Call:
    """The gradient of `convolution` of stride 1 by images; operands the outputs' gradient and the kernel.

    It is a convolution with the kernel rotated by 180 degrees.
    """
    return _convolution(images, kernel, images, 1, by_inputs=True)


def _convolution(
    images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int, *, by_inputs: bool
) -> Call:
    _, height, width, channels = images
    # Read and written in place of pixels outside of the images.
    zeros, spare = np.zeros(channels, np.float32), np.empty(channels, np.float32)
    rows = math.prod(outputs[:2])
    fixed = (rows, height, width, channels, *outputs[1:3], stride)
    arguments = (c_int64 * len(_NUMBERS))(*[0] * 5, *fixed)
    function = _function()

    def step(addresses: Sequence[int]) -> None:
        image, given, result, packed = addresses
        taps = array_at(given, (_TAPS, _GROUP, channels // _GROUP, _GROUP))
        if by_inputs:
            taps = taps[::-1].transpose(0, 3, 2, 1)
        vectors = array_at(packed, (channels // _VECTOR, _TAPS, _GROUP, _VECTOR))
        np.copyto(
            vectors,
            np.ascontiguousarray(taps).reshape(_TAPS, _GROUP, channels // _VECTOR, _VECTOR).transpose(2, 0, 1, 3),
        )
        arguments[:3] = [image, packed, result]
        arguments[3:5] = [zeros.ctypes.data, spare.ctypes.data]
        machine_code.run(function, arguments)

    return Call([step], [aligned(math.prod(kernel) * _NUMBER)])


@cache
def _function() -> int:
    name = "grouped"
    return machine_code.compile(name, lambda module: _write(Writer(module, name, _NUMBERS, _VECTOR)))


def _write(writer: Writer) -> None:
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    image, kernel, result, zeros, spare = (writer.array(arguments[name]) for name in _NUMBERS[:5])
    begin, end = writer.share(arguments["rows"])
    with writer.loop(begin, end) as row:
        count, y = code.sdiv(row, arguments["output_height"]), code.srem(row, arguments["output_height"])
        with writer.loop(constant(0), arguments["output_width"], _PIXELS) as x:
            pixels = []
            for i in range(_SIDE):
                line = code.add(code.mul(y, arguments["stride"]), constant(i - 1))
                line_inside = code.icmp_unsigned("<", line, arguments["height"])
                start = code.mul(code.add(code.mul(count, arguments["height"]), line), arguments["width"])
                for j in range(_SIDE):
                    places = []
                    for pixel in range(_PIXELS):
                        column = code.add(code.mul(code.add(x, constant(pixel)), arguments["stride"]), constant(j - 1))
                        inside = code.and_(line_inside, code.icmp_unsigned("<", column, arguments["width"]))
                        place = code.mul(code.add(start, column), arguments["channels"])
                        places.append(code.select(inside, code.gep(image, [place]), zeros))
                    pixels.append(places)
            targets = []
            for pixel in range(_PIXELS):
                column = code.add(x, constant(pixel))
                place = code.mul(code.add(code.mul(row, arguments["output_width"]), column), arguments["channels"])
                inside = code.icmp_signed("<", column, arguments["output_width"])
                targets.append(code.select(inside, code.gep(result, [place]), spare))
            with writer.loop(constant(0), arguments["channels"], _VECTOR) as channel:
                own = code.gep(kernel, [code.mul(channel, constant(_TAPS * _GROUP))])
                sums = _sums(writer, pixels, own, channel)
                for target, value in zip(targets, sums, strict=True):
                    writer.store(value, target, channel)
    code.ret_void()


def _sums(writer: Writer, pixels: Sequence[Sequence[Any]], kernel: Any, channel: Any) -> list[Any]:
    """A vector of outputs for each pixel."""
    sums = [writer.zeros()] * _PIXELS
    for tap, places in enumerate(pixels):
        factors = [writer.load(kernel, writer.constant((tap * _GROUP + i) * _VECTOR)) for i in range(_GROUP)]
        for pixel, place in enumerate(places):
            loaded = writer.load(place, channel)
            for i, factor in enumerate(factors):
                spread = writer.shuffle(loaded, [i] * _GROUP + [_GROUP + i] * _GROUP)
                sums[pixel] = writer.multiply_add(spread, factor, sums[pixel])
    return sums
