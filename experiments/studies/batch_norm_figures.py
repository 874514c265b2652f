"""The figures of the study of batch normalisation."""

from collections.abc import Sequence

import numpy as np

from experiments.studies.batch_norm_inside import SHOWN_CHANNELS
from experiments.studies.batch_norm_runs import BINS, MOST_LOSS, SHOWN, largest_rate, slope
from experiments.studies.drawing import new_figure, spread_line, style
from experiments.studies.study import Drawing, Measured, Table

_LINES = [{name: style(place)[name] for name in ("color", "linestyle")} for place in range(SHOWN_CHANNELS)]


def draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    """Histograms, learning rates, batch sizes, and the table of modes."""
    return [_histograms(measured[0]), _rates(measured), _sizes(measured), _modes(measured)]


def _histograms(measured: Measured) -> Drawing:
    figure, axes = new_figure(2, height=2.8)
    for axis, title, channels in zip(axes, ("before", "after"), measured["histograms"], strict=True):
        for place, heights in enumerate(channels):
            axis.stairs(heights, BINS, label=f"channel {place + 1}", **_LINES[place], linewidth=1.5)
        axis.set_title(f"{title} normalisation", fontsize=11)
        axis.set_xlabel("value")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False)
    return Drawing(
        "histograms",
        figure,
        "Distributions of the values of three channels in a batch: before normalisation with other means and "
        "widths, after it all around 0 with the same width",
        f"Values of three channels of {SHOWN} in a batch of training images. Their means and variances become "
        "equal; the shapes of the distributions stay.",
    )


def _rates(measured: Sequence[Measured]) -> Drawing:
    first = measured[0]
    figure, axis = new_figure()
    for place, name in enumerate(("with", "without")):
        finals = [[losses[-1] for losses in one[name]] for one in measured]
        spread_line(axis, first["rates"], finals, f"{name} BatchNorm", place)
    axis.axhline(np.log(first["classes"]), color="#666666", linewidth=1, linestyle=":")
    axis.annotate("guessing", (first["rates"][0], np.log(first["classes"])), (0, 3), textcoords="offset points")
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"final training loss, at most {MOST_LOSS:g}")
    axis.legend(frameon=False)
    ends = [np.mean([largest_rate(one, name) for one in measured]) for name in ("with", "without")]
    return Drawing(
        "rates",
        figure,
        f"Final training loss by learning rate: with BatchNorm the network learns at rates up to {ends[0]:.2g}, "
        f"without it up to {ends[1]:.2g}",
        "The same network at the same rates, with and without BatchNorm: mean and range over the seeds.",
    )


def _sizes(measured: Sequence[Measured]) -> Drawing:
    figure, axes = new_figure(2)
    sizes = measured[0]["sizes"]
    spread_line(axes[0], sizes, [[100 * value for value in one["batches"]] for one in measured], "whole batches", 0)
    label = f"groups in a batch of {sizes[-1]}"
    spread_line(axes[0], sizes, [[100 * value for value in one["local"]] for one in measured], label, 1)
    axes[0].set_ylabel("test accuracy, %")
    for kind, name in enumerate(("mean", "variance")):
        spread_line(axes[1], sizes, [[errors[kind] for errors in one["errors"]] for one in measured], name, kind)
    start = np.mean([errors for one in measured for errors in one["errors"][:1]])
    axes[1].plot(sizes, start * (np.array(sizes) / sizes[0]) ** -0.5, ":", color="#666666", label="slope -1/2")
    axes[1].set_yscale("log", base=2)
    axes[1].yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes[1].set_ylabel("error of the batch's statistics")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("images normalised together")
        axis.legend(frameon=False)
    slopes = [np.mean([slope(one, kind) for one in measured]) for kind in (0, 1)]
    return Drawing(
        "sizes",
        figure,
        f"Left: test accuracy by the number of images normalised together, "
        f"{100 * np.mean([one['batches'][0] for one in measured]):.0f} % with one and "
        f"{100 * np.mean([one['batches'][-1] for one in measured]):.0f} %. Right: the errors of a batch's mean and "
        f"variance have slopes of {slopes[0]:.2f} and {slopes[1]:.2f} in logarithms",
        "Left: accuracy in eval mode after training on equally many images, with batches of this size at rates in "
        f"proportion to it, or with batches of {sizes[-1]} whose groups of this size are normalised apart, as "
        "replicas with local statistics do. Right: how far mean (in standard deviations) and variance (relative) "
        "of a batch are from those of the training images.",
    )


def _modes(measured: Sequence[Measured]) -> Table:
    rows = [
        [text, " ".join(f"{100 * one[key]:.1f}" for one in measured)]
        for text, key in (
            ("eval mode", "eval"),
            ("training mode, batches of all classes", "train_mixed"),
            ("training mode, batches of two images", "train_pairs"),
            ("training mode, batches of one class", "train_one_class"),
            ("trained and evaluated in eval mode", "trained_in_eval_mode"),
        )
    ]
    caption = "Accuracy on test images in either mode of the network, for each seed."
    return Table("modes", caption, ("mode", "accuracy, %"), rows)
