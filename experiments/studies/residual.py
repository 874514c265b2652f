"""Depth: plain networks get worse on their own training images as they get deeper, residual networks do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. Networks have 6n + 2 layers, n being the blocks of a stage, from shallow to deep."""

    blocks: tuple[int, ...]
    image_size: int
    images: int | None
    epochs: int
    batch_size: int
    learning_rate: float
    shortcut: str = "A"

    @property
    def layers(self) -> list[int]:
        """The number of layers of each depth."""
        return [6 * blocks + 2 for blocks in self.blocks]


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The curves of plain and residual networks of each depth, and the norms of their gradients in the first step."""
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="momentum",
        learning_rate=settings.learning_rate,
        weight_decay=1e-4,
        label_smoothing=0.0,
    )
    data = subset(lab.dataset, lab.seed, settings.images, val=False)
    measured: dict[str, Any] = {"layers": settings.layers}
    for name, shortcut in (("plain", "none"), ("residual", settings.shortcut)):
        measured[name] = []
        for blocks in settings.blocks:
            options = {"stage_sizes": [blocks] * 3, "shortcut": shortcut}
            config = Config("resnet20_cifar", recipe, network_options=options, log_gradients=True)

            def train(config: Config = config) -> dict[str, Any]:
                trained = lab.train(config, data)
                first, *_ = trained.gradient_norms
                kernels = [index for index, layer in enumerate(trained.layers) if "conv" in layer]
                return {"losses": trained.losses, "norms": first[kernels].tolist()}

            measured[name].append(lab.kept(f"{name} {blocks}", train))
    return measured


def _final(measured: Measured, name: str, place: int) -> float:
    return float(measured[name][place]["losses"][-1])


def _draw(measured: Sequence[Measured]) -> list[Drawing]:
    layers = measured[0]["layers"]
    figure, axes = new_figure(2, sharey=True)
    for axis, name in zip(axes, ("plain", "residual"), strict=True):
        for place, depth in enumerate(layers):
            losses = [one[name][place]["losses"] for one in measured]
            spread_line(axis, range(1, len(losses[0]) + 1), losses, f"{depth} layers", place)
        axis.set_title(f"{name} networks", fontsize=11)
        whole_epochs(axis)
    axes[0].set_ylabel("training loss")
    axes[0].legend(frameon=False)
    finals = {
        name: ", ".join(
            f"{np.mean([_final(one, name, place) for one in measured]):.2f}" for place in range(len(layers))
        )
        for name in ("plain", "residual")
    }
    return [
        Drawing(
            "degradation",
            figure,
            f"Training loss by epoch for {', '.join(map(str, layers))} layers; at the end {finals['plain']} without "
            f"shortcuts, {finals['residual']} with them",
            "Training loss, mean and range over the seeds. Without shortcuts deeper networks are worse on the images "
            "they train on; with shortcuts they are not.",
        )
    ]


STUDY = Study(
    name="residual",
    title="Residual learning: depth that does not hurt",
    why="A deeper plain network could copy the shallow one and let its further layers be the identity, so a larger "
    "training loss is a failure of optimisation, not overfitting. Gradients pass through each of its layers, and each "
    "one distorts them. A shortcut makes the identity the starting point, so a block only has to learn the difference.",
    source="He et al. 2015, sections 1, 3.1 and 4.2, figures 1 and 6",
    claims=(
        Claim(
            "degradation",
            "Plain networks get worse on the training images with depth.",
            "final training loss of the deepest plain network minus that of the second shallowest",
            lambda one: _final(one, "plain", -1) - _final(one, "plain", 1),
            above=0.1,
            scale="longer training and deeper networks (--full)",
        ),
        Claim(
            "no-degradation",
            "Residual networks of the same depths do not.",
            "final training loss of the deepest residual network minus that of the second shallowest",
            lambda one: _final(one, "residual", -1) - _final(one, "residual", 1),
            below=0.1,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(blocks=(1, 3, 5, 9), image_size=16, images=1000, epochs=6, batch_size=64, learning_rate=0.1),
    full=Settings(blocks=(1, 3, 5, 9), image_size=32, images=None, epochs=40, batch_size=128, learning_rate=0.1),
    seconds=120,
)
