"""GoogLeNet: branches of several scales, 1x1 reductions, auxiliary classifiers, and average pooling at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.inspection import feature_maps
from jaxnets.models.googlenet import GoogLeNet
from jaxnets.models.registry import create_model
from jaxnets.summary import summarize
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

# The last layer of each branch of a block.
BRANCHES = {"1x1": "branch1", "3x3": "branch2_1", "5x5": "branch3_1", "pooling": "branch4_1"}
# The reductions, and the convolutions that read their outputs.
REDUCTIONS = {"branch2_0": "branch2_1", "branch3_0": "branch3_1"}
# The stages that the first auxiliary classifier reads.
EARLY = ("conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a")
_DRAWN_BLOCK, _DRAWN_MAPS = "inception3a", 3
_SIDES = {"with": "with auxiliary classifiers", "without": "without"}


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. Maps are drawn for an image of `map_size`, and costs counted for one of `counted_size`
    pixels a side.
    """

    image_size: int
    images: int | None
    test_images: int | None
    epochs: int
    batch_size: int
    learning_rate: float
    map_size: int
    arch: str = "googlenet"
    options: dict[str, Any] = field(default_factory=lambda: {"branch3_window": 5})
    aux_weight: float = 0.3
    counted_size: int = 224


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The costs of the paper's network, and what networks with and without auxiliary classifiers learn."""
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="momentum",
        learning_rate=settings.learning_rate,
        weight_decay=1e-4,
        label_smoothing=0.0,
        aux_weight=settings.aux_weight,
    )
    data = subset(lab.dataset, lab.seed, settings.images, settings.test_images, val=False)

    def train(helped: bool) -> dict[str, Any]:
        options = settings.options | {"aux_logits": helped}
        config = Config(settings.arch, recipe, network_options=options, log_gradients=True)
        trained = lab.train(config, data)
        first_epoch = stage_norms(trained)[: trained.run.feed.steps_through(1)]
        norms = first_epoch[np.isfinite(first_epoch).all(axis=1)].mean(axis=0)
        return {
            "accuracies": np.nan_to_num(trained.accuracies).tolist(),  # 0 in an epoch whose steps all failed
            "test_accuracy": trained.on("test").metrics["accuracy"],
            "norms": dict(zip(stages_of(trained), norms.tolist(), strict=True)),
            **(inspect(trained, settings.map_size) if helped else {}),
        }

    sides = {name: lab.kept(name, partial(train, name == "with")) for name in _SIDES}
    return {"counts": counts(settings.counted_size), **sides}


def inspect(trained: Trained, map_size: int) -> dict[str, Any]:
    """The test accuracy without each kind of branch, and maps of each branch for the first test image."""
    test, variables = trained.run.dataset.parts["test"], trained.variables
    without = {
        name: trained.evaluate(without_branch(variables, branch), test).metrics["accuracy"]
        for name, branch in BRANCHES.items()
    }
    enlarged = replace(trained.run.preprocessing, crop_size=map_size, resize_size=map_size)
    pixels = enlarged.pixels(test[0].image)
    images = np.asarray(enlarged.normalise(jnp.asarray(pixels[None])))
    outputs = feature_maps(trained.run.network, variables, images, _DRAWN_BLOCK)
    maps = {}
    for name, branch in BRANCHES.items():
        channels = np.moveaxis(outputs[f"{_DRAWN_BLOCK}/{branch}"][0], -1, 0)
        strongest = np.argsort(-channels.std(axis=(1, 2)), kind="stable")[:_DRAWN_MAPS]
        maps[name] = channels[strongest].round(4).tolist()
    return {"without_branch": without, "image": pixels.tolist(), "maps": maps}


def without_branch(variables: Mapping[str, Any], branch: str) -> dict[str, Any]:
    """The variables of a network in which a branch of each block outputs zeros, as all parameters of its last layer
    are zero.
    """
    params = {
        name: {**module, branch: jax.tree.map(jnp.zeros_like, module[branch])} if branch in module else module
        for name, module in variables["params"].items()
    }
    return {**variables, "params": params}


def stages_of(trained: Trained) -> list[str]:
    """The stages that have parameters, in order, without auxiliary classifiers."""
    own = {layer.split("/")[0] for layer in trained.layers}
    return [stage for stage in GoogLeNet.stages if stage in own]


def stage_norms(trained: Trained) -> np.ndarray:
    """The norms of the gradients of `stages_of` before each step, [steps, stages]."""
    modules = np.array([layer.split("/")[0] for layer in trained.layers])
    squares = trained.gradient_norms**2
    return np.stack([np.sqrt(squares[:, modules == stage].sum(axis=1)) for stage in stages_of(trained)], axis=1)


