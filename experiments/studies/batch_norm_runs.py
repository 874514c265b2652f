"""Runs of the study of batch normalisation: at all rates, with all sizes of batches, and inside a trained network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from experiments.studies.batch_norm_inside import bias_effect, errors_at, observe
from experiments.studies.data import labels_of, subset
from experiments.studies.lab import Lab
from experiments.studies.study import Measured
from jaxnets.data.sources import Dataset
from jaxnets.models.layers import Activation, BatchNorm
from jaxnets.models.registry import create_model
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

_NETWORK = "experiments.studies.batch_norm_runs:network"
MOST_LOSS = 10.0  # what a loss counts at most, and where training diverged
SHOWN = "layer2_0/bn1"
_POPULATION = 4096
BINS = np.linspace(-4, 4, 41)


class StudiedNorm(BatchNorm):
    """Batch normalisation that can be done otherwise than usual.

    In training `images` of the batch are normalised at a time, as in replicas with local statistics, whose running
    statistics are averaged; 0: all. With `late` the activation comes before the norm.
    """

    images: int = 0
    late: bool = False

    def __call__(self, inputs: jax.Array, activation: Activation | None = None) -> jax.Array:
        if self.late and activation is not None:
            inputs, activation = activation(inputs), None
        if not self.train or not self.images or self.is_initializing():
            return super().__call__(inputs, activation)
        # The channels of each group of images stand side by side, as if they were other channels.
        *batch, channels = inputs.shape
        parts = jnp.moveaxis(inputs.reshape(-1, self.images, *batch[1:], channels), 0, -2)
        groups, shape = parts.shape[-2], parts.shape
        repeated = jax.tree.map(lambda leaf: jnp.tile(leaf, groups), self.variables)
        norm = BatchNorm(parent=None, train=True, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype)
        outputs, updates = norm.apply(repeated, parts.reshape(*shape[:-2], -1), activation, mutable=["batch_stats"])
        for name, value in updates["batch_stats"].items():
            self.put_variable("batch_stats", name, value.reshape(groups, channels).mean(axis=0))
        return jnp.moveaxis(outputs.reshape(shape), -2, 0).reshape(inputs.shape)


def network(
    num_classes: int = 10,
    dtype: DTypeLike = jnp.float32,
    stage_sizes: Sequence[int] = (1, 1, 1),
    num_filters: int = 8,
    norm: bool = True,
    images: int = 0,
    late: bool = False,
) -> nn.Module:
    """A small residual network for small images; `images` and `late` are those of `StudiedNorm`."""
    # A partial is equal to itself alone, and would be compiled again for each seed.
    kind = None if not norm else partial(StudiedNorm, images=images, late=late) if images or late else BatchNorm
    sizes = {"stage_sizes": tuple(stage_sizes), "num_filters": num_filters}
    return create_model("resnet20_cifar", num_classes=num_classes, dtype=dtype, norm=kind, **sizes)


@dataclass(frozen=True)
class Settings:
    """The sizes of the study.

    Batches of `sizes` are trained on `few_images` for `few_epochs`, at the rate `learning_rate` for batches of
    `batch_size` and in proportion for others.
    """

    stage_sizes: tuple[int, ...]
    num_filters: int
    image_size: int
    images: int | None
    epochs: int
    batch_size: int
    rates: tuple[float, ...]
    late_rates: tuple[float, ...]
    learning_rate: float
    sizes: tuple[int, ...]
    few_images: int
    few_epochs: int
    judged_images: int = 32

    def config(self, options: dict[str, Any] | None = None, **changes: Any) -> Config:
        """The configuration of a run, with options of the network and other settings of the recipe."""
        recipe = Recipe(
            image_size=self.image_size,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="momentum",
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            label_smoothing=0.0,
            warmup_epochs=0.0,
        )
        sizes = {"stage_sizes": list(self.stage_sizes), "num_filters": self.num_filters}
        return Config(_NETWORK, replace(recipe, **changes), network_options=sizes | (options or {}))


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """Training at all rates, with all sizes of batches; and what happens in a trained network."""
    data = subset(lab.dataset, lab.seed, settings.images, val=False)
    few = subset(lab.dataset, lab.seed, settings.few_images, val=False)
    measured: dict[str, Any] = {"rates": settings.rates, "late_rates": settings.late_rates}
    for name, options, rates in (
        ("with", {}, settings.rates),
        ("without", {"norm": False}, settings.rates),
        ("late", {"late": True}, settings.late_rates),
    ):
        configs = {f"{name} {rate}": settings.config(options, learning_rate=rate) for rate in rates}
        measured[name] = [_kept_losses(lab, key, config, data) for key, config in configs.items()]
    short: dict[str, Any] = {"epochs": settings.few_epochs}
    for name in ("batches", "local"):
        measured[name] = []
        for images in settings.sizes:
            key, config = f"{name} {images}", settings.config({"images": images}, **short)
            if name == "batches" or images == settings.batch_size:
                rate = settings.learning_rate * images / settings.batch_size
                key, config = f"batches {images}", settings.config(batch_size=images, learning_rate=rate, **short)
            measured[name].append(_kept_accuracy(lab, key, config, few))
    inside = lab.kept("inside", lambda: _inside(lab, data, settings))
    return {**measured, **inside, "sizes": settings.sizes, "classes": len(data.class_names)}


def _kept_losses(lab: Lab, key: str, config: Config, data: Dataset) -> list[float]:
    def losses() -> list[float]:
        trained = lab.train(config, data, judge_epochs=False)
        return np.minimum(np.nan_to_num(trained.losses, nan=MOST_LOSS), MOST_LOSS).tolist()

    kept: list[float] = lab.kept(key, losses)
    return kept


def _kept_accuracy(lab: Lab, key: str, config: Config, data: Dataset) -> float:
    accuracy: float = lab.kept(key, lambda: lab.train(config, data, judge_epochs=False).on("test").metrics["accuracy"])
    return accuracy


def _inside(lab: Lab, data: Dataset, settings: Settings) -> dict[str, Any]:
    """What the norms of a trained network read and write, the effect of biases, and accuracies in either mode."""
    trained = lab.train(settings.config(), data, judge_epochs=False)
    mistaken = lab.train(settings.config(batch_norm="frozen"), data, judge_epochs=False)
    run, variables, size = trained.run, trained.variables, settings.judged_images
    model = run.network

    def images_of(source: Any, indices: Any) -> jax.Array:
        return jnp.asarray(np.stack([run.preprocessing(source[int(index)].image) for index in indices]))

    batch = images_of(data.train, range(size))
    _, norms, shown = observe(model, variables, batch, SHOWN)
    _, population, _ = observe(model, variables, images_of(data.train, range(min(len(data.train), _POPULATION))), SHOWN)
    errors = [errors_at(population, images, lab.seed) for images in settings.sizes]

    test, right = data.judged(), trained.on("test").right
    labels = labels_of(test)
    groups = [np.resize(np.flatnonzero(labels == label), size) for label in np.unique(labels)]
    mixed = np.random.default_rng(lab.seed).permutation(np.concatenate(groups))

    def accuracy(batches: Any) -> float:
        """The accuracy in training mode."""
        found = [observe(model, variables, images_of(test, batch), SHOWN)[0].argmax(axis=1) for batch in batches]
        return float((np.concatenate(found) == labels[np.concatenate(batches)]).mean())

    return {
        "moments": {name: np.array(norm["normalised"]).tolist() for name, norm in norms.items()},
        "histograms": [
            [np.histogram(channel, BINS, density=True)[0].tolist() for channel in np.asarray(values).T]
            for values in (shown[0], shown[1])
        ],
        "errors": errors,
        "bias": bias_effect(model, variables, batch, labels_of(data.train)[:size], lab.seed),
        "eval": float(right[mixed].mean()),
        "train_mixed": accuracy(mixed.reshape(-1, size)),
        "train_pairs": accuracy(mixed.reshape(-1, 2)),
        "train_one_class": accuracy(groups),
        "test": trained.on("test").metrics["accuracy"],
        "trained_in_eval_mode": mistaken.on("test").metrics["accuracy"],
    }


def best(measured: Measured, name: str, rates: str = "rates") -> float:
    """The mean training loss over all epochs at the best of the rates."""
    losses = dict(zip(measured["late_rates" if name == "late" else "rates"], measured[name], strict=True))
    return float(min(np.mean(losses[rate]) for rate in measured[rates]))


def largest_rate(measured: Measured, name: str) -> float:
    """The largest rate at which the final training loss is below half of that of guessing; 0 if there is none."""
    limit = 0.5 * np.log(measured["classes"])
    return max(
        (rate for rate, losses in zip(measured["rates"], measured[name], strict=True) if losses[-1] < limit),
        default=0.0,
    )


def slope(measured: Measured, kind: int) -> float:
    """The slope of the error of the mean (0) or of the variance (1) by the batch size, both as logarithms."""
    errors = np.log([errors[kind] for errors in measured["errors"]])
    return float(np.polyfit(np.log(measured["sizes"]), errors, 1)[0])


def deviation(measured: Measured) -> float:
    """The largest deviation of a channel's mean from 0, or of its variance from 1."""
    return max(float(np.abs(np.subtract(moments, [[0], [1]])).max()) for moments in measured["moments"].values())
