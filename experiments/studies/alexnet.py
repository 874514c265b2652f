"""AlexNet: what dropout and response normalisation change on few images, and what a GPU does."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, style, whole_epochs
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.models.registry import create_model
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

_WITH, _WITHOUT, _NO_LRN = "dropout and LRN", "without dropout", "without LRN"
_ROUNDS = 5


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. 63 pixels are the smallest image of these networks.

    "alexnet" is the network of one tower with torch's initialisation, and here with response normalisation. That of
    "alexnet_2012" is for 4,096 hidden units and millions of images: small copies of it stay at chance for long.
    """

    arch: str = "alexnet"
    num_filters: int = 16
    hidden_features: int = 128
    image_size: int = 63
    images: int | None = 300
    test_images: int | None = 300
    epochs: int = 30
    batch_size: int = 30
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    dropout_rate: float = 0.5
    step_images: int = 32


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The test curves and final losses of AlexNet, of AlexNet without dropout and without response normalisation."""
    data = subset(lab.dataset, lab.seed, settings.images, settings.test_images, val=False)
    # Nothing is chosen by them: the curves are those of the test images.
    data = replace(data, val=data.test)

    def train(dropout_rate: float, lrn: str) -> dict[str, Any]:
        recipe = Recipe(
            image_size=settings.image_size,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            optimizer=settings.optimizer,
            learning_rate=settings.learning_rate,
            weight_decay=0.0,
            label_smoothing=0.0,
            dropout_rate=dropout_rate,
        )
        options = {"num_filters": settings.num_filters, "hidden_features": settings.hidden_features, "lrn": lrn}
        trained = lab.train(Config(settings.arch, recipe, network_options=options), data)
        train_loss, test = trained.on("train").metrics["loss"], trained.on("test").metrics
        # A network that diverges counts as one that knows nothing.
        chance = np.log(len(data.class_names))
        losses = np.nan_to_num([train_loss, test["loss"], *trained.val_losses], nan=chance, posinf=chance)
        return {
            "train_loss": float(losses[0]),
            "test_loss": float(losses[1]),
            "test_losses": losses[2:].tolist(),
            "test_accuracy": test["accuracy"],
            "test_accuracies": trained.val_accuracies,
        }

    variants = {
        _WITH: (settings.dropout_rate, "local_response_norm"),
        _WITHOUT: (0.0, "local_response_norm"),
        _NO_LRN: (settings.dropout_rate, "none"),
    }
    measured: dict[str, Any] = {name: lab.kept(name, partial(train, *variant)) for name, variant in variants.items()}
    measured["gpu"] = gpu_speedup(data.train, settings.step_images)
    return measured


def gpu_speedup(source: Source, batch_size: int, size: int = 224, **options: Any) -> float | None:
    """The seconds of a training step of the paper's network on the CPU over those on the GPU; None without a GPU.

    The batch has the first images of a source, at `size` pixels. Both devices take turns; the median of five rounds
    counts.
    """
    try:
        devices = [jax.devices(platform)[0] for platform in ("cpu", "gpu")]
    except RuntimeError:
        return None
    preprocessing = Preprocessing(size, size)
    pixels = np.stack([preprocessing.pixels(source[index].image) for index in range(batch_size)])
    images = jnp.asarray(pixels / 255.0, jnp.float32)
    model = create_model("alexnet_2012", **options)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images[:1], train=False)

    @jax.jit
    def step(variables: Any, images: jax.Array, key: jax.Array) -> Any:
        def loss(variables: Any) -> jax.Array:
            logits = model.apply(variables, images, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(images))).mean()

        return jax.tree.map(lambda value, gradient: value - 0.01 * gradient, variables, jax.grad(loss)(variables))

    inputs = [jax.device_put((variables, images, jax.random.key(1)), device) for device in devices]
    ratios = []
    for _ in range(1 + _ROUNDS):
        seconds = []
        for arguments in inputs:
            started = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first round compiles


def _gap(measured: Measured, name: str) -> float:
    """The test loss minus the training loss."""
    return float(measured[name]["test_loss"] - measured[name]["train_loss"])


def _epochs(measured: Measured, name: str) -> int:
    """The epochs to 25 % test error; all if it is never reached."""
    accuracies = measured[name]["test_accuracies"]
    return next((epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy >= 0.75), len(accuracies))


def _draw(measured: Sequence[Measured]) -> list[Drawing]:
    figure, axes = new_figure(2)
    names = (_WITH, _WITHOUT, _NO_LRN)
    for place, name in enumerate(names):
        curves = [one[name]["test_losses"] for one in measured]
        spread_line(axes[0], range(1, len(curves[0]) + 1), curves, name, place)
        look = style(place)
        for shift, part in ((-0.15, "train_loss"), (0.15, "test_loss")):
            values = [one[name][part] for one in measured]
            filled = look["color"] if part == "test_loss" else "none"
            axes[1].plot(
                [place + shift] * len(values), values, look["marker"], color=look["color"], markerfacecolor=filled
            )
    whole_epochs(axes[0])
    axes[0].set_ylabel("test loss")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    axes[1].set_xticks(range(len(names)), ["dropout\nand LRN", "without\ndropout", "without\nLRN"])
    axes[1].set_xlim(-0.6, len(names) - 0.4)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("final loss: hollow training, filled test")
    numbers = "; ".join(
        f"{name}: training loss {np.mean([one[name]['train_loss'] for one in measured]):.2f}, test loss "
        f"{np.mean([one[name]['test_loss'] for one in measured]):.2f}, test accuracy "
        f"{100 * np.mean([one[name]['test_accuracy'] for one in measured]):.1f} %"
        for name in names
    )
    return [
        Drawing(
            "dropout",
            figure,
            f"Test loss by epoch, and final training and test loss. {numbers}",
            "AlexNet on few training images. Left: test loss, mean and range over the seeds. Right: the loss on the "
            "training images (hollow) and the test images (filled), both without dropping anything, after the last "
            "epoch, one point for each seed.",
        )
    ]


STUDY = Study(
    name="alexnet",
    title="AlexNet: dropout, local response normalisation, and a GPU",
    why="Dropout trains a new part of the network in each step, so units can't rely on each other, and the network "
    "learns its few images by heart later; it also learns everything later. It helps where training is long enough to "
    "overfit: with tens of millions of weights and many epochs, not in a short run. Local response normalisation "
    "makes neighbouring channels compete; its gain was 1.4 points in 2012, and later networks left it out.",
    source="Krizhevsky et al. 2012, sections 3.1 to 3.3 and 4.2; Srivastava et al. 2014, section 6",
    claims=(
        Claim(
            "gap",
            "Dropout reduces overfitting: it narrows the gap between training and test loss.",
            "test loss minus training loss at the end, without dropout, minus the same with dropout",
            lambda one: _gap(one, _WITHOUT) - _gap(one, _WITH),
            above=0.05,
            scale="longer training (--full)",
        ),
        Claim(
            "accuracy",
            "Dropout raises the test accuracy.",
            "test accuracy with dropout minus that without, after as many epochs, in points",
            lambda one: 100 * (one[_WITH]["test_accuracy"] - one[_WITHOUT]["test_accuracy"]),
            above=1,
            scale="longer training and larger images (--full)",
        ),
        Claim(
            "slower",
            "Dropout makes training longer: about twice in the paper.",
            "epochs to 25 % test error (at most all) with dropout over those without",
            lambda one: _epochs(one, _WITH) / _epochs(one, _WITHOUT),
            above=1.2,
        ),
        Claim(
            "lrn",
            "Local response normalisation (LRN) lowers the test error: by 1.4 points in the paper.",
            "test accuracy with LRN minus that without, in points",
            lambda one: 100 * (one[_WITH]["test_accuracy"] - one[_NO_LRN]["test_accuracy"]),
            above=1,
            scale="photographs and thousands of test images (--full --dataset)",
        ),
        Claim(
            "gpu",
            "A GPU trains AlexNet several times faster than a CPU.",
            "seconds of a training step at 224 pixels on the CPU over those on the GPU",
            lambda one: one["gpu"],
            above=5,
            scale="a GPU",
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(),
    full=Settings(
        arch="alexnet_2012",
        num_filters=96,
        hidden_features=4096,
        image_size=224,
        images=None,
        test_images=None,
        epochs=90,
        batch_size=128,
        optimizer="momentum",
        learning_rate=0.01,
    ),
    seconds=122,
)
