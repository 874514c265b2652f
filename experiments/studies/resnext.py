"""ResNeXt: grouped convolutions, three forms of one block, and cardinality against width at equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from experiments.studies.data import subset
from experiments.studies.drawing import dots, new_figure
from experiments.studies.grouped import TABLE, as_dense, costs, differences, image_channels
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.models.registry import create_model
from jaxnets.summary import summarize
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """The sizes of the study: `cardinalities` of `TABLE` are trained, in networks of `blocks` bottlenecks a stage."""

    cardinalities: tuple[int, ...]
    blocks: int
    num_filters: int
    image_size: int
    images: int | None
    test_images: int | None
    epochs: int
    batch_size: int
    learning_rate: float

    def options(self, groups: int) -> dict[str, Any]:
        """The options of the network of a cardinality, as `--set` takes them."""
        return {
            "groups": groups,
            "width_per_group": dict(TABLE)[groups],
            "stage_sizes": [self.blocks] * 3,
            "num_filters": self.num_filters,
            "stem": "cifar",
        }


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """Costs, differences between equal forms, and what networks of equal cost learn."""
    inputs = image_channels(lab.dataset.train, settings.image_size)
    return {
        "costs": costs(),
        "own_costs": [own_cost(settings, groups, len(lab.dataset.class_names)) for groups in settings.cardinalities],
        "differences": lab.kept("differences", lambda: differences(inputs, lab.seed)),
        "trained": {
            f"{groups}x{dict(TABLE)[groups]}d": lab.kept(f"{groups} groups", partial(train, lab, settings, groups))
            for groups in settings.cardinalities
        },
    }


def own_cost(settings: Settings, groups: int, classes: int) -> list[int]:
    """Parameters and multiply-adds of a network that is trained here."""
    total = summarize(
        create_model("resnet50", num_classes=classes, **settings.options(groups)), settings.image_size
    ).total()
    return [total.parameters, total.multiply_adds]


def train(lab: Lab, settings: Settings, groups: int) -> dict[str, Any]:
    """What a network of a cardinality learns: its training loss, test accuracy, and a kernel as a dense one."""
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="momentum",
        learning_rate=settings.learning_rate,
        weight_decay=5e-4,
        label_smoothing=0.0,
    )
    data = subset(lab.dataset, lab.seed, settings.images, settings.test_images, val=False)
    trained = lab.train(Config("resnet50", recipe, network_options=settings.options(groups)), data)
    kernel = np.asarray(trained.variables["params"]["layer1_0"]["conv2"]["kernel"])
    return {
        "loss": trained.losses[-1],
        "accuracy": trained.on("test").metrics["accuracy"],
        "kernel": np.sqrt((as_dense(kernel, groups) ** 2).sum(axis=(0, 1))).tolist(),
    }


def cost_deviation(measured: Measured) -> float:
    """The largest relative deviation of parameters and multiply-adds from those of the first network, 1x64d."""
    first, *others = measured["costs"]
    keys = ("parameters", "multiply_adds")
    return max(abs(other[key] / first[key] - 1) for other in others for key in keys)


def _gain(measured: Measured) -> float:
    accuracies = [of["accuracy"] for of in measured["trained"].values()]
    return 100 * float(accuracies[-1] - accuracies[0])


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    first = measured[0]
    names = list(first["trained"])
    figure, (fit, test) = new_figure(2)
    losses = {name: [one["trained"][name]["loss"] for one in measured] for name in names}
    accuracies = {name: [100 * one["trained"][name]["accuracy"] for one in measured] for name in names}
    dots(fit, losses)
    dots(test, accuracies)
    fit.set_ylabel("training loss")
    test.set_ylabel("test accuracy, %")
    for axis in (fit, test):
        axis.set_xlabel("cardinality x width")
    said = ", ".join(f"{name} {np.mean(values):.1f} %" for name, values in accuracies.items())
    return [
        Drawing(
            "cardinality",
            figure,
            f"Test accuracy at equal cost: {said}",
            "Networks of equal cost after equally long training, a point for each seed, with the mean: their loss on "
            "the training images, and their accuracy on the test images.",
        ),
        _draw_kernels(first, names),
        _cost_table(first),
    ]


def _draw_kernels(measured: Measured, names: Sequence[str]) -> Drawing:
    figure, axes = new_figure(len(names), height=2.5, width=2.3 * len(names))
    for axis, name in zip(axes, names, strict=True):
        kernel = np.array(measured["trained"][name]["kernel"])
        axis.imshow(kernel / kernel.max(), cmap="Greys", vmin=0, vmax=1)
        axis.set_title(f"{name}: {len(kernel)} channels", fontsize=10)
        axis.grid(visible=False)
        axis.set_xlabel("to channel")
    axes[0].set_ylabel("from channel")
    return Drawing(
        "kernels",
        figure,
        f"The 3x3 kernels of {', '.join(names)} as dense ones: blocks along the diagonal, and zeros beside them",
        "The trained 3x3 kernel of the first block, as the kernel of a dense convolution: a group only connects its "
        "own channels. Dark are large weights, white is zero.",
    )


def _cost_table(measured: Measured) -> Table:
    first = measured["costs"][0]
    own = dict(zip(measured["trained"], measured["own_costs"], strict=True))
    rows: list[list[str | int]] = []
    for row in measured["costs"]:
        small = own.get(row["name"])
        changes = [f"{100 * (row[key] / first[key] - 1):+.1f} %" for key in ("parameters", "multiply_adds")]
        rows.append(
            [
                row["name"],
                f"{row['parameters'] / 1e6:.2f} ({changes[0]})",
                f"{row['multiply_adds'] / 1e9:.2f} ({changes[1]})",
                *(map("{:,}".format, small) if small else ("", "")),
            ]
        )
    return Table(
        "costs",
        "The cost of ResNet-50 (1x64d) and of ResNeXt-50 with other cardinalities, at 224 pixels; and of the small "
        "networks that are trained here.",
        (
            "cardinality x width",
            "parameters, millions",
            "multiply-adds, billions",
            "parameters of the small network",
            "its multiply-adds",
        ),
        rows,
    )


STUDY = Study(
    name="resnext",
    title="ResNeXt: cardinality at equal cost",
    why="A kernel of a grouped convolution sees only its group's channels; the weights saved pay for more channels. "
    " The three forms add the same products in another order: a sum over all channels is the sum "
    "of the sums over the groups. Table 2 keeps only the parameters of one block at about 70 thousand; in the first "
    "block of a stage the wider 1x1 convolution runs before the subsampling, so multiply-adds grow somewhat with the "
    "cardinality, and what more groups gain shows in large networks on many images.",
    source="Xie et al. 2017, sections 3.3, 3.4 and 5.1, figure 3, tables 2 and 3",
    claims=(
        Claim(
            "fewer-parameters",
            "A convolution in g groups has 1/g of the parameters and multiply-adds of a dense one.",
            "largest relative deviation from that, over the 3x3 convolutions of the networks of table 2",
            lambda one: max(row["deviation"] for row in one["costs"]),
            below=1e-9,
        ),
        Claim(
            "block-diagonal",
            "A grouped convolution is a dense one whose kernel is zero between the groups.",
            "largest difference of their outputs in float64, relative to the largest output",
            lambda one: one["differences"]["block_diagonal"],
            below=1e-10,
        ),
        Claim(
            "depthwise",
            "A depthwise convolution is the extreme: as many groups as channels, one kernel for each channel.",
            "largest difference from a loop over the channels in float64, relative to the largest output",
            lambda one: one["differences"]["depthwise"],
            below=1e-10,
        ),
        Claim(
            "three-forms",
            "The three forms of the block compute the same.",
            "largest difference of outputs and gradients in float64, relative to the largest value of each array",
            lambda one: one["differences"]["forms"],
            below=1e-10,
        ),
        Claim(
            "equal-cost",
            "The networks of table 2 cost the same.",
            "largest relative deviation of parameters and multiply-adds from those of 1x64d",
            cost_deviation,
            below=0.02,
        ),
        Claim(
            "cardinality",
            "At equal cost a larger cardinality is more accurate.",
            "test accuracy with the largest cardinality minus that with one group, in points",
            _gain,
            above=0.0,
            margin=1,
            scale="ImageNet and networks of ResNet-50's size, where the paper's table 3 finds 1.7 points",
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        cardinalities=(1, 4, 32),
        blocks=1,
        num_filters=16,
        image_size=16,
        images=800,
        test_images=2000,
        epochs=6,
        batch_size=50,
        learning_rate=0.1,
    ),
    full=Settings(
        cardinalities=(1, 2, 4, 8, 32),
        blocks=3,
        num_filters=64,
        image_size=32,
        images=None,
        test_images=None,
        epochs=30,
        batch_size=128,
        learning_rate=0.1,
    ),
    seconds=84,
    harder=True,
)
