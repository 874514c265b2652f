"""Depth: what it does to training and to gradients, without and with shortcuts and batch normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import numpy as np

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
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
    options = {"stage_sizes": [settings.deep_blocks] * 3, "num_filters": settings.deep_filters}
    # Otherwise the residuals of 600 blocks add up to large outputs, and to a loss near 10 in the first steps.
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


def _saved(one: Measured) -> float:
    bottleneck, two = (sum(parameters for *_, parameters in one["kernels"][name]) for name in BLOCKS)
    return two / bottleneck


def _worse(one: Measured, name: str) -> float:
    """Final training loss of the deepest network minus that of the second shallowest."""
    deepest, shallow = (one[f"{name} {depth}"]["losses"][-1] for depth in (one["layers"][-1], one["layers"][1]))
    return float(deepest - shallow)


def _growth(one: Measured, name: str, suffix: str = "") -> float:
    """The log10 of the first convolution's gradient at the start, deepest network over shallowest."""
    deepest, shallow = (one[f"{name} {depth}{suffix}"]["first"][0] for depth in (one["layers"][-1], one["layers"][0]))
    return float(deepest - shallow)


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
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
        "Training loss, mean and range over the seeds. Without shortcuts deeper networks are worse on the images "
        "they train on; with shortcuts they are not.",
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


_FIRST_LAYER = (
    "log10 of the gradient norm of the first convolution at the start, deepest {} network over the shallowest"
)
_BARE = _FIRST_LAYER + ", without batch normalisation"

STUDY = Study(
    name="residual",
    title="Residual learning: depth that does not hurt",
    why="A deeper plain network could copy a shallow one and let its further layers be the identity, so a larger "
    "training loss is a failure of optimisation, not overfitting; a shortcut makes the identity the starting point, "
    "and a block only has to learn the difference. The gradient is a product over the layers: with PyTorch's default "
    "weights each factor is below one, while a shortcut adds a path on which it is one. Batch normalisation rescales "
    "the outputs of each layer, so gradients do not vanish, but at the start those of plain networks grow "
    "exponentially towards the first layer (Yang et al. 2019); training removes that growth, but not the degradation.",
    source="He et al. 2015, sections 1, 3.1, 3.3, 4.1 and 4.2, figures 1, 5 and 6; Goyal et al. 2017, section 5.1; "
    "Yang et al. 2019 (A Mean Field Theory of Batch Normalization)",
    claims=(
        Claim(
            "degradation",
            "Plain networks get worse on the training images with depth.",
            "final training loss of the deepest plain network minus that of the second shallowest",
            lambda one: _worse(one, "plain"),
            above=0.1,
            scale="longer training and deeper networks (--full)",
        ),
        Claim(
            "no-degradation",
            "Residual networks of the same depths do not.",
            "final training loss of the deepest residual network minus that of the second shallowest",
            lambda one: _worse(one, "residual"),
            below=0.1,
            scale="longer training (--full)",
        ),
        Claim(
            "vanishing",
            "Without batch normalisation, the gradients of plain networks vanish with depth.",
            _BARE.format("plain"),
            lambda one: _growth(one, "plain", " without norm"),
            below=-2,
            scale="deeper networks",
        ),
        Claim(
            "shortcuts",
            "Shortcuts alone prevent that.",
            _BARE.format("residual"),
            lambda one: _growth(one, "residual", " without norm"),
            above=-2,
        ),
        Claim(
            "norm",
            "Batch normalisation alone prevents that too: gradients do not vanish in the plain networks that degrade.",
            _FIRST_LAYER.format("plain"),
            lambda one: _growth(one, "plain"),
            above=-2,
        ),
        Claim(
            "exploding",
            "With batch normalisation, the gradients of plain networks have healthy norms: they do not explode either.",
            _FIRST_LAYER.format("plain"),
            lambda one: _growth(one, "plain"),
            below=2,
            scale="deeper networks",
        ),
        Claim(
            "both",
            "With batch normalisation and shortcuts, gradients neither vanish nor explode.",
            "distance from 0 of " + _FIRST_LAYER.format("residual"),
            lambda one: abs(_growth(one, "residual")),
            below=2,
            scale="deeper networks",
        ),
        Claim(
            "bottleneck",
            "1x1 convolutions reduce and restore the channels of a block, which saves parameters.",
            "parameters of two 3x3 convolutions between 256 channels over those of a bottleneck between as many",
            _saved,
            above=4,
        ),
        Claim(
            "thousand",
            "Residual networks of more than a thousand layers can be trained.",
            "training loss of a network of 1,202 layers in the last epoch over that of guessing",
            lambda one: one["deep"]["losses"][-1] / one["guessing"],
            below=0.5,
            scale="longer training (--full)",
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        blocks=(1, 3, 9),
        image_size=8,
        filters=8,
        images=800,
        epochs=8,
        batch_size=32,
        deep_blocks=200,
        deep_filters=4,
        deep_images=160,
        deep_epochs=6,
        deep_learning_rate=0.05,
    ),
    full=Settings(
        blocks=(1, 3, 5, 9),
        image_size=32,
        filters=16,
        images=None,
        epochs=40,
        batch_size=128,
        deep_blocks=200,
        deep_filters=16,
        deep_images=5000,
        deep_epochs=3,
        deep_learning_rate=0.05,
    ),
    seconds=90,
)
