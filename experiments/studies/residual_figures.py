"""The figures of the study of depth."""

from collections.abc import Sequence

import numpy as np

from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.residual_runs import NAMES
from experiments.studies.study import Drawing, Measured, Table


def draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    """Training curves and gradients by depth, and the kernels of two blocks."""
    rows = [(name, *row) for name, kernels in measured[0]["kernels"].items() for row in kernels]
    caption = "The convolutions of a bottleneck of ResNet-50, and two 3x3 convolutions between as many channels."
    table = Table("blocks", caption, ("block", "window", "channels", "parameters"), rows)
    return [_curves(measured), _gradients(measured), table]


def _curves(measured: Sequence[Measured]) -> Drawing:
    layers = measured[0]["layers"]
    figure, axes = new_figure(2, sharey=True)
    finals = []
    for axis, name in zip(axes, NAMES, strict=True):
        for place, depth in enumerate(layers):
            losses = [one[f"{name} {depth}"]["losses"] for one in measured]
            spread_line(axis, range(1, len(losses[0]) + 1), losses, f"{depth} layers", place)
            finals.append(f"{name}, {depth} layers: {np.mean(losses, axis=0)[-1]:.2f}")
        axis.set_title(f"{name} networks", fontsize=11)
        whole_epochs(axis)
    axes[0].set_ylabel("training loss")
    axes[0].set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    return Drawing(
        "degradation",
        figure,
        f"Training loss by epoch; in the last one {'; '.join(finals)}",
        "Training loss, mean and range over the seeds: left without shortcuts, right with them.",
    )


def _gradients(measured: Sequence[Measured]) -> Drawing:
    depth = measured[0]["layers"][-1]
    figure, axes = new_figure(2)
    lines = [(axes[0], "first", "", " without norm"), (axes[1], "first", ", start", ""), (axes[1], "last", ", end", "")]
    ends = []
    for place, (axis, time, when, suffix) in enumerate(lines):
        for number, name in enumerate(NAMES):
            norms = np.array([one[f"{name} {depth}{suffix}"][time] for one in measured])
            spread_line(axis, range(1, norms.shape[1] + 1), norms, name + when, number + 2 * (place > 1))
            first, *_, last = norms.mean(axis=0)
            ends.append(f"{name}{suffix}{when}: {first:.1f} in the first convolution, {last:.1f} in the last")
    for axis, title in zip(axes, ("without batch norm, start", "with batch norm"), strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("convolution")
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("log10 of the gradient's norm")
    return Drawing(
        "gradients",
        figure,
        f"Log10 of the gradient's norm by convolution, in networks of {depth} layers; {'; '.join(ends)}",
        f"Norm of the gradient of each convolution of networks of {depth} layers, from the image on, mean and range "
        "over the seeds: left at the start, right at the start and in the last epoch. Norms below 1e-38 are drawn at "
        "-38.",
    )