@cache
def counts(image_size: int) -> dict[str, list[int]]:
    """Parameters and multiply-adds of the paper's network, of two networks without its savings, and of dense layers.

    "unreduced": the 3x3 and 5x5 convolutions read the input of the block. "flattened": the classifier reads the last
    map. "classifier" and "alexnet": the dense layers of this network, and of that of Krizhevsky et al. 2012.
    """
    summary = summarize(create_model("googlenet_2014", aux_logits=False), image_size)
    layers = {layer.name: layer for layer in summary.layers}
    total = np.array([summary.total().parameters, summary.total().multiply_adds])
    unreduced = total.copy()
    for name, reduction in layers.items():
        block, _, place = name.partition("/")
        if (branch := place.removesuffix("/conv")) in REDUCTIONS:
            reader = layers[f"{block}/{REDUCTIONS[branch]}/conv"]
            more = reader.window**2 * (reduction.inputs[2] - reader.inputs[2]) * reader.outputs[2]
            unreduced += (more, more * prod(reader.outputs[:2]))
            unreduced -= (reduction.parameters, reduction.multiply_adds)
    classifier, (height, width, _) = layers["fc"], summary.stage_outputs["inception5b"]
    more = (height * width - 1) * prod((*classifier.inputs, *classifier.outputs))
    alexnet = summarize(create_model("alexnet_2012"), image_size)
    dense = [layer for layer in alexnet.layers if layer.kind == "Dense"]
    return {
        "googlenet": total.tolist(),
        "unreduced": unreduced.tolist(),
        "flattened": (total + more).tolist(),
        "classifier": [classifier.parameters, classifier.multiply_adds],
        "alexnet": [sum(layer.parameters for layer in dense), sum(layer.multiply_adds for layer in dense)],
    }


def _ratio(one: Measured, name: str, place: int) -> float:
    return float(one["counts"][name][place] / one["counts"]["googlenet"][place])


def _smallest_drop(one: Measured) -> float:
    return float(one["with"]["test_accuracy"] - max(one["with"]["without_branch"].values()))


def _early_norm(one: Measured, side: str) -> float:
    return float(np.linalg.norm([norm for stage, norm in one[side]["norms"].items() if stage in EARLY]))


