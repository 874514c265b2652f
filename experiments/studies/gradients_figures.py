"""The figures of the study of gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.studies.drawing import new_figure, spread_line, style
from experiments.studies.study import Drawing, Measured
from jaxnets.report.figures import COLOURS


def draw(measured: Sequence[Measured]) -> list[Drawing]:
    """The small network with its numbers, the agreement of batches, and the paths over the loss."""
    return [_draw_small(measured[0]["small"]), _draw_batches(measured), _draw_plane(measured[0]["plane"])]


def _draw_small(small: Measured) -> Drawing:
    figure, axes = new_figure(rows=2, height=2.7, width=5.0)
    nodes = [[(x, y) for y in (1, 0)] for x in (0, 1, 2)]
    names = (("x1", "x2"), ("h1", "h2"), ("p1", "p2"))
    errors: list[Any] = [None, *small["errors"]]
    for axis, title, edges, values in (
        (axes[0], "forward: weights and signals", small["weights"], small["signals"]),
        (axes[1], "backward: gradient and errors", small["gradient"], errors),
    ):
        for layer, kernel in enumerate(edges[::2]):
            for source in (0, 1):
                for target in (0, 1):
                    start, end = nodes[layer][source], nodes[layer + 1][target]
                    ends = (start, end) if axis is axes[0] else (end, start)
                    arrow = {"arrowstyle": "->", "color": "#999999", "shrinkA": 19, "shrinkB": 19}
                    axis.annotate("", ends[1], ends[0], arrowprops=arrow)
                    # Nearer to the source, where the two edges of a pair are apart.
                    x, y = (a + 0.3 * (b - a) for a, b in zip(start, end, strict=True))
                    text = f"{kernel[source][target]:.3g}" if axis is axes[0] else f"{kernel[source][target]:+.3f}"
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                    axis.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
        for layer, column in enumerate(nodes):
            for place, (x, y) in enumerate(column):
                axis.plot(x, y, "o", markersize=36, color="white", markeredgecolor=COLOURS[layer], markeredgewidth=1.5)
                value = values[layer]
                text = names[layer][place] if value is None else f"{names[layer][place]}\n{value[place]:.3f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(xlim=(-0.25, 2.25), ylim=(-0.4, 1.4))
        axis.set_axis_off()
    target = small["target"].index(1.0)
    return Drawing(
        "backpropagation",
        figure,
        f"A network of two pixels, two hidden units and two outputs for one image of class {target}. Signals go "
        f"forward to the probabilities {_pair(small['signals'][2])}; errors go backward: {_pair(errors[2])} at the "
        f"outputs, {_pair(errors[1])} at the hidden units",
        f"One image of class {target}. Above, signals: h = tanh(weights x signals), p = softmax; biases are 0. Below, "
        "errors: at the outputs p minus the target; at a hidden unit the errors after it times their weights, times "
        "1 - h². The gradient at each edge is the signal that enters it times the error behind it.",
    )


def _pair(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.3f}" for value in values)


def _draw_batches(measured: Sequence[Measured]) -> Drawing:
    figure, (left, right) = new_figure(2)
    sizes, places = measured[0]["sizes"], measured[0]["places"]
    for line, (name, place) in enumerate({"start": 0, "halfway": len(places) // 2, "end": -1}.items()):
        spread_line(left, sizes, [one["agreement"][place] for one in measured], name, line)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.set(xlabel="images in the batch", ylabel="cosine with the gradient of all images", ylim=(-0.02, 1.02))
    left.legend(frameon=False)
    directions = [[one["cosine"] for one in seed["directions"]] for seed in measured]
    spread_line(right, places[:-1], directions, "", 3)
    right.set(
        xlabel="step", ylabel="cosine of the downhill direction\nwith that to the last weights", ylim=(-0.02, 1.02)
    )
    first, last = (
        np.mean([one["agreement"][place] for one in measured], axis=0).round(2).tolist() for place in (0, -1)
    )
    return Drawing(
        "batches",
        figure,
        f"Left: mean cosine of a batch's gradient with that of all images for batches of {sizes}: {first} at the "
        f"start, {last} at the end. Right: cosine of the downhill direction with the direction to the last weights, "
        f"{np.mean(directions, axis=0)[0]:.2f} at the start, {np.min(np.mean(directions, axis=0)):.2f} at least",
        "Left: how well the gradient of a batch agrees with that of all images; 1 is the same direction. Right: "
        "whether the downhill direction points to where the descent with all images ends.",
    )


def _draw_plane(plane: Measured) -> Drawing:
    figure, axis = new_figure(height=3.8)
    losses = np.array(plane["losses"])
    levels = np.geomspace(losses.min(), losses.max(), 12)
    drawn = axis.contour(plane["x"], plane["y"], losses, levels=levels, colors="#999999", linewidths=0.8)
    # Above the paths, where the contour of each level crosses one line.
    line = losses[-len(losses) // 10]
    crossings = [np.abs(np.log(line / level)).argmin() for level in levels if line.min() < level < line.max()]
    places = [(plane["x"][place], plane["y"][-len(losses) // 10]) for place in crossings]
    axis.clabel(drawn, fmt="%.2g", fontsize=7, manual=places)
    for number, (name, label) in enumerate((("batched", "batches"), ("whole", "all images"))):
        x, y = plane["paths"][name]
        look = {**style(number), "marker": "", "linestyle": "-", "linewidth": (1.0, 2.2)[number]}
        axis.plot(x, y, label=label, **look)
        axis.plot(x[-1], y[-1], "os"[number], color=look["color"], markersize=6)
    axis.plot(*(coordinates[0] for coordinates in plane["paths"]["whole"]), "k*", markersize=10, label="start")
    axis.set(xlabel="first principal direction of both paths", ylabel="second principal direction")
    axis.legend(frameon=False, loc="lower center")
    return Drawing(
        "paths",
        figure,
        "The paths of gradient descent with all images and with batches over the contours of the loss of all images",
        f"Both paths of one seed, from the same start at the same rate, in the plane that holds most of them "
        f"({plane['share']:.0%} of their variance), with the loss of all images in that plane; the scales of the axes "
        "differ.",
    )
