"""Tiles of images to and from the planes that Winograd's convolutions F(2x2, 3x3) and F(4x4, 3x3) multiply.

The outputs are cut into tiles of T x T pixels, each computed from (T + 2) x (T + 2) pixels of the inputs. Both become
(T + 2)^2 sums of pixels in as many planes: [planes, tiles, C]. Lavin and Gray 2016 (arXiv:1509.09308), section 4.
"""

import math
from collections.abc import Callable, Sequence
from ctypes import c_int64
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.machine_code import Writer

# Channels must be a multiple of this.
VECTOR = 8


class Tiles(NamedTuple):
    """Winograd's algorithm for tiles of `side` x `side` outputs: for one axis, the paper's B^T, G and A^T.

    B^T and A^T are products of sparse matrices; the first is applied first.
    """

    of_inputs: tuple[np.ndarray, ...]
    of_kernels: np.ndarray
    of_outputs: tuple[np.ndarray, ...]

    @property
    def side(self) -> int:
        """The pixels of a tile of outputs along one axis."""
        return len(self.of_outputs[-1])

    @property
    def planes(self) -> int:
        """The number of planes."""
        return len(self.of_kernels) ** 2

    @property
    def kernel_sums(self) -> np.ndarray:
        """[planes, 9]: from a kernel's 9 taps to its planes."""
        return np.kron(self.of_kernels, self.of_kernels)

    def grid(self, images: Sequence[int]) -> tuple[int, int]:
        """The rows of tiles in all images of [N, H, W, C], and the tiles in a row."""
        count, height, width, _ = images
        return count * math.ceil(height / self.side), math.ceil(width / self.side)


# The points are 0, 1, -1 and infinity; two signs of the last are left out.
F2 = Tiles(
    (np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]),),
    np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    (np.array([[1, 1, 1, 0], [0, 1, -1, 1]]),),
)
# The points are 0, a, -a, b, -b and infinity. With a = 1 and b = 2, as in the paper, rounding errors are larger.
_A, _B = 0.5**0.5, 2**0.5
_PAIRS = np.array(
    [
        *([1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, 0, 0]),
        *([0, 0, 0, 1, 1, 0], [0, 0, 0, 1, -1, 0], [0, 0, 0, 0, 0, 1]),
    ]
)
F4 = Tiles(
    (
        np.array(
            [
                *([1, 0, -2.5, 0, 1, 0], [0, 0, -2, 0, 1, 0], [0, -2, 0, 1, 0, 0]),
                *([0, 0, -0.5, 0, 1, 0], [0, -0.5, 0, 1, 0, 0], [0, 1, 0, -2.5, 0, 1]),
            ]
        ),
        np.where(_PAIRS.T != 0, np.array([1, 1, _A, 1, _B, 1]), 0) * np.where(_PAIRS < 0, -1, 1),
    ),
    np.array(
        [[6, 0, 0], *([-4, -4 * p, -4 * p * p] for p in (_A, -_A)), *([1, p, p * p] for p in (_B, -_B)), [0, 0, 6]]
    )
    / 6,
    (
        _PAIRS,
        np.array([[1, 1, 0, 1, 0, 0], [0, 0, _A, 0, _B, 0], [0, 0.5, 0, 2, 0, 0], [0, 0, _A / 2, 0, 2 * _B, 1]]),
    ),
)

_NUMBERS = (
    *("image", "planes", "bias", "added", "outside", "first", "rows", "height", "width", "channels"),
    *("tile_rows", "tile_columns"),
)


class Way(StrEnum):
    """What a step computes.

    A convolution is `FROM_INPUTS`, products, `TO_OUTPUTS`. Its gradient by the kernel is products of `FROM_INPUTS` and
    `FROM_OUTPUTS`.
    """

    FROM_INPUTS = "from_inputs"
    FROM_OUTPUTS = "from_outputs"
    TO_OUTPUTS = "to_outputs"


