"""The figures of the study of transfer."""

from collections.abc import Sequence

import numpy as np

from experiments.studies.drawing import new_figure, spread_line, style
from experiments.studies.study import Drawing, Measured
from experiments.studies.transfer_runs import OWN, RANGE, WAYS, final


def draw(measured: Sequence[Measured]) -> list[Drawing]:
    """Accuracy over steps and images, and with other preprocessing."""
    first = measured[0]
    few, ways = first["few"], ("scratch", *WAYS)
    figure, (sooner, fewer) = new_figure(2, sharey=True)
    for place, way in enumerate(ways):
        label = "from scratch" if way == "scratch" else way
        curves = [[100 * value for value in one["curves"][str(few)][way]] for one in measured]
        steps = [first["steps_an_epoch"] * epoch for epoch in range(1, len(curves[0]) + 1)]
        spread_line(sooner, steps, curves, label, place)
        finals = [[100 * final(one, way, images) for images in one["images"]] for one in measured]
        spread_line(fewer, first["images"], finals, label, place)
    sooner.set_title(f"{few} images of each class", fontsize=11)
    sooner.set_xlabel("steps")
    sooner.set_ylabel("test accuracy, %")
    fewer.set_title("at the end", fontsize=11)
    fewer.set_xscale("log")
    fewer.set_xticks(first["images"], list(map(str, first["images"])))
    fewer.minorticks_off()
    fewer.set_xlabel("training images of each class")
    fewer.legend(frameon=False, loc="lower right")
    ends = ", ".join(f"{way} {100 * np.mean([final(one, way, few) for one in measured]):.0f} %" for way in ways)
    return [
        Drawing(
            "curves",
            figure,
            f"Test accuracy by step and by number of images; with {few} images of each class the ends are {ends}",
            "Test accuracy on the new classes, mean and range over the seeds, after training on the other classes and "
            "from scratch.",
        ),
        _draw_normalisations(measured),
    ]


def _draw_normalisations(measured: Sequence[Measured]) -> Drawing:
    few = measured[0]["few"]
    groups = {
        "as it is": {name: [one["as_it_is"][name] for one in measured] for name in measured[0]["as_it_is"]},
        **{
            f"{way}, fine-tuned": {
                OWN: [final(one, way, few) for one in measured],
                RANGE: [one["wrong"][way][-1] for one in measured],
            }
            for way in ("head", "full")
        },
    }
    rows = [(f"{name}: {group}", values) for group, of in groups.items() for name, values in of.items()]
    figure, axis = new_figure(height=3.0)
    for place, (name, values) in enumerate(rows):
        look = style(int(not name.startswith(OWN)))
        axis.plot([100 * value for value in values], [place] * len(values), look["marker"], color=look["color"])
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 103)
    axis.set_xlabel("test accuracy, %")
    means = ", ".join(f"{name} {100 * np.mean(values):.0f} %" for name, values in rows)
    return Drawing(
        "preprocessing",
        figure,
        f"Test accuracy by normalisation: {means}",
        "The pretrained network with images that are normalised otherwise than in its training, a point for each seed: "
        f"as it is, on its own classes; and fine-tuned on {few} images of each new class.",
    )
