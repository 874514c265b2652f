"""Runs of the study of depth: plain and residual networks, with and without batch normalisation."""

from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import numpy as np

from experiments.studies.data import subset
from experiments.studies.lab import Lab
from experiments.studies.study import Measured
from jaxnets.data.sources import Dataset
from jaxnets.models.registry import create_model
from jaxnets.summary import summarize
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

NAMES = ("plain", "residual")
BLOCKS = ("bottleneck", "two 3x3")
# PyTorch's default weights. Their scale does not matter with batch normalisation: it changes all gradients by one
# factor.
_NO_NORM = {"norm": "none", "kernel_init": "torch"}
# Bounds of norms, whose logarithms are then finite.
_SMALLEST, _LARGEST = 1e-38, 1e38


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. Networks have 6n + 2 layers, n being the blocks of a stage, from shallow to deep.

    `learning_rates` of plain and of residual networks are the best of 0.02, 0.05, 0.1 and 0.2 for the deepest one of
    either, at quick scale. What begins with `deep` is of the network of more than a thousand layers,
    whose residuals start as zero (Goyal et al. 2017, section 5.1).
    """

    blocks: tuple[int, ...]
    image_size: int
    filters: int
    images: int | None
    epochs: int
    batch_size: int
    deep_blocks: int
    deep_filters: int
    deep_images: int
    deep_epochs: int
    deep_learning_rate: float
    learning_rates: tuple[float, float] = (0.1, 0.02)
    shortcut: str = "A"

    @property
    def layers(self) -> list[int]:
        """The number of layers of each depth."""
        return [6 * blocks + 2 for blocks in self.blocks]


def configurations(settings: Settings) -> dict[str, tuple[Config, int | None]]:
    """The runs by name, such as "plain 56 without norm", each with its number of images."""
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="momentum",
        learning_rate=settings.deep_learning_rate,
        weight_decay=1e-4,
        label_smoothing=0.0,
    )
    runs: dict[str, tuple[Config, int | None]] = {}
    for name, shortcut, rate in zip(NAMES, ("none", settings.shortcut), settings.learning_rates, strict=True):
        for blocks, depth in zip(settings.blocks, settings.layers, strict=True):
            options = {"stage_sizes": [blocks] * 3, "num_filters": settings.filters, "shortcut": shortcut}
            own = replace(recipe, learning_rate=rate)
            config = Config("resnet20_cifar", own, network_options=options, log_gradients=True)
            runs[f"{name} {depth}"] = config, settings.images
            if blocks in (settings.blocks[0], settings.blocks[-1]):
                one_step = replace(config, recipe=replace(own, epochs=1), network_options=options | _NO_NORM)
                runs[f"{name} {depth} without norm"] = one_step, settings.batch_size
                if name == "residual":
                    large = replace(one_step, network_options=one_step.network_options | {"kernel_init": "he_fan_in"})
                    runs[f"{name} {depth} without norm, large weights"] = large, settings.batch_size
    options = {"stage_sizes": [settings.deep_blocks] * 3, "num_filters": settings.deep_filters}
    # Otherwise the residuals of 500 blocks add up to large outputs, and to a loss near 10 in the first steps.
    options |= {"shortcut": settings.shortcut, "zero_init_residual": True}
    deep = Config("resnet1202_cifar", replace(recipe, epochs=settings.deep_epochs), network_options=options)
    return runs | {"deep": (deep, settings.deep_images)}


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The training losses of all networks, the gradients of their convolutions, and the kernels of two blocks."""
    runs = {
        name: lab.kept(name, partial(trained, lab, config, subset(lab.dataset, lab.seed, images, val=False)))
        for name, (config, images) in configurations(settings).items()
    }
    return {"layers": settings.layers, "guessing": log(len(lab.dataset.class_names)), "kernels": kernels(), **runs}


def trained(lab: Lab, config: Config, data: Dataset) -> dict[str, Any]:
    """The training loss of each epoch, and the log10 of the norms of the gradients of the convolutions: in the first
    step, and the mean over the last epoch.
    """
    run = lab.train(config, data)
    worst = 10 * log(len(data.class_names))
    # An epoch in which each step was skipped has no loss.
    measured = {"losses": np.clip(np.nan_to_num(run.losses, nan=worst), 0, worst).tolist()}
    convolutions = [index for index, layer in enumerate(run.layers) if "conv" in layer]
    if convolutions:
        norms = np.nan_to_num(run.gradient_norms[:, convolutions], nan=_LARGEST)
        logarithms = np.log10(np.clip(norms, _SMALLEST, _LARGEST))
        last_epoch = len(norms) // config.recipe.epochs
        measured |= {"first": logarithms[0].tolist(), "last": logarithms[-last_epoch:].mean(axis=0).tolist()}
    return measured


def kernels() -> dict[str, list[tuple[str, str, int]]]:
    """The window, channels and parameters of the convolutions of a bottleneck of ResNet-50, and of a block of two 3x3
    convolutions between as many channels.
    """
    models = (create_model("resnet50", stage_sizes=(2,)), create_model("resnet18", stage_sizes=(2,), num_filters=256))
    return {
        name: [
            (f"{layer.window} x {layer.window}", f"{layer.inputs[-1]} to {layer.outputs[-1]}", layer.parameters)
            for layer in summarize(model, 32).layers
            if layer.name.startswith("layer1_1/conv")
        ]
        for name, model in zip(BLOCKS, models, strict=True)
    }


def saved(one: Measured) -> float:
    """The parameters of two 3x3 convolutions, as a multiple of those of a bottleneck."""
    bottleneck, two = (sum(parameters for *_, parameters in one["kernels"][name]) for name in BLOCKS)
    return two / bottleneck


def worse(one: Measured, name: str) -> float:
    """Final training loss of the deepest network minus that of the second shallowest."""
    deepest, shallow = (one[f"{name} {depth}"]["losses"][-1] for depth in (one["layers"][-1], one["layers"][1]))
    return float(deepest - shallow)


def growth(one: Measured, name: str, suffix: str = "") -> float:
    """The log10 of the first convolution's gradient at the start, deepest network over shallowest."""
    deepest, shallow = (one[f"{name} {depth}{suffix}"]["first"][0] for depth in (one["layers"][-1], one["layers"][0]))
    return float(deepest - shallow)
