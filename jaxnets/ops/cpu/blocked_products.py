"""Matrix products [rows, inner] @ [inner, columns] by generated code.

Blocks of both matrices are copied into order, as in Goto and van de Geijn 2008 ("Anatomy of high-performance matrix
multiplication"). Tiles of ROWS rows and _COLUMNS columns are summed in registers along a block of the inner axis.
"""

import math
from collections.abc import Callable, Sequence
from ctypes import c_int64
from functools import cache
from typing import Any

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import Call, aligned, has_only_avx2
from jaxnets.ops.cpu.machine_code import Writer

# Numbers of a vector; columns must be a multiple of it.
VECTOR = 8
ROWS = 6
_COLUMNS = 16
# Rows and inner numbers of a block: 135 kB of the left side stay in a core's second cache, 16 kB of the right side in
# its first. The sum's loop is unrolled _UNROLLED times.
_BLOCK_ROWS, _BLOCK_INNER = 132, 256
_UNROLLED = 4
# Copies write whole vectors, which may pass the end of a tile's rows.
INNER_KEPT = _BLOCK_INNER + VECTOR // 4
# Tiles of the right side that are copied together, since the next row may be pages away.
_COPIED_TOGETHER = 4
_NUMBER = 4

# The arguments of a function, without those that copying the left side needs.
NUMBERS = ("left", "right", "result", "rows", "inner", "columns", "by_rows", "scratch", "scratch_of_thread")

# Copies `count` inner numbers of some rows, then zeros up to `padded`, to a block [tiles, INNER_KEPT, ROWS].
CopyLeft = Callable[[Writer, Any, Any, Any, Any, Any, Any], None]

# For few rows oneDNN's product does not copy, and is slow if the matrices are large.
_MOST_ROWS, _FEWEST_COLUMNS = 512, 256


def suits(rows: int, inner: int, columns: int) -> bool:
    """Whether `product` can compute a product, and is faster."""
    if rows % 2 or inner % _UNROLLED or columns % VECTOR or not has_only_avx2():
        return False
    return rows < _MOST_ROWS and min(inner, columns) >= _FEWEST_COLUMNS and uses("blocked_products")


def product(rows: int, inner: int, columns: int) -> Call:
    """[rows, inner] @ [inner, columns]; operands these two. The sizes are multiples of 2, 4 and 8."""
    numbers = {"rows": rows, "inner": inner, "columns": columns, **shares(rows, columns)}
    arguments = (c_int64 * len(NUMBERS))(*(numbers.get(name, 0) for name in NUMBERS))
    function = _function()

    def step(addresses: Sequence[int]) -> None:
        arguments[:3] = list(addresses[:3])
        arguments[NUMBERS.index("scratch")] = addresses[3]
        machine_code.run(function, arguments)

    return Call([step], [scratch_size(columns)])


def shares(rows: int, columns: int) -> dict[str, int]:
    """The arguments that say how threads share a product: by rows or by columns. Each copies the other side."""
    by_rows = rows > columns or math.ceil(columns / _COLUMNS) < machine_code.threads()
    return {"by_rows": int(by_rows), "scratch_of_thread": _scratch_of_thread(columns)}


def scratch_size(columns: int) -> int:
    """The bytes of scratch memory of a product."""
    return machine_code.threads() * _scratch_of_thread(columns)


def _scratch_of_thread(columns: int) -> int:
    padded = math.ceil(columns / _COLUMNS) * _COLUMNS
    return aligned((INNER_KEPT * _BLOCK_ROWS + _BLOCK_INNER * padded) * _NUMBER)


@cache
def _function() -> int:
    name = "product"
    return machine_code.compile(name, lambda module: write(Writer(module, name, NUMBERS, VECTOR), _copy_rows))


def write(writer: Writer, copy_left: CopyLeft) -> None:
    """Writes the code of a product, whose rows are a multiple of 2."""
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    own = writer.array(code.add(arguments["scratch"], code.mul(writer.thread(), arguments["scratch_of_thread"])))
    left_block, right_block = own, code.gep(own, [constant(INNER_KEPT * _BLOCK_ROWS)])
    by_rows = code.icmp_signed("!=", arguments["by_rows"], constant(0))
    tiles, panels = (
        code.sdiv(code.add(arguments[name], constant(unit - 1)), constant(unit))
        for name, unit in (("rows", ROWS), ("columns", _COLUMNS))
    )
    share = writer.share(code.select(by_rows, tiles, panels))
    first_tile, last_tile = (
        code.select(by_rows, own, all_) for own, all_ in zip(share, (constant(0), tiles), strict=True)
    )
    first_panel, last_panel = (
        code.select(by_rows, all_, own) for own, all_ in zip(share, (constant(0), panels), strict=True)
    )
    begin, end = (writer.minimum(code.mul(tile, constant(ROWS)), arguments["rows"]) for tile in (first_tile, last_tile))
    with writer.loop(constant(0), arguments["inner"], _BLOCK_INNER) as inner:
        count = writer.minimum(code.sub(arguments["inner"], inner), constant(_BLOCK_INNER))
        padded = code.mul(code.sdiv(code.add(count, constant(_UNROLLED - 1)), constant(_UNROLLED)), constant(_UNROLLED))
        overwrites = code.icmp_signed("==", inner, constant(0))
        with writer.loop(first_panel, last_panel, _COPIED_TOGETHER) as panel:
            last = writer.minimum(code.add(panel, constant(_COPIED_TOGETHER)), last_panel)
            _copy_right(writer, inner, count, padded, (panel, last), _panel(writer, right_block, panel, first_panel))
        has_panels = code.icmp_signed("<", first_panel, last_panel)
        with writer.loop(begin, code.select(has_panels, end, begin), _BLOCK_ROWS) as row:
            rows = writer.minimum(code.sub(end, row), constant(_BLOCK_ROWS))
            copy_left(writer, inner, count, padded, row, rows, left_block)
            with writer.loop(first_panel, last_panel) as panel:
                right = _panel(writer, right_block, panel, first_panel)
                _sum_tiles(writer, left_block, right, padded, row, rows, panel, overwrites)
    code.ret_void()