@dataclass(frozen=True)
class Finish:
    """What follows as outputs are written: a bias [C] and an array like them are added, then max(., 0) is taken.

    `bias` and `added` are indices of the call's arrays.
    """

    bias: int
    added: int | None
    relu: bool


_Grid = Sequence[Sequence[Any]]


class TileStep:
    """A step that computes the planes of some rows of tiles from images, or the images from the planes."""

    def __init__(
        self,
        way: Way,
        tiles: Tiles,
        images: Sequence[int],
        first: int,
        rows: int,
        image_index: int,
        planes_index: int,
        finish: Finish | None = None,
    ) -> None:
        """The images are [N, H, W, C], the planes [P, tiles of these rows, C], with these indices in the call."""
        _, height, width, channels = images
        # Pixels outside of the images are read from here as 0, and written here.
        self._outside = np.zeros(channels, np.float32)
        columns = tiles.grid(images)[1]
        numbers = (
            0,
            0,
            0,
            0,
            self._outside.ctypes.data,
            first,
            rows,
            height,
            width,
            channels,
            math.ceil(height / tiles.side),
        )
        self._arguments = (c_int64 * len(_NUMBERS))(*numbers, columns)
        adds, relu = (finish.added is not None, finish.relu) if finish else (False, False)
        self._function = _function(way, tiles.side, finish is not None, adds, relu)
        others = (index for index in (finish.bias, finish.added) if index is not None) if finish else ()
        self._indices = image_index, planes_index, *others

    def __call__(self, addresses: Sequence[int]) -> None:
        self._arguments[: len(self._indices)] = [addresses[index] for index in self._indices]
        machine_code.run(self._function, self._arguments)


@cache
def _function(way: Way, side: int, biased: bool, adds: bool, relu: bool) -> int:
    tiles = {each.side: each for each in (F2, F4)}[side]

    def write(module: Any) -> None:
        writer = Writer(module, way, _NUMBERS, VECTOR)
        if way == Way.FROM_INPUTS:
            _write_to_planes(writer, tiles, tiles.of_inputs, before=1)
        elif way == Way.FROM_OUTPUTS:
            _write_to_planes(writer, tiles, tuple(sums.T for sums in reversed(tiles.of_outputs)), before=0)
        else:
            _write_from_planes(writer, tiles, biased, adds, relu)

    return machine_code.compile(way, write)


def _write_to_planes(writer: Writer, tiles: Tiles, sums: Sequence[np.ndarray], before: int) -> None:
    """Writes sums of pixels to the planes: `sums` on both axes, from `before` pixels before the tile."""

    def write(grids: Sequence[_Grid], planes: Sequence[Any], channel: Any) -> None:
        (pixels,) = grids
        found = _both_axes(writer, sums, [[writer.load(pixel, channel) for pixel in row] for row in pixels])
        for value, plane in zip((value for row in found for value in row), planes, strict=True):
            writer.store(value, plane, channel)

    _write_loops(writer, tiles, ("image",), sums[0].shape[1], before, write)


def _write_from_planes(writer: Writer, tiles: Tiles, biased: bool, adds: bool, relu: bool) -> None:
    """Writes sums of planes to the tile's pixels, then what follows."""

    def write(grids: Sequence[_Grid], planes: Sequence[Any], channel: Any) -> None:
        values = [writer.load(plane, channel) for plane in planes]
        side = len(tiles.of_kernels)
        found = _both_axes(writer, tiles.of_outputs, [values[i * side : (i + 1) * side] for i in range(side)])
        for row, column in np.ndindex(tiles.side, tiles.side):
            value = found[row][column]
            if biased:
                value = writer.code.fadd(value, writer.load(writer.array(writer.arguments["bias"]), channel))
            if adds:
                value = writer.code.fadd(value, writer.load(grids[1][row][column], channel))
            if relu:
                # Unordered, as NaN must not become 0: it stands for what is infinite in the plain sum.
                value = writer.code.select(
                    writer.code.fcmp_unordered(">", value, writer.zeros()), value, writer.zeros()
                )
            writer.store(value, grids[0][row][column], channel)

    _write_loops(writer, tiles, ("image", "added") if adds else ("image",), tiles.side, 0, write)


