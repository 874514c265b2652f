"""Sums over pixels of channels times features: a convolution's gradient by one tap of its kernel.

oneDNN's own reach half of what the processor can do: 72 GFLOP/s for [8, 14, 14, 256] to 1024 features where these reach
129 (two Zen 3 cores). They are matrix products of blocks that are copied into order, as Goto and van de Geijn 2008
("Anatomy of high-performance matrix multiplication") describe: tiles of _ROWS channels times _COLUMNS features are
summed in registers.
"""

import math
from collections.abc import Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

import numpy as np

from jaxnets.ops import machine_code
from jaxnets.ops.dnnl_library import Call, aligned, has_avx2_alone
from jaxnets.ops.machine_code import Writer

# Channels and features must be multiples of this.
VECTOR = 8
_ROWS, _COLUMNS = 6, 16
# Pixels, and channels, that a block holds: 135 kB of channels stay in a core's second cache, 16 kB of features in its
# first. The sum's loop is written out for so many pixels at a time.
_PIXELS, _CHANNELS = 256, 132
_UNROLLED = 4
# Copying writes whole vectors, of which what is too much passes the end of a row of tiles.
_PIXELS_KEPT = _PIXELS + VECTOR // 4
_NUMBER = 4

_NUMBERS = (
    *("image", "gradient", "result", "outside", "pixels", "height", "width", "channels", "output_height"),
    *("output_width", "features", "stride", "above", "before", "by_channels", "scratch", "scratch_of_thread"),
)


# They win with so many channels and features, and for a kernel of one tap with so many pixels; of larger kernels each
# tap copies the features anew. In ResNet-50 at 224 px, batch 8, they are 1.1 to 1.9 times as fast, for kernels 3x3 of
# stride 2 1.5 to 2.2 times.
_FEWEST, _FEWEST_OF_TAPS = 96, 64
_FEWEST_PIXELS = 256
_LARGEST_KERNEL = 3


def suits(kernel: Sequence[int], outputs: Sequence[int], groups: int) -> bool:
    """Whether the gradient by a kernel [kh, kw, C, F] of [N, H', W', F] can be summed so, and is faster so."""
    *window, channels, features = kernel
    if groups > 1 or channels % VECTOR or features % VECTOR or max(window) > _LARGEST_KERNEL or not has_avx2_alone():
        return False
    if max(window) == 1 and math.prod(outputs[:3]) < _FEWEST_PIXELS:
        return False
    return min(channels, features) >= (_FEWEST if max(window) == 1 else _FEWEST_OF_TAPS) and machine_code.usable()


def weight_gradient(
    images: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], stride: int, padding: int
) -> Call:
    """The gradient by a kernel [kh, kw, C, F]; operands images, and the gradient by the outputs."""
    height, width, channels, features = kernel
    size = channels * features * _NUMBER
    steps = [
        PixelProductStep(images, outputs, tap, stride, padding, offset=number * size)
        for number, tap in enumerate(np.ndindex(height, width))
    ]
    return Call(steps, [machine_code.threads() * _scratch_of_thread(features)])


class PixelProductStep:
    """Sums over the pixels of outputs' gradients [N, H', W', F] times images [N, H, W, C], as one of a call's steps.

    Of the images it takes what is under one tap of a kernel, and writes [C, F].
    """

    def __init__(
        self,
        images: Sequence[int],
        outputs: Sequence[int],
        tap: tuple[int, ...],
        stride: int,
        padding: int,
        offset: int,
    ) -> None:
        """The call's arrays are images, gradient, result and scratch memory; [C, F] is at an offset of the result."""
        _, height, width, channels = images
        features = outputs[3]
        self._outside = np.zeros(channels, np.float32)
        given = {
            "outside": self._outside.ctypes.data,
            "pixels": math.prod(outputs[:3]),
            "height": height,
            "width": width,
            "channels": channels,
            "output_height": outputs[1],
            "output_width": outputs[2],
            "features": features,
            "stride": stride,
            "above": padding - tap[0],
            "before": padding - tap[1],
            # What isn't shared, each thread copies.
            "by_channels": channels > features or math.ceil(features / _COLUMNS) < machine_code.threads(),
            "scratch_of_thread": _scratch_of_thread(features),
        }
        self._arguments = (c_int64 * len(_NUMBERS))(*(int(given.get(name, 0)) for name in _NUMBERS))
        self._offset = offset
        self._function = _function()

    def __call__(self, addresses: Sequence[int]) -> None:
        images, gradient, result, scratch = addresses
        self._arguments[:3] = [images, gradient, result + self._offset]
        self._arguments[_NUMBERS.index("scratch")] = scratch
        machine_code.run(self._function, self._arguments)


