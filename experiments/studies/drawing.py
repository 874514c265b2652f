"""The look of the studies' figures: colours, markers and dashes that are told apart in grey too."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxnets.report.figures import COLOURS

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")


def new_figure(columns: int = 1, rows: int = 1, *, height: float = 3.2, width: float = 0.0, **options: Any) -> Any:
    """A figure and its axes [columns], [rows, columns], or one; `options` are those of `Figure.subplots`."""
    figure = Figure(figsize=(width or (4.6 if columns == 1 else 3.4 * columns), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for axis in np.ravel(axes):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def style(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line at `place`."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _DASHES[place % len(_DASHES)],
        "markersize": 4,
        "linewidth": 1.5,
    }


def spread_line(axis: Any, x: Sequence[float], values: Any, label: str, place: int) -> None:
    """The mean of `values` [seeds, x] as a line, and their range as a band."""
    values = np.asarray(values, float)
    look = style(place)
    if len(x) > 25:
        look["markevery"] = len(x) // 12
    axis.plot(x, values.mean(axis=0), label=label, **look)
    if len(values) > 1:
        axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)


def dots(axis: Any, groups: Mapping[str, Sequence[float]]) -> None:
    """A point for each seed's value, side by side, and a line at their mean, for each group."""
    for position, (name, values) in enumerate(groups.items()):
        look = style(position)
        offsets = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
        axis.plot(position + offsets, values, look["marker"], color=look["color"], markersize=5, alpha=0.8, label=name)
        axis.hlines(np.mean(values), position - 0.32, position + 0.32, color=look["color"], linewidth=2)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_xlim(-0.6, len(groups) - 0.4)


def whole_epochs(axis: Any) -> None:
    """Ticks at whole numbers, for an axis of epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