def _panel(writer: Writer, block: Any, panel: Any, first: Any) -> Any:
    return writer.code.gep(
        block, [writer.code.mul(writer.code.sub(panel, first), writer.constant(_BLOCK_INNER * _COLUMNS))]
    )


def _has_both_vectors(writer: Writer, panel: Any) -> tuple[Any, Any]:
    """A panel's first column, and whether the panel has two vectors of columns."""
    column = writer.code.mul(panel, writer.constant(_COLUMNS))
    return column, writer.code.icmp_signed(
        "<", writer.code.add(column, writer.constant(VECTOR)), writer.arguments["columns"]
    )


def _copy_right(writer: Writer, inner: Any, count: Any, padded: Any, panels: tuple[Any, Any], block: Any) -> None:
    """Copies panels of inner numbers to [panels, inner, _COLUMNS], then zeros."""
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    with writer.loop(constant(0), count) as i:
        source = code.gep(writer.array(arguments["right"]), [code.mul(code.add(inner, i), arguments["columns"])])
        with writer.loop(*panels) as panel:
            target = code.gep(_panel(writer, block, panel, panels[0]), [code.mul(i, constant(_COLUMNS))])
            column, has_both = _has_both_vectors(writer, panel)
            second = code.add(column, code.select(has_both, constant(VECTOR), constant(0)))
            writer.store(writer.load(source, column), target, constant(0))
            writer.store(writer.load(source, second), target, constant(VECTOR))
    with writer.loop(*panels) as panel, writer.loop(count, padded) as i:
        target = code.gep(_panel(writer, block, panel, panels[0]), [code.mul(i, constant(_COLUMNS))])
        for half in (0, VECTOR):
            writer.store(writer.zeros(), target, constant(half))


def _copy_rows(writer: Writer, inner: Any, count: Any, padded: Any, row: Any, rows: Any, block: Any) -> None:
    """Copies rows of the left side, whose inner numbers are neighbours; it needs no padding."""
    del padded
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    with writer.loop(constant(0), rows, ROWS) as tile:
        target = code.gep(block, [code.mul(tile, constant(INNER_KEPT))])
        lines = []
        for i in range(ROWS):
            # After the last row, the last row again.
            own = writer.minimum(code.add(code.add(row, tile), constant(i)), code.sub(arguments["rows"], constant(1)))
            place = code.add(code.mul(own, arguments["inner"]), inner)
            lines.append(code.gep(writer.array(arguments["left"]), [place]))
        with writer.loop(constant(0), count) as j:
            numbers = code.gep(target, [code.mul(j, constant(ROWS))])
            for i, line in enumerate(lines):
                code.store(code.load(code.gep(line, [j])), code.gep(numbers, [constant(i)]))


def _sum_tiles(
    writer: Writer, left: Any, right: Any, inner: Any, row: Any, rows: Any, panel: Any, overwrites: Any
) -> None:
    """Multiplies a block's rows by a panel."""
    code, arguments, constant = writer.code, writer.arguments, writer.constant
    column, has_both = _has_both_vectors(writer, panel)
    with writer.loop(constant(0), rows, ROWS) as tile:
        own = code.gep(left, [code.mul(tile, constant(INNER_KEPT))])
        remaining = code.sub(rows, tile)
        place = code.add(code.mul(code.add(row, tile), arguments["columns"]), column)
        result = code.gep(writer.array(arguments["result"]), [place])
        # The last tile has 2, 4 or 6 rows.
        for count, fits in (
            (ROWS, code.icmp_signed(">=", remaining, constant(ROWS))),
            (4, code.icmp_signed("==", remaining, constant(4))),
            (2, code.icmp_signed("==", remaining, constant(2))),
        ):
            for vectors, whole in ((2, has_both), (1, code.not_(has_both))):
                with writer.when(code.and_(fits, whole)):
                    _sum(writer, own, right, inner, result, count, vectors, overwrites)


def _sum(
    writer: Writer, left: Any, right: Any, inner: Any, result: Any, rows: int, vectors: int, overwrites: Any
) -> None:
    """Sums a tile of the result, [rows, vectors of columns], in registers."""
    code, constant = writer.code, writer.constant
    sums = [writer.zeros()] * (rows * vectors)
    with writer.loop(constant(0), inner, _UNROLLED, sums) as first:
        left_here, right_here = (
            code.gep(block, [code.mul(first, constant(size))]) for block, size in ((left, ROWS), (right, _COLUMNS))
        )
        for i in range(_UNROLLED):
            loaded = [writer.load(right_here, constant(i * _COLUMNS + vector * VECTOR)) for vector in range(vectors)]
            for row in range(rows):
                factor = writer.broadcast(left_here, constant(i * ROWS + row))
                for vector, own in enumerate(loaded):
                    place = row * vectors + vector
                    sums[place] = writer.multiply_add(factor, own, addend=sums[place])
    for row in range(rows):
        line = code.gep(result, [code.mul(writer.arguments["columns"], constant(row))])
        for vector, value in enumerate(sums[row * vectors : (row + 1) * vectors]):
            place = constant(vector * VECTOR)
            written = code.select(overwrites, writer.zeros(), writer.load(line, place))
            writer.store(code.fadd(written, value), line, place)