def _scratch_of_thread(features: int) -> int:
    columns = math.ceil(features / _COLUMNS) * _COLUMNS
    return aligned((_PIXELS_KEPT * _CHANNELS + _PIXELS * columns) * _NUMBER)


@cache
def _function() -> machine_code.Function:
    name = "pixel_products"
    return machine_code.compiled(name, lambda module: _write(Writer(module, name, _NUMBERS, VECTOR)))


def _write(to: Writer) -> None:
    code, given, number = to.code, to.given, to.number
    own = to.array(code.add(given["scratch"], code.mul(to.thread(), given["scratch_of_thread"])))
    channels_block, features_block = own, code.gep(own, [number(_PIXELS_KEPT * _CHANNELS)])
    by_channels = code.icmp_signed("!=", given["by_channels"], number(0))
    rows, panels = (
        code.sdiv(code.add(given[name], number(unit - 1)), number(unit))
        for name, unit in (("channels", _ROWS), ("features", _COLUMNS))
    )
    shares = to.share(code.select(by_channels, rows, panels))
    first_row, last_row, first_panel, last_panel = (
        code.select(code.icmp_signed("==", given["by_channels"], number(shared)), share, whole)
        for shared, share, whole in (
            (1, shares[0], number(0)),
            (1, shares[1], rows),
            (0, shares[0], number(0)),
            (0, shares[1], panels),
        )
    )
    begin, end = (to.smaller(code.mul(row, number(_ROWS)), given["channels"]) for row in (first_row, last_row))
    with to.loop(number(0), given["pixels"], _PIXELS) as pixel:
        count = to.smaller(code.sub(given["pixels"], pixel), number(_PIXELS))
        padded = code.mul(code.sdiv(code.add(count, number(_UNROLLED - 1)), number(_UNROLLED)), number(_UNROLLED))
        overwrites = code.icmp_signed("==", pixel, number(0))
        with to.loop(first_panel, last_panel) as panel:
            _copy_features(to, pixel, count, padded, panel, _panel(to, features_block, panel, first_panel))
        has_panels = code.icmp_signed("<", first_panel, last_panel)
        with to.loop(begin, code.select(has_panels, end, begin), _CHANNELS) as channel:
            channels = to.smaller(code.sub(end, channel), number(_CHANNELS))
            _copy_channels(to, pixel, count, padded, channel, channels, channels_block)
            with to.loop(first_panel, last_panel) as panel:
                features = _panel(to, features_block, panel, first_panel)
                column = code.mul(panel, number(_COLUMNS))
                is_whole = code.icmp_signed("<", code.add(column, number(VECTOR)), given["features"])
                with to.loop(number(0), channels, _ROWS) as row:
                    tile = code.gep(channels_block, [code.mul(row, number(_PIXELS_KEPT))])
                    left = code.sub(channels, row)
                    place = code.add(code.mul(code.add(channel, row), given["features"]), column)
                    result = code.gep(to.array(given["result"]), [place])
                    # Multiples of a vector leave 2 or 4 channels for the last rows.
                    for rows_here, fits in (
                        (_ROWS, code.icmp_signed(">=", left, number(_ROWS))),
                        (4, code.icmp_signed("==", left, number(4))),
                        (2, code.icmp_signed("==", left, number(2))),
                    ):
                        for vectors, whole in ((2, is_whole), (1, code.not_(is_whole))):
                            with to.when(code.and_(fits, whole)):
                                _sum(to, tile, features, padded, result, rows_here, vectors, overwrites)
    code.ret_void()


def _panel(to: Writer, block: Any, panel: Any, first: Any) -> Any:
    return to.code.gep(block, [to.code.mul(to.code.sub(panel, first), to.number(_PIXELS * _COLUMNS))])


def _copy_features(to: Writer, pixel: Any, count: Any, padded: Any, panel: Any, block: Any) -> None:
    """Copies a panel's features of some pixels, [pixels, _COLUMNS], then zeros."""
    code, given, number = to.code, to.given, to.number
    column = code.mul(panel, number(_COLUMNS))
    is_whole = code.icmp_signed("<", code.add(column, number(VECTOR)), given["features"])
    second = code.select(is_whole, number(VECTOR), number(0))
    with to.loop(number(0), count) as i:
        place = code.add(code.mul(code.add(pixel, i), given["features"]), column)
        source, target = code.gep(to.array(given["gradient"]), [place]), code.mul(i, number(_COLUMNS))
        to.store(to.load(source, number(0)), block, target)
        to.store(to.load(source, second), block, code.add(target, number(VECTOR)))
    with to.loop(count, padded) as i:
        for half in (0, VECTOR):
            to.store(to.zeros(), block, code.add(code.mul(i, number(_COLUMNS)), number(half)))


