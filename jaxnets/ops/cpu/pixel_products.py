"""Sums over pixels of channels times features: a convolution's gradient by one tap of its kernel."""

import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

import numpy as np

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.blocked_products import INNER_KEPT, NUMBERS, ROWS, VECTOR, scratch_size, shares, write
from jaxnets.ops.cpu.library import Call, has_only_avx2
from jaxnets.ops.cpu.machine_code import Writer

_NUMBER = 4

# Channels are a product's rows, pixels its inner axis, features its columns.
_NUMBERS = (
    *NUMBERS,
    *("outside", "height", "width", "output_height", "output_width", "stride", "above", "before"),
)


# They are faster for at least this many channels and features, and for 1x1 kernels this many pixels. For larger kernels
# each tap copies the features again.
_FEWEST, _FEWEST_OF_TAPS = 96, 64
_FEWEST_PIXELS = 256
_LARGEST_KERNEL = 3


def suits(kernel: Sequence[int], outputs: Sequence[int], groups: int) -> bool:
    """Whether this can compute the gradient by a kernel [kh, kw, C, F] for outputs [N, H', W', F], and is faster."""
    *window, channels, features = kernel
    if groups > 1 or channels % VECTOR or features % VECTOR or max(window) > _LARGEST_KERNEL or not has_only_avx2():
        return False
    if max(window) == 1 and math.prod(outputs[:3]) < _FEWEST_PIXELS:
        return False
    return min(channels, features) >= (_FEWEST if max(window) == 1 else _FEWEST_OF_TAPS) and uses("pixel_products")


def weight_gradient(
    images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int, padding: int
) -> Call:
    """The gradient by a kernel [kh, kw, C, F]; operands images and outputs' gradient."""
    height, width, channels, features = kernel
    size = channels * features * _NUMBER
    steps = [
        PixelProductStep(images, outputs, tap, stride, padding, offset=number * size)
        for number, tap in enumerate(np.ndindex(height, width))
    ]
    return Call(steps, [scratch_size(features)])


class PixelProductStep:
    """A step that sums outputs' gradients [N, H', W', F] times images [N, H, W, C] under one tap, giving [C, F]."""

    def __init__(
        self,
        images: Sequence[int],
        outputs: Sequence[int],
        tap: tuple[int, ...],
        stride: int,
        padding: int,
        offset: int,
    ) -> None:
        """The arrays are images, gradient, result and scratch memory; [C, F] is at `offset` bytes of the result."""
        _, height, width, channels = images
        features = outputs[3]
        self._outside = np.zeros(channels, np.float32)
        given = {
            "rows": channels,
            "inner": math.prod(outputs[:3]),
            "columns": features,
            "outside": self._outside.ctypes.data,
            "height": height,
            "width": width,
            "output_height": outputs[1],
            "output_width": outputs[2],
            "stride": stride,
            "above": padding - tap[0],
            "before": padding - tap[1],
            **shares(channels, features),
        }
        self._arguments = (c_int64 * len(_NUMBERS))(*(given.get(name, 0) for name in _NUMBERS))
        self._offset = offset
        self._function = _function()

    def __call__(self, addresses: Sequence[int]) -> None:
        images, gradient, result, scratch = addresses
        self._arguments[:3] = [images, gradient, result + self._offset]
        self._arguments[_NUMBERS.index("scratch")] = scratch
        machine_code.run(self._function, self._arguments)


@cache
def _function() -> int:
    name = "pixel_products"
    return machine_code.compile(name, lambda module: write(Writer(module, name, _NUMBERS, VECTOR), _copy_channels))


def _copy_channels(
    writer: Writer, pixel: Any, count: Any, padded: Any, channel: Any, channels: Any, block: Any
) -> None:
    """Copies channels of pixels under the tap to [tiles of channels, pixels, ROWS], then zeros."""
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    with writer.loop(constant(0), padded) as i:
        # Pixels after the last count as outside of the images.
        y, x, image = _place_of(writer, code.add(pixel, i))
        inside = code.and_(
            code.icmp_unsigned("<", y, arguments["height"]), code.icmp_unsigned("<", x, arguments["width"])
        )
        inside = code.and_(inside, code.icmp_signed("<", i, count))
        place = code.add(code.mul(code.add(code.mul(image, arguments["height"]), y), arguments["width"]), x)
        source = code.select(
            inside,
            code.gep(writer.array(arguments["left"]), [code.mul(place, arguments["rows"])]),
            writer.array(arguments["outside"]),
        )
        source = code.gep(source, [channel])
        whole = code.mul(code.sdiv(code.sub(channels, constant(VECTOR - ROWS)), constant(ROWS)), constant(ROWS))
        with writer.loop(constant(0), whole, ROWS) as row:
            target = code.add(code.mul(row, constant(INNER_KEPT)), code.mul(i, constant(ROWS)))
            writer.store(writer.load(source, row), block, target)  # and 2 more, which the next pixel overwrites
        with writer.loop(whole, channels) as own:
            row = code.sdiv(own, constant(ROWS))
            target = code.add(
                code.add(code.mul(row, constant(ROWS * INNER_KEPT)), code.mul(i, constant(ROWS))),
                code.srem(own, constant(ROWS)),
            )
            code.store(code.load(code.gep(source, [own])), code.gep(block, [target]))


def _place_of(writer: Writer, pixel: Any) -> tuple[Any, Any, Any]:
    """The row, column and image of the pixel under the tap for an output's pixel."""
    code, arguments = writer.code, writer.arguments
    line, column = (operation(pixel, arguments["output_width"]) for operation in (code.sdiv, code.srem))
    image, row = (operation(line, arguments["output_height"]) for operation in (code.sdiv, code.srem))
    y, x = (
        code.sub(code.mul(place, arguments["stride"]), arguments[pads])
        for place, pads in ((row, "above"), (column, "before"))
    )
    return y, x, image
