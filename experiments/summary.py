"""A network's layers: python -m experiments.summary --arch NAME."""

import csv
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from experiments.arguments import add_options, options_in, parser_of
from experiments.command import run
from jaxnets.models.options import model_with
from jaxnets.summary import Layer, Summary, Total, summarize
from jaxnets.training.recipes import recipe_for

_LAYERS = ("layer", "kind", "output", "window", "stride", "padding", "groups", "parameters", "multiply-adds", "bytes")
_STAGES = ("stage", "output", "layers", "parameters", "multiply-adds", "bytes")


def main() -> None:
    """Prints the layers of a network: shapes, windows, parameters, multiply-adds and memory of one image.

    "bytes" is the size of a layer's outputs in float32. The last column computes the output size.
    """
    parser = parser_of("summary", main.__doc__)
    parser.add_argument("--arch", required=True, help="network, such as resnet50, or package.module:factory")
    parser.add_argument("--beside", metavar="ARCH", help="another network, to compare the totals of the stages")
    add_options(parser, "--arch, not of --beside")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels a side (default: that of its recipe)")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="classes (default: 1000)")
    parser.add_argument(
        "--stages", action="store_true", help="print only the totals of the stages, as --beside always does"
    )
    parser.add_argument("--format", choices=("table", "csv"), default="table", help="what to print (default: table)")
    arguments = parser.parse_args()
    names = [arguments.arch, *([arguments.beside] if arguments.beside else [])]
    # Options are of the first network: with the same name twice, --set shows what an option changes.
    models = [
        model_with(name, options, num_classes=arguments.num_classes)
        for name, options in zip(names, (options_in(arguments), {}), strict=False)
    ]
    summaries = [_summary(name, model, arguments.image_size) for name, model in zip(names, models, strict=True)]
    if arguments.beside:
        header: Sequence[str] = (*_STAGES, "", *_STAGES)
        left, right = ([_stage_cells(total) for total in _totals(summary)] for summary in summaries)
        empty = ("",) * len(_STAGES)
        # The last rows, with the totals, stand side by side.
        rows = [(*a, "", *b) for a, b in zip_longest(left[:-1], right[:-1], fillvalue=empty)]
        rows.append((*left[-1], "", *right[-1]))
    elif arguments.stages:
        header, rows = _STAGES, [_stage_cells(total) for total in _totals(summaries[0])]
    else:
        header = (*_LAYERS, "output size")
        total = summaries[0].total()
        rows = [_layer_cells(layer) for layer in summaries[0].layers]
        rows.append(("total", "", _shape(total.outputs), *[""] * 4, *_sums(total), ""))
    if arguments.format == "csv":
        csv.writer(sys.stdout).writerows([header, *rows])
        return
    names[0] += "".join(f" {option}" for option in arguments.network_options or ())
    print(
        "; ".join(f"{name}, {s.image_size} x {s.image_size} pixels" for name, s in zip(names, summaries, strict=True))
    )
    _print_table(header, rows)


def _summary(name: str, model: Any, image_size: int | None) -> Summary:
    side = getattr(model, "image_size", None) or recipe_for(name, "photos").image_size
    return summarize(model, side if image_size is None else image_size)


def _totals(summary: Summary) -> list[Total]:
    return [*summary.stages(), summary.total()]


def _layer_cells(layer: Layer) -> tuple[str, ...]:
    window = (
        (f"{layer.window}x{layer.window}", str(layer.stride), str(layer.padding[0]), str(layer.groups))
        if layer.window
        else ("", "", "", "")
    )
    return (layer.name, layer.kind, _shape(layer.outputs), *window, *_sums(layer), layer.formula)


def _stage_cells(total: Total) -> tuple[str, ...]:
    return (total.stage, _shape(total.outputs), str(total.layers), *_sums(total))


def _sums(counts: Layer | Total) -> tuple[str, str, str]:
    return f"{counts.parameters}", f"{counts.multiply_adds}", f"{counts.activations}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns: numbers, with separators of thousands, to the right."""
    cells = [[f"{int(cell):,}" if cell.isdecimal() else cell for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *cells)) for column in range(len(header))]
    for number, row in enumerate((header, *cells)):
        texts = [
            text.rjust(width) if cell.isdecimal() or name in _RIGHT else text.ljust(width)
            for text, cell, width, name in zip(row, rows[number - 1] if number else row, widths, header, strict=True)
        ]
        print("  ".join(texts).rstrip())


_RIGHT = frozenset(("layers", "stride", "padding", "groups", "parameters", "multiply-adds", "bytes"))


if __name__ == "__main__":
    run(main)
