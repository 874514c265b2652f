"""The figures of the study of GoogLeNet."""

from collections.abc import Sequence

import numpy as np

from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.googlenet_costs import cost_table
from experiments.studies.googlenet_runs import BRANCHES, DRAWN_BLOCK, DRAWN_MAPS, SIDES, gain
from experiments.studies.study import Drawing, Measured, Table


def draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    """Maps of the branches, gradients and accuracies with auxiliary classifiers, and the costs."""
    return [_branches(measured), _auxiliary(measured), cost_table(measured[0]["counts"])]


def _branches(measured: Sequence[Measured]) -> Drawing:
    one = measured[0]["with"]
    whole = np.mean([each["with"]["test_accuracy"] for each in measured])
    left = {name: np.mean([each["with"]["without_branch"][name] for each in measured]) for name in BRANCHES}
    figure, axes = new_figure(1 + len(BRANCHES), DRAWN_MAPS, width=5.6, height=1.25)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(np.array(one["image"], np.uint8))
    axes[0, 0].set_title(f"image\n{whole:.0%} correct", fontsize=9)
    for column, (name, maps) in enumerate(one["maps"].items(), 1):
        for row, values in enumerate(maps):
            axes[row, column].imshow(values, cmap="gray")
        axes[0, column].set_title(f"{name}\n{left[name]:.0%} without", fontsize=9)
    listed = ", ".join(f"{accuracy:.0%} without {name}" for name, accuracy in left.items())
    return Drawing(
        "branches",
        figure,
        f"An image, and three maps of each branch of a block; test accuracy {whole:.0%} with all branches, {listed}",
        f"An enlarged test image, and for each branch of {DRAWN_BLOCK} the three maps that vary most (bright: large "
        "values; each map has its own scale). Above them, the test accuracy, mean over the seeds, of the same trained "
        "networks when all branches of that kind output zeros.",
    )


def _auxiliary(measured: Sequence[Measured]) -> Drawing:
    figure, (left, right) = new_figure(2, height=3.8)
    stages = list(measured[0]["plain"]["with"])
    lines = [(network, side) for network in ("plain", "normalised") for side in SIDES]
    for place, (network, side) in enumerate(lines):
        norms = [[one[network][side][stage] for stage in stages] for one in measured]
        label = f"{'2014' if network == 'plain' else 'batch norm'}, {side}"
        spread_line(left, range(len(stages)), norms, label, place)
    for place, side in enumerate(SIDES):
        accuracies = 100 * np.array([one[side]["accuracies"] for one in measured])
        spread_line(right, range(1, accuracies.shape[1] + 1), accuracies, side, place)
    left.set_yscale("log")
    left.set_xticks(range(len(stages)), [stage.removeprefix("inception") for stage in stages], rotation=90)
    left.set_ylabel("norm of the first gradient")
    left.legend(frameon=False, fontsize=8, loc="lower right", title="auxiliary classifiers", title_fontsize=8)
    right.set_ylabel("training accuracy, %")
    right.legend(frameon=False, fontsize=8, loc="lower right", title="auxiliary classifiers", title_fontsize=8)
    whole_epochs(right)
    gains = [np.mean([gain(one, network) for one in measured]) for network in ("plain", "normalised")]
    tested = [np.mean([one[side]["test_accuracy"] for one in measured]) for side in SIDES]
    return Drawing(
        "auxiliary",
        figure,
        f"With auxiliary classifiers the first gradient of the early stages is {gains[0]:.1f} times as large in the "
        f"network of 2014, and {gains[1]:.1f} times with batch normalisation; test accuracy {tested[0]:.1%} with and "
        f"{tested[1]:.1%} without them",
        "Networks with and without auxiliary classifiers, which read 4a and 4d; mean and range over the seeds. Left: "
        "norm of the gradient of each stage before the first step. Right: accuracy of the main classifier on the "
        f"training images; test accuracy at the end {tested[0]:.1%} with, {tested[1]:.1%} without.",
    )
