"""The drawings of a report, as SVG."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnets.report.page import escape

# Okabe and Ito's colours, which most colour-blind readers tell apart; the dashes help in grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#666666")
DASHES = ("-", "--", "-.", ":")
_MAX_POINTS = 400
_MAX_CELLS = 250
# Classes that a confusion matrix names, and letters of a name.
_MAX_NAMED = 20
_MAX_NAME = 24


class Curve(NamedTuple):
    """A line of a plot; `place` gives its colour and dashes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    place: int
    dots: bool = False


def curves(title: str, lines: Sequence[Curve], x_name: str, *, legend: bool = True) -> str:
    """Lines over steps or epochs."""
    figure, axis = _figure(4.3, 2.9)
    for line in lines:
        x, y = _thinned(line.x, line.y)
        axis.plot(
            x,
            y,
            color=COLOURS[line.place % len(COLOURS)],
            linestyle=DASHES[line.place // len(COLOURS) % len(DASHES)],
            label=line.label,
            marker="o" if line.dots and len(x) <= 40 else None,
            markersize=3.5,
            linewidth=1.6,
        )
    axis.set_title(title, fontsize=12)
    axis.set_xlabel(x_name)
    if x_name == "epoch":
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False)
    described = ", ".join(f"{line.label}: from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
    return svg_of(figure, f"{title} by {x_name}; {described}")


def gradient_map(norms: np.ndarray, steps: Sequence[int], layers: Sequence[str]) -> str:
    """The norms of gradients [S, L] of layers, from the first at the top, over the steps, by colours on a log scale."""
    # A row of pixels for each layer; neighbouring steps are joined.
    groups = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_CELLS))
    with np.errstate(divide="ignore"):
        logs = np.log10(np.stack([norms[group].mean(axis=0) for group in groups], axis=1))
    logs[~np.isfinite(logs)] = np.nan
    named = range(0, len(layers), -(-len(layers) // _MAX_NAMED))
    margin = 0.075 * max(min(len(layers[index]), _MAX_NAME) for index in named)
    width, height = 4.6 + margin, max(2.4, 1.1 + 0.2 * len(named))
    figure, axis = _figure(width, height)
    figure.subplots_adjust(left=(margin + 0.3) / width, right=1 - 0.5 / width)
    extent = (steps[0] - 0.5, steps[-1] + 0.5, len(layers) - 0.5, -0.5)
    image = axis.imshow(logs, cmap="viridis", aspect="auto", interpolation="none", extent=extent)
    axis.set_yticks(named, [shortened(layers[index], _MAX_NAME) for index in named], fontsize=8)
    axis.set_xlabel("step")
    bar = figure.colorbar(image, ax=axis, fraction=0.046)
    bar.ax.set_title("log10", fontsize=8)
    return svg_of(figure, f"Norms of the gradients of {len(layers)} layers over {len(steps)} logged steps")


def swatch(place: int) -> str:
    """A piece of the line of a curve, for a legend."""
    gaps = ("", "6 3", "6 2 2 2", "2 2")[place // len(COLOURS) % 4]
    colour = COLOURS[place % len(COLOURS)]
    return (
        f'<svg viewBox="0 0 32 12" aria-hidden="true"><path d="M0 6H32" stroke="{colour}" stroke-width="4" '
        f'stroke-dasharray="{gaps}"/></svg>'
    )


def reliability(confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, error: float) -> str:
    """The accuracy of the images of each range of confidence [B], beside the confidence, and the counts of images."""
    figure, (axis, below) = _figure(4.4, 4.8, height_ratios=(4, 1))
    present = counts > 0
    edges = np.linspace(0, 1, len(counts) + 1)
    axis.plot([0, 1], [0, 1], color="#777777", linestyle=":", label="perfectly calibrated")
    axis.plot(confidence[present], accuracy[present], color=COLOURS[0], marker="o", markersize=5, label="network")
    axis.set(xlim=(0, 1.01), ylim=(0, 1.02), ylabel="accuracy")
    axis.legend(frameon=False)
    below.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=COLOURS[4], edgecolor="white")
    below.set(xlim=(0, 1.01), ylabel="images", xlabel="probability of the prediction")
    for one in (axis, below):
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return svg_of(figure, f"Reliability curve; expected calibration error {100 * error:.1f} %")


def confusion_image(counts: np.ndarray, class_names: Sequence[str] = ()) -> str:
    """The shares of each class [K, K] that are predicted as each class, as a picture.

    Up to 20 classes are named, if names are given, and their cells have the numbers of images. With many classes, a
    cell shows the largest share of neighbouring classes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(shares)
    step = -(-size // _MAX_CELLS)
    padding = -size % step
    shares = np.pad(shares, ((0, padding), (0, padding)))
    cells = shares.reshape(len(shares) // step, step, -1, step).max(axis=(1, 3))
    if 0 < len(class_names) <= _MAX_NAMED:
        margin = 0.075 * min(max(map(len, class_names)), _MAX_NAME)
        side = max(3.5, 0.4 * size)
        width, height = side + margin + 1.8, side + margin + 1
        figure, axis = _figure(width, height)
        left, right, bottom = (margin + 0.7) / width, 1 - 0.6 / width, (margin + 0.7) / height
        figure.subplots_adjust(left=left, right=right, bottom=bottom)
    else:
        figure, axis = _figure(4.8, 4.2)
        figure.subplots_adjust(right=0.88)
    extent = (-0.5, len(shares) - 0.5, len(shares) - 0.5, -0.5)
    # The square root shows single errors.
    image = axis.imshow(np.sqrt(cells), cmap="Blues", vmin=0, vmax=1, interpolation="none", extent=extent)
    axis.set(xlabel="predicted class", ylabel="class", xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    if 0 < len(class_names) <= _MAX_NAMED:
        _name_cells(axis, counts, cells, class_names)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(["0 %", "1 %", "10 %", "25 %", "50 %", "100 %"])
    return svg_of(figure, f"Confusion matrix of {size} classes; the table of confusions has its largest numbers")


def _name_cells(axis: Any, counts: np.ndarray, cells: np.ndarray, class_names: Sequence[str]) -> None:
    names = [shortened(name, _MAX_NAME) for name in class_names]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if cells[row, column] > 0.3 else "black"
            axis.text(column, row, f"{count}", color=colour, ha="center", va="center", fontsize=8)


def shortened(name: str, length: int) -> str:
    """The name, with dots in the middle if it is longer than `length`."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}\N{HORIZONTAL ELLIPSIS}{name[-end:]}"


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points: the means of neighbours."""
    values = np.array([x, y], float)
    count = values.shape[1]
    if count <= _MAX_POINTS:
        return values[0], values[1]
    bounds = np.linspace(0, count, _MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*bounds, count])
    means = np.add.reduceat(values, bounds, axis=1) / sizes
    return means[0], means[1]


def _figure(width: float, height: float, **rows: Any) -> tuple[Any, Any]:
    # pyplot would need a display and keep figures alive. A layout that is computed draws each figure several times.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.15 / width, bottom=0.55 / height, top=1 - 0.35 / height)
    return figure, figure.subplots(len(next(iter(rows.values()), "1")), **rows)


def svg_of(figure: Any, label: str) -> str:
    """A matplotlib figure as SVG for a page, with a text for those who can't see it."""
    from matplotlib import rc_context

    for drawn in (figure, *figure.axes):
        drawn.patch.set_alpha(0)
    buffer = io.StringIO()
    # The browser has fonts for names in any script; matplotlib has not, and warns.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # The names of groups would be there twice in a page, and matplotlib's font is not on phones.
    text = re.sub(r' id="[a-zA-Z0-9.]+_[0-9]+"', "", text)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    text = re.sub(r' (width|height)="[0-9.]+pt"', "", text, count=2)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
