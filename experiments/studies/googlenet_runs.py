"""Runs of the study of GoogLeNet: first gradients, and training with and without auxiliary classifiers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.data import subset
from experiments.studies.googlenet_costs import counts
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Measured
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
DRAWN_BLOCK, DRAWN_MAPS = "inception3a", 3
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
    outputs = feature_maps(trained.run.network, variables, images, DRAWN_BLOCK)
    maps = {}
    for name, branch in BRANCHES.items():
        channels = np.moveaxis(outputs[f"{DRAWN_BLOCK}/{branch}"][0], -1, 0)
        strongest = np.argsort(-channels.std(axis=(1, 2)), kind="stable")[:DRAWN_MAPS]
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


def ratio(one: Measured, name: str, place: int) -> float:
    """Parameters (0) or multiply-adds (1) of a network, as a multiple of the paper's."""
    return float(one["counts"][name][place] / one["counts"]["googlenet"][place])


def smallest_drop(one: Measured) -> float:
    """The test accuracy lost without the kind of branch that is missed least."""
    return float(one["with"]["test_accuracy"] - max(one["with"]["without_branch"].values()))


def gain(one: Measured, network: str) -> float:
    """The norm of the gradient of the early stages with auxiliary classifiers, as a multiple of that without."""
    norms = {side: [norm for stage, norm in one[network][side].items() if stage in EARLY] for side in SIDES}
    return float(np.linalg.norm(norms["with"]) / np.linalg.norm(norms["without"]))


def first_half(one: Measured, side: str) -> float:
    """The mean training accuracy over the first half of the epochs."""
    accuracies = one[side]["accuracies"]
    return float(np.mean(accuracies[: -(-len(accuracies) // 2)]))
