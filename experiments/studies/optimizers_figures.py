"""The figures of the study of optimisers."""

from collections.abc import Sequence

import numpy as np

from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.optimizers_runs import NAMES, share_left
from experiments.studies.study import Drawing, Measured, Table


def draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    """Curves, effective rates, and the table of tuned rates."""
    epochs = range(1, measured[0]["epochs"] + 1)
    figure, (left, right) = new_figure(2)
    for place, (name, label) in enumerate(NAMES.items()):
        spread_line(left, epochs, [one[name]["losses"] for one in measured], label, place)
        accuracies = [[100 * value for value in one[name]["val_accuracies"]] for one in measured]
        spread_line(right, epochs, accuracies, label, place)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("val accuracy, %")
    # The first epochs would take most of the axis.
    right.set_ylim(bottom=100 * min(one[name]["val_accuracies"][-1] for one in measured for name in NAMES) - 15)
    for axis in (left, right):
        whole_epochs(axis)
    left.legend(frameon=False, fontsize=8)
    rates, axis = new_figure()
    for place, name in ((2, "adagrad"), (3, "rmsprop"), (4, "adam")):
        effective = np.array([one[name]["effective"] for one in measured])
        spread_line(axis, epochs, effective / effective[:, :1], NAMES[name], place)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    whole_epochs(axis)
    axis.set_ylabel("effective learning rate,\nshare of that after one epoch")
    axis.legend(frameon=False)
    losses = ", ".join(f"{_mean(measured, name, 'losses'):.2g} {label}" for name, label in NAMES.items())
    left_over = ", ".join(
        f"{np.mean([share_left(one, name) for one in measured]):.2g} {NAMES[name]}"
        for name in ("adagrad", "rmsprop", "adam")
    )
    return [
        Drawing(
            "curves",
            figure,
            f"Training loss and val accuracy by epoch for five optimisers; final losses {losses}",
            "Training loss and val accuracy at constant rates, mean and range over the seeds. Ten rates, "
            "each double the one before, were tried with another seed; the one with the highest val accuracy is drawn.",
        ),
        Drawing(
            "effective",
            rates,
            f"The effective learning rate as a share of that after the first epoch; at the end {left_over}",
            "The median over the weights of the factor by which the next step multiplies the gradient. Adagrad "
            "divides by the root of the sum of all squared gradients, RMSProp and Adam by that of a recent mean; the "
            "factor of SGD and momentum is constant.",
        ),
        Table(
            "tuned",
            f"The rates that were chosen, the steps to a training loss of {measured[0]['loss']:g} at the rate that is "
            "fastest with another seed, and the test accuracy, for each seed.",
            ("optimiser", "rate", "steps", "steps, all images in each", "test accuracy"),
            [
                [
                    label,
                    ", ".join(f"{one[name]['rate']:.2g}" for one in measured),
                    ", ".join(str(one[name]["steps"]) for one in measured),
                    ", ".join(str(one[name].get("whole_steps", "")) for one in measured).strip(", "),
                    ", ".join(f"{one[name]['test_accuracy']:.1%}" for one in measured),
                ]
                for name, label in NAMES.items()
            ],
        ),
    ]


def _mean(measured: Sequence[Measured], name: str, curve: str) -> float:
    return float(np.mean([one[name][curve][-1] for one in measured]))