def _write_loops(
    writer: Writer,
    tiles: Tiles,
    images: Sequence[str],
    side: int,
    before: int,
    write: Callable[[Sequence[_Grid], Sequence[Any], Any], None],
) -> None:
    """Loops over tiles and channels; `write` gets `side` x `side` pixels of each image, the planes, the channel."""
    code, arguments = writer.code, writer.arguments
    planes, outside = (writer.array(arguments[name]) for name in ("planes", "outside"))
    plane_size = code.mul(code.mul(arguments["rows"], arguments["tile_columns"]), arguments["channels"])
    begin, end = writer.share(arguments["rows"])
    with writer.loop(begin, end) as row:
        image_number, tile_row = (
            operation(code.add(arguments["first"], row), arguments["tile_rows"]) for operation in (code.sdiv, code.srem)
        )
        ys, rows_inside = _along(writer, tiles.side, tile_row, arguments["height"], side, before)
        first_row = code.mul(image_number, arguments["height"])
        lines = [code.mul(code.add(first_row, y), arguments["width"]) for y in ys]
        with writer.loop(writer.constant(0), arguments["tile_columns"]) as column:
            xs, columns_inside = _along(writer, tiles.side, column, arguments["width"], side, before)
            grids = [
                [
                    [
                        code.select(
                            code.and_(row_inside, column_inside),
                            code.gep(
                                writer.array(arguments[name]), [code.mul(code.add(line, x), arguments["channels"])]
                            ),
                            outside,
                        )
                        for x, column_inside in zip(xs, columns_inside, strict=True)
                    ]
                    for line, row_inside in zip(lines, rows_inside, strict=True)
                ]
                for name in images
            ]
            tile = code.add(code.mul(row, arguments["tile_columns"]), column)
            first = code.gep(planes, [code.mul(tile, arguments["channels"])])
            own = [code.gep(first, [code.mul(plane_size, writer.constant(i))]) for i in range(tiles.planes)]
            with writer.loop(writer.constant(0), arguments["channels"], VECTOR) as channel:
                write(grids, own, channel)
    code.ret_void()


def _along(writer: Writer, step: int, tile: Any, size: Any, side: int, before: int) -> tuple[list[Any], list[Any]]:
    """The indices of a tile's pixels along one axis, and whether they are inside the image; tiles are `step` apart."""
    start = writer.code.mul(tile, writer.constant(step))
    places = [writer.code.add(start, writer.constant(i - before)) for i in range(side)]
    return places, [writer.code.icmp_unsigned("<", place, size) for place in places]


def _both_axes(writer: Writer, sums: Sequence[np.ndarray], values: _Grid) -> list[list[Any]]:
    down = [_sums(writer, sums, column) for column in zip(*values, strict=True)]
    return [_sums(writer, sums, row) for row in zip(*down, strict=True)]


def _sums(writer: Writer, sums: Sequence[np.ndarray], values: Sequence[Any]) -> list[Any]:
    """Sums of vectors, by one matrix after another."""
    for matrix in sums:
        values = [_sum(writer, factors, values) for factors in matrix]
    return list(values)


def _sum(writer: Writer, factors: np.ndarray, values: Sequence[Any]) -> Any:
    terms = sorted(zip(factors, values, strict=True), key=lambda term: term[0] != 1)
    (first, result), *others = [(factor, value) for factor, value in terms if factor]
    if first != 1:
        result = writer.code.fmul(writer.number(first), result)
    for factor, value in others:
        if factor == 1:
            result = writer.code.fadd(result, value)
        elif factor == -1:
            result = writer.code.fsub(result, value)
        else:
            result = writer.multiply_add(writer.number(factor), value, result)
    return result
