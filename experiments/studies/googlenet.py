"""GoogLeNet: branches of several scales, 1x1 reductions, auxiliary classifiers, and average pooling at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.googlenet_costs import cost_table, counts
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.data.sources import Dataset
from jaxnets.inspection import feature_maps
from jaxnets.models.initialization import initial_variables
from jaxnets.models.layers import param_dtype
from jaxnets.training.config import Config
from jaxnets.training.losses import training_loss
from jaxnets.training.recipe import Recipe

# The last layer of each branch of a block.
BRANCHES = {"1x1": "branch1", "3x3": "branch2_1", "5x5": "branch3_1", "pooling": "branch4_1"}
# The stages that the first auxiliary classifier reads.
EARLY = ("conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a")
_DRAWN_BLOCK, _DRAWN_MAPS = "inception3a", 3
SIDES = ("with", "without")


@dataclass(frozen=True)
class Settings:
    """The sizes of the study, and the options with which `arch` is normalised and trained.

    Maps are drawn for an image of `map_size`, and costs counted for one of `counted_size` pixels a side.
    """

    image_size: int
    images: int | None
    test_images: int | None
    epochs: int
    batch_size: int
    learning_rate: float
    map_size: int
    normalised: dict[str, Any] = field(default_factory=lambda: {"norm": "batch_norm", "lrn": "none"})
    trained: dict[str, Any] = field(default_factory=lambda: {"norm": "batch_norm", "lrn": "none"})
    arch: str = "googlenet_2014"
    aux_weight: float = 0.3
    counted_size: int = 224


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """Costs of the paper's network; its first gradients and what it learns, with and without auxiliary classifiers."""
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
    measured: dict[str, Any] = {"counts": counts(settings.counted_size)}
    for name, options in (("plain", {}), ("normalised", settings.normalised)):
        config = Config(settings.arch, recipe, seed=lab.seed, network_options=options)
        measured[name] = lab.kept(name, partial(first_norms, config, data))

    def train(helped: bool) -> dict[str, Any]:
        config = Config(settings.arch, recipe, network_options=settings.trained | {"aux_logits": helped})
        trained = lab.train(config, data)
        return {
            "accuracies": np.nan_to_num(trained.accuracies).tolist(),  # 0 for an epoch whose steps all failed
            "test_accuracy": trained.on("test").metrics["accuracy"],
            **(inspect(trained, settings.map_size) if helped else {}),
        }

    return measured | {name: lab.kept(name, partial(train, name == "with")) for name in SIDES}


def first_norms(config: Config, data: Dataset) -> dict[str, dict[str, float]]:
    """The norm of the gradient of each stage before the first step, with and without auxiliary classifiers."""
    recipe, network = config.recipe, config.create_model(len(data.class_names))
    preprocessing = recipe.preprocessing(data.mean, data.std)
    examples = [data.train[index] for index in range(recipe.batch_size)]
    pixels = jnp.stack([preprocessing.pixels(example.image) for example in examples])
    images = preprocessing.normalise(pixels, param_dtype(network.dtype))
    targets = jax.nn.one_hot(jnp.array([example.label for example in examples]), len(data.class_names))
    variables = initial_variables(network, jax.random.key(config.seed), recipe.image_size)
    found = {}
    for side, weight in (("with", recipe.aux_weight), ("without", 0.0)):
        norms = _stage_norms(network, variables, images, targets, weight)
        found[side] = {stage: float(norms[stage]) for stage in network.stages if stage in norms}
    return found


@partial(jax.jit, static_argnames="network")
def _stage_norms(network: Any, variables: Any, images: Any, targets: Any, aux_weight: Any) -> dict[str, jax.Array]:
    def loss(params: Any) -> jax.Array:
        logits, updates = network.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "aux_logits"],
        )
        return training_loss(logits, jax.tree.leaves(updates["aux_logits"]), targets, aux_weight=aux_weight)

    gradients = jax.grad(loss)(variables["params"])
    squares = {
        stage: sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients[stage]))
        for stage in network.stages
        if stage in gradients
    }
    return jax.tree.map(jnp.sqrt, squares)


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


def _ratio(one: Measured, name: str, place: int) -> float:
    return float(one["counts"][name][place] / one["counts"]["googlenet"][place])


def _smallest_drop(one: Measured) -> float:
    return float(one["with"]["test_accuracy"] - max(one["with"]["without_branch"].values()))


def _gain(one: Measured, network: str) -> float:
    norms = {side: [norm for stage, norm in one[network][side].items() if stage in EARLY] for side in SIDES}
    return float(np.linalg.norm(norms["with"]) / np.linalg.norm(norms["without"]))


def _first_half(one: Measured, side: str) -> float:
    accuracies = one[side]["accuracies"]
    return float(np.mean(accuracies[: -(-len(accuracies) // 2)]))


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    return [_branches(measured), _auxiliary(measured), cost_table(measured[0]["counts"])]


def _branches(measured: Sequence[Measured]) -> Drawing:
    one = measured[0]["with"]
    whole = np.mean([each["with"]["test_accuracy"] for each in measured])
    left = {name: np.mean([each["with"]["without_branch"][name] for each in measured]) for name in BRANCHES}
    figure, axes = new_figure(1 + len(BRANCHES), _DRAWN_MAPS, width=5.6, height=1.25)
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
        f"An enlarged test image, and for each branch of {_DRAWN_BLOCK} the three maps that vary most (bright: large "
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
    gains = [np.mean([_gain(one, network) for one in measured]) for network in ("plain", "normalised")]
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


STUDY = Study(
    name="googlenet",
    title="GoogLeNet: wide blocks at a low price",
    why="Each block looks at its input through windows of several sizes and lets the next block choose, which would "
    "be expensive if 1x1 convolutions did not first make the input of the large windows narrower. Where each channel "
    "of the last map is averaged, the classifier has one weight for a channel and class instead of one for each pixel. "
    "Auxiliary classifiers bring gradients to the early layers, where those of the network of 2014 are small; batch "
    "normalisation makes that needless, and Szegedy et al. 2015 found no faster start and called them regularisers.",
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
            "Auxiliary classifiers enlarge the gradients of the early layers of the paper's network.",
            "gradient norm before the first auxiliary classifier at initialisation, with to without",
            partial(_gain, network="plain"),
            above=1.6,  # the sum of the weights of the losses
        ),
        Claim(
            "auxiliary-normalised",
            "They do so in a network with batch normalisation too.",
            "gradient norm before the first auxiliary classifier at initialisation, with to without",
            partial(_gain, network="normalised"),
            above=1.6,
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
        trained={},
    ),
    seconds=150,
)