def _copy_channels(to: Writer, pixel: Any, count: Any, padded: Any, channel: Any, channels: Any, block: Any) -> None:
    """Copies channels under the tap of some pixels, [rows, pixels, _ROWS], then zeros."""
    code, given, number = to.code, to.given, to.number
    with to.loop(number(0), padded) as i:
        # Pixels behind the last are read as outside of the images.
        y, x, image = _place_of(to, code.add(pixel, i))
        inside = code.and_(code.icmp_unsigned("<", y, given["height"]), code.icmp_unsigned("<", x, given["width"]))
        inside = code.and_(inside, code.icmp_signed("<", i, count))
        place = code.add(code.mul(code.add(code.mul(image, given["height"]), y), given["width"]), x)
        source = code.select(
            inside,
            code.gep(to.array(given["image"]), [code.mul(place, given["channels"])]),
            to.array(given["outside"]),
        )
        source = code.gep(source, [channel])
        whole = code.mul(code.sdiv(code.sub(channels, number(VECTOR - _ROWS)), number(_ROWS)), number(_ROWS))
        with to.loop(number(0), whole, _ROWS) as row:
            target = code.add(code.mul(row, number(_PIXELS_KEPT)), code.mul(i, number(_ROWS)))
            to.store(to.load(source, row), block, target)  # and 2 more, which the next pixel overwrites
        with to.loop(whole, channels) as own:
            row = code.sdiv(own, number(_ROWS))
            target = code.add(
                code.add(code.mul(row, number(_ROWS * _PIXELS_KEPT)), code.mul(i, number(_ROWS))),
                code.srem(own, number(_ROWS)),
            )
            code.store(code.load(code.gep(source, [own])), code.gep(block, [target]))


def _place_of(to: Writer, pixel: Any) -> tuple[Any, Any, Any]:
    """Where an output's pixel meets the images under the tap: row, column and the image's number."""
    code, given = to.code, to.given
    line, column = (operation(pixel, given["output_width"]) for operation in (code.sdiv, code.srem))
    image, row = (operation(line, given["output_height"]) for operation in (code.sdiv, code.srem))
    y, x = (
        code.sub(code.mul(place, given["stride"]), given[pads]) for place, pads in ((row, "above"), (column, "before"))
    )
    return y, x, image


def _sum(
    to: Writer, channels: Any, features: Any, pixels: Any, result: Any, rows: int, vectors: int, overwrites: Any
) -> None:
    """A tile of the result, [rows, vectors of features], in registers."""
    code, number = to.code, to.number
    before = code.block
    head, body, after = (code.function.append_basic_block() for _ in range(3))
    code.branch(head)
    code.position_at_end(head)
    pixel = to.number_in_loop(number(0), before)
    sums = [[to.vector_in_loop(to.zeros(), before) for _ in range(vectors)] for _ in range(rows)]
    code.cbranch(code.icmp_signed("<", pixel, pixels), body, after)
    code.position_at_end(body)
    found: Sequence[Sequence[Any]] = sums
    channels_here, features_here = (
        code.gep(block, [code.mul(pixel, number(size))]) for block, size in ((channels, _ROWS), (features, _COLUMNS))
    )
    for i in range(_UNROLLED):
        loaded = [to.load(features_here, number(i * _COLUMNS + vector * VECTOR)) for vector in range(vectors)]
        step = []
        for row, old in enumerate(found):
            factor = to.repeated(channels_here, number(i * _ROWS + row))
            step.append([to.multiplied_and_added(factor, own, to=last) for own, last in zip(loaded, old, strict=True)])
        found = step
    pixel.add_incoming(code.add(pixel, number(_UNROLLED)), code.block)
    for old, new in zip(sums, found, strict=True):
        for own_old, own_new in zip(old, new, strict=True):
            own_old.add_incoming(own_new, code.block)
    code.branch(head)
    code.position_at_end(after)
    for row, own in enumerate(sums):
        line = code.gep(result, [code.mul(to.given["features"], number(row))])
        for vector, value in enumerate(own):
            place = number(vector * VECTOR)
            written = code.select(overwrites, to.zeros(), to.load(line, place))
            to.store(code.fadd(written, value), line, place)
