"""Activation functions: without them a deep network is one matrix; ReLU against tanh and sigmoid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from experiments.studies.data import arrays, subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Claim, Drawing, Measured, Study
from jaxnets.data.sources import ArraySource, Dataset, Source
from jaxnets.models.layers import Activation, Conv, Dense
from jaxnets.models.options import model_with
from jaxnets.ops import avg_pool, max_pool
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

_ARCH = "experiments.studies.activations:FourLayers"
_ACTIVATIONS = {"ReLU": "relu", "tanh": "tanh", "sigmoid": "sigmoid"}
_WITHOUT = "no activation"
# The training error of figure 1 of the paper.
_ERROR = 0.25


class FourLayers(nn.Module):
    """Three convolutions of 5x5 with pooling, and a dense layer: [N, H, W, 3] -> logits, images of at least 8 px.

    Krizhevsky et al. 2012, figure 1, do not list the layers; these widths are those of cuda-convnet's example.
    """

    num_classes: int = 10
    activation: Activation = nn.relu
    pooling: Literal["max", "average"] = "max"
    dtype: DTypeLike = jnp.float32
    smallest_image: ClassVar[int] = 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x, pool = images, {"max": max_pool, "average": avg_pool}[self.pooling]
        for place, features in enumerate((32, 32, 64), 1):
            conv = Conv(features, 5, padding=2, use_bias=True, bias_init=None, dtype=self.dtype, name=f"conv{place}")
            x = pool(conv(x, self.activation), 2, stride=2)
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(x.reshape(len(x), -1))


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. `rates` are those of ReLU, tanh and sigmoid: for ReLU and tanh the fastest of 0.03, 0.1
    and 0.3 to 25 % training error with seed 10 of those that do not diverge later. The sigmoid learns at none of 0.1,
    0.3, 1 and 3.
    """

    image_size: int = 8
    images: int = 320
    epochs: int = 25
    rates: tuple[float, float, float] = (0.03, 0.1, 1.0)
    parity_images: int = 1000
    parity_epochs: int = 12
    parity_rate: float = 0.03
    batch_size: int = 32
    without: str = "identity"


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """How far networks are from one matrix, what they learn with and without activations, and how fast."""
    data = subset(lab.dataset, lab.seed, settings.images, val=False)
    pixels = arrays(data.test)[0][:64]
    measured: dict[str, Any] = {
        "distances": {
            pooling: matrix_distance(pixels, {"activation": settings.without, "pooling": pooling}, lab.seed)
            for pooling in ("average", "max")
        }
    }

    def train(dataset: Dataset, epochs: int, rate: float, **options: Any) -> Trained:
        recipe = Recipe(
            image_size=settings.image_size,
            epochs=epochs,
            batch_size=settings.batch_size,
            optimizer="momentum",
            learning_rate=rate,
            weight_decay=0.0,
            label_smoothing=0.0,
            schedule="constant",
            warmup_epochs=0.0,
        )
        return lab.train(Config(_ARCH, recipe, network_options=options, log_gradients=True), dataset)

    def errors_of(trained: Trained) -> list[float]:
        # A network that diverges is right by chance.
        chance = 1 - 1 / trained.run.network.num_classes
        return [1 - accuracy if np.isfinite(accuracy) else chance for accuracy in trained.accuracies]

    def speed(activation: str, rate: float) -> dict[str, Any]:
        trained = train(data, settings.epochs, rate, activation=activation)
        norms = dict(zip(trained.layers, trained.gradient_norms[0], strict=True))
        return {"errors": errors_of(trained), "flow": float(norms["conv1"] / norms["fc"])}

    measured["speed"] = {
        name: lab.kept(f"speed {name}", partial(speed, activation, rate))
        for (name, activation), rate in zip(_ACTIVATIONS.items(), settings.rates, strict=True)
    }
    parities = parity(subset(lab.dataset, lab.seed, settings.parity_images, val=False))

    def learn(activation: str) -> list[float]:
        options = {"activation": activation, "pooling": "average"}
        return errors_of(train(parities, settings.parity_epochs, settings.parity_rate, **options))

    measured["parity"] = {
        name: lab.kept(f"parity {name}", partial(learn, activation))
        for name, activation in (("ReLU", "relu"), (_WITHOUT, settings.without))
    }
    return measured


def matrix_distance(pixels: np.ndarray, options: dict[str, Any], seed: int) -> float:
    """How far a network with these options is from one matrix and an offset, in float64.

    It is the largest difference between the logits of either for images [N, H, W] or [N, H, W, 3] of uint8, relative to
    the largest logit. The offset is the logits of a black image, and the matrix those of each pixel alone without it.
    """
    size = FourLayers.smallest_image
    pixels = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=3)
    with jax.enable_x64(True):
        images = jax.image.resize(jnp.asarray(pixels / 255.0), (len(pixels), size, size, 3), "bilinear")
        model = model_with(_ARCH, options, num_classes=10, dtype=jnp.float64)
        variables = jax.jit(model.init, static_argnames="train")(jax.random.key(seed), images[:1], train=False)
        inputs = images[0].size
        probes = jnp.concatenate([images, jnp.eye(inputs).reshape(inputs, size, size, 3), jnp.zeros_like(images[:1])])
        outputs = np.asarray(jax.jit(model.apply, static_argnames="train")(variables, probes, train=False))
        flat = np.asarray(images).reshape(len(images), -1)
    logits, alone, offset = outputs[: len(flat)], outputs[len(flat) : -1], outputs[-1]
    return float(np.abs(logits - (flat @ (alone - offset) + offset)).max() / np.abs(logits).max())