def _first_half(one: Measured, side: str) -> float:
    accuracies = one[side]["accuracies"]
    return float(np.mean(accuracies[: -(-len(accuracies) // 2)]))


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    return [_branches(measured), _auxiliary(measured), _costs(measured[0]["counts"])]


def _branches(measured: Sequence[Measured]) -> Drawing:
    one = measured[0]["with"]
    whole = np.mean([each["with"]["test_accuracy"] for each in measured])
    left = {name: np.mean([each["with"]["without_branch"][name] for each in measured]) for name in BRANCHES}
    figure, axes = new_figure(1 + len(BRANCHES), _DRAWN_MAPS, width=5.6, height=1.25)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[1, 0].imshow(np.array(one["image"], np.uint8))
    axes[1, 0].set_title(f"image\n{whole:.0%} correct", fontsize=9)
    for column, (name, maps) in enumerate(one["maps"].items(), 1):
        for row, values in enumerate(maps):
            axes[row, column].imshow(values, cmap="gray")
        axes[0, column].set_title(f"{name}\n{left[name]:.0%} without", fontsize=9)
    listed = ", ".join(f"{accuracy:.0%} without {name}" for name, accuracy in left.items())
    return Drawing(
        "branches",
        figure,
        f"An image, and three maps of each branch of a block; test accuracy {whole:.0%} with all branches, {listed}",
        f"An enlarged test image, and for each branch of {_DRAWN_BLOCK} the three maps that vary most (bright: large "
        "values; each map has its own scale). Above them, the test accuracy, mean over the seeds, of the same trained "
        "networks when all branches of that kind output zeros.",
    )


def _auxiliary(measured: Sequence[Measured]) -> Drawing:
    figure, (left, right) = new_figure(2, height=3.6)
    stages = list(measured[0]["with"]["norms"])
    for place, (side, label) in enumerate(_SIDES.items()):
        norms = [[one[side]["norms"][stage] for stage in stages] for one in measured]
        spread_line(left, range(len(stages)), norms, label, place)
        accuracies = 100 * np.array([one[side]["accuracies"] for one in measured])
        spread_line(right, range(1, accuracies.shape[1] + 1), accuracies, label, place)
    left.axvline(stages.index(EARLY[-1]), color="0.5", linewidth=1, linestyle=":")
    left.axvline(stages.index("inception4d"), color="0.5", linewidth=1, linestyle=":")
    left.set_yscale("log")
    left.set_xticks(range(len(stages)), [stage.removeprefix("inception") for stage in stages], rotation=90)
    left.set_ylabel("gradient norm, first epoch")
    right.set_ylabel("training accuracy, %")
    right.legend(frameon=False, loc="lower right")
    whole_epochs(right)
    gain = np.mean([_early_norm(one, "with") / _early_norm(one, "without") for one in measured])
    tested = [np.mean([one[side]["test_accuracy"] for one in measured]) for side in _SIDES]
    return Drawing(
        "auxiliary",
        figure,
        f"Gradients of the stages before the first auxiliary classifier are {gain:.2f} times as large with both; test "
        f"accuracy {tested[0]:.1%} with and {tested[1]:.1%} without them",
        "Mean and range over the seeds. Left: norm of the gradient of each stage, mean of the first epoch; dotted "
        "lines mark the stages that the auxiliary classifiers read. Right: accuracy of the main classifier on the "
        f"training images; test accuracy at the end {tested[0]:.1%} with, {tested[1]:.1%} without.",
    )


def _costs(counts: Mapping[str, Sequence[int]]) -> Table:
    names = {
        "googlenet": "GoogLeNet (2014)",
        "unreduced": "without 1x1 reductions",
        "flattened": "with a classifier on the flattened last map",
        "classifier": "GoogLeNet's classifier alone",
        "alexnet": "AlexNet's dense layers alone",
    }
    return Table(
        "costs",
        "Costs for an image of 224 pixels, without auxiliary classifiers. One dense layer, the classifier, remains.",
        ("network", "parameters", "multiply-adds"),
        [[text, *counts[name]] for name, text in names.items()],
    )


STUDY = Study(
    name="googlenet",
    title="GoogLeNet: wide blocks at a low price",
    why="Each block looks at its input through windows of several sizes and lets the next block choose, which would "
    "be expensive if 1x1 convolutions did not first make the input of the large windows narrower. Where each channel "
    "of the last map is averaged, the classifier has one weight for a channel and class instead of one for each pixel. "
    "Auxiliary classifiers were meant to bring gradients to the early layers; batch normalisation, which came a year "
    "later, does that as well, and Szegedy et al. 2015 found no faster start and called them regularisers.",
    source="Szegedy et al. 2014, sections 3 to 5, figures 2 and 3, table 1; Szegedy et al. 2015 (arXiv 1512.00567), "
    "section 4",
    claims=(
        Claim(
            "scales",
            "Inception merges features of several scales: a trained network needs each kind of branch.",
            "smallest drop in test accuracy when all branches of one kind are switched off",
            _smallest_drop,
            above=0.05,
        ),
        Claim(
            "reductions",
            "1x1 convolutions before the 3x3 and 5x5 ones save parameters and multiply-adds.",
            "parameters, or multiply-adds if their ratio is smaller, of the network without reductions to those with "
            "them",
            lambda one: min(_ratio(one, "unreduced", place) for place in range(2)),
            above=2,
        ),
        Claim(
            "auxiliary-gradients",
            "Auxiliary classifiers bring larger gradients to the early layers.",
            "gradient norm before the first auxiliary classifier in the first epoch, with to without (1.6 is the "
            "ratio of the weights of the losses)",
            lambda one: _early_norm(one, "with") / _early_norm(one, "without"),
            above=1.6,
            scale="deeper networks without batch normalisation",
        ),
        Claim(
            "auxiliary-start",
            "Auxiliary classifiers speed up the start of training.",
            "training accuracy of the main classifier, mean of the first half of the epochs, with minus without",
            lambda one: _first_half(one, "with") - _first_half(one, "without"),
            above=0.02,
            scale="more seeds, and networks without batch normalisation",
        ),
        Claim(
            "auxiliary-accuracy",
            "Auxiliary classifiers improve the trained network.",
            "test accuracy with minus without",
            lambda one: one["with"]["test_accuracy"] - one["without"]["test_accuracy"],
            above=0.01,
            scale="training to convergence on ImageNet (the paper's gain is 0.5 points) and more seeds",
        ),
        Claim(
            "average-pooling",
            "Average pooling in place of a dense layer on the last map saves most parameters.",
            "parameters of the network with a classifier on the flattened last map, to those with average pooling",
            lambda one: _ratio(one, "flattened", 0),
            above=2,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        image_size=32, images=800, test_images=500, epochs=4, batch_size=32, learning_rate=0.05, map_size=96
    ),
    full=Settings(
        image_size=64,
        images=None,
        test_images=None,
        epochs=30,
        batch_size=128,
        learning_rate=0.01,
        map_size=128,
        arch="googlenet_2014",
        options={},
    ),
    seconds=150,
)