def epochs_to(error: float, errors: Sequence[float]) -> float:
    """The epoch at which `errors` [epochs] first reach `error`, interpolated linearly; the last epoch if never."""
    for epoch, (before, after) in enumerate(pairwise(errors), 1):
        if before <= error:
            return float(epoch)
        if after <= error:
            return epoch + (before - error) / (before - after)
    return float(len(errors))


def parity(dataset: Dataset) -> Dataset:
    """The same images, in two classes: those whose class has an even number, and an odd one."""

    def halved(source: Source) -> ArraySource:
        images, labels = arrays(source)
        return ArraySource(images, labels % 2)

    test = None if dataset.test is None else halved(dataset.test)
    return replace(dataset, class_names=("even", "odd"), train=halved(dataset.train), test=test)


def _epochs(measured: Measured, name: str) -> float:
    return epochs_to(_ERROR, measured["speed"][name]["errors"])


def _draw(measured: Sequence[Measured]) -> list[Drawing]:
    figure, axes = new_figure(2, sharey=True)
    curves = (
        {name: [one["speed"][name]["errors"] for one in measured] for name in _ACTIVATIONS},
        {name: [one["parity"][name] for one in measured] for name in ("ReLU", _WITHOUT)},
    )
    for axis, of_axis, places in zip(axes, curves, ((0, 1, 2), (0, 3)), strict=True):
        for (name, errors), place in zip(of_axis.items(), places, strict=True):
            spread_line(axis, range(1, len(errors[0]) + 1), 100 * np.asarray(errors), name, place)
        whole_epochs(axis)
        axis.legend(frameon=False, loc="center right")
    axes[0].axhline(100 * _ERROR, color="black", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("training error, %")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title("ten classes", fontsize=11)
    axes[1].set_title("even or odd", fontsize=11)
    needed = ", ".join(f"{name} {np.mean([_epochs(one, name) for one in measured]):.1f}" for name in _ACTIVATIONS)
    finals = ", ".join(f"{name} {100 * np.mean(np.asarray(curves[1][name])[:, -1]):.0f} %" for name in curves[1])
    return [
        Drawing(
            "curves",
            figure,
            f"Training error by epoch. Epochs to 25 %: {needed}. Even or odd, at the end: {finals}",
            "Training error, mean and range over the seeds, each activation with its own learning rate. "
            "Left: the dotted line is the error of figure 1 of the paper, 25 %. Right: a task that no matrix solves.",
        )
    ]


STUDY = Study(
    name="activations",
    title="Activation functions: what makes depth useful",
    why="Without activation functions each layer multiplies by a matrix, and a product of matrices is one matrix; "
    "max-pooling is a non-linearity of its own, average pooling is not. The slope of the sigmoid is at most 1/4, so "
    "each sigmoid leaves at most a quarter of a gradient, whereas that of ReLU is 1 wherever a unit is active. That "
    "of tanh is 1 near zero and falls where units saturate, so it hurts in large networks and long training more than "
    "here.",
    source="Krizhevsky et al. 2012, section 3.1 and figure 1 (a four-layer network on CIFAR-10)",
    claims=(
        Claim(
            "collapse",
            "Without activation functions a deep network is one matrix and an offset.",
            "largest difference of logits in float64, relative to the largest logit",
            lambda one: one["distances"]["average"],
            below=1e-10,
        ),
        Claim(
            "max-pooling",
            "Max-pooling is a non-linearity too: with it, the network without activation functions is no matrix.",
            "largest difference of logits from those of one matrix, relative to the largest logit",
            lambda one: one["distances"]["max"],
            above=1e-3,
        ),
        Claim(
            "learning",
            "Activation functions let a network solve what is not linear: whether a class is even or odd.",
            "final training error without activation functions minus that with ReLU, in points",
            lambda one: 100 * (one["parity"][_WITHOUT][-1] - one["parity"]["ReLU"][-1]),
            above=5,
        ),
        Claim(
            "sigmoid-speed",
            "ReLU learns several times faster than the sigmoid.",
            "epochs to 25 % training error with the sigmoid (at most all) over those with ReLU",
            lambda one: _epochs(one, "sigmoid") / _epochs(one, "ReLU"),
            above=2,
        ),
        Claim(
            "tanh-speed",
            "ReLU learns several times faster than tanh.",
            "epochs to 25 % training error with tanh (at most all) over those with ReLU (in the paper 6)",
            lambda one: _epochs(one, "tanh") / _epochs(one, "ReLU"),
            above=2,
            scale="larger images and longer training (--full)",
        ),
        Claim(
            "sigmoid-gradient",
            "Less gradient reaches the first layer through sigmoids.",
            "gradient norm of the first layer over that of the last, before training: with ReLU, over with the sigmoid",
            lambda one: one["speed"]["ReLU"]["flow"] / one["speed"]["sigmoid"]["flow"],
            above=10,
        ),
        Claim(
            "tanh-gradient",
            "Less gradient reaches the first layer through tanh.",
            "gradient norm of the first layer over that of the last, before training: with ReLU, over with tanh",
            lambda one: one["speed"]["ReLU"]["flow"] / one["speed"]["tanh"]["flow"],
            above=2,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(),
    full=Settings(image_size=32, images=50_000, epochs=25, parity_images=50_000, batch_size=128),
    seconds=39,
)
