"""Batch normalisation: what it does to a batch, what it is good for, and what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from experiments.studies.data import labels_of, subset
from experiments.studies.drawing import new_figure, spread_line, style
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.data.sources import Dataset
from jaxnets.models.layers import Activation, BatchNorm
from jaxnets.models.registry import create_model
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

_NETWORK = "experiments.studies.batch_norm:network"
_MOST_LOSS = 10.0  # what a loss counts at most, and where training diverged
_SHOWN, _SHOWN_CHANNELS = "layer2_0/bn1", 3
_POPULATION = 4096
_BINS = np.linspace(-4, 4, 41)
_LINES = [{name: style(place)[name] for name in ("color", "linestyle")} for place in range(_SHOWN_CHANNELS)]


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
        return np.minimum(np.nan_to_num(trained.losses, nan=_MOST_LOSS), _MOST_LOSS).tolist()

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
    _, norms, shown = observe(model, variables, batch, _SHOWN)
    _, population, _ = observe(
        model, variables, images_of(data.train, range(min(len(data.train), _POPULATION))), _SHOWN
    )
    errors = [errors_at(population, images, lab.seed) for images in settings.sizes]

    test, right = data.judged(), trained.on("test").right
    labels = labels_of(test)
    groups = [np.resize(np.flatnonzero(labels == label), size) for label in np.unique(labels)]
    mixed = np.random.default_rng(lab.seed).permutation(np.concatenate(groups))

    def accuracy(batches: Any) -> float:
        """The accuracy in training mode."""
        found = [observe(model, variables, images_of(test, batch), _SHOWN)[0].argmax(axis=1) for batch in batches]
        return float((np.concatenate(found) == labels[np.concatenate(batches)]).mean())

    return {
        "moments": {name: np.array(norm["normalised"]).tolist() for name, norm in norms.items()},
        "outputs": {name: np.array(norm["outputs"]).tolist() for name, norm in norms.items()},
        "histograms": [
            [np.histogram(channel, _BINS, density=True)[0].tolist() for channel in np.asarray(values).T]
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


@partial(jax.jit, static_argnames=("model", "shown"))
def observe(model: Any, variables: Any, images: jax.Array, shown: str) -> tuple[jax.Array, dict[str, Any], Any]:
    """A pass in training mode: logits [N, K]; for each norm `image_moments`, mean and mean square [N, C] of its input
    in each image, and mean and variance [C] of its `normalised` values and of its `outputs`, before any activation;
    and what the norm `shown` reads and has normalised, [..., C].
    """
    norms: dict[str, Any] = {}
    values: list[jax.Array] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = context.module
        if context.method_name != "__call__" or not isinstance(norm, BatchNorm):
            return call(*args, **kwargs)
        inputs, *activation = args
        outputs, name = call(inputs), "/".join(norm.path)
        params = norm.variables["params"]
        normalised = (outputs - params["bias"]) / params["scale"]
        norms[name] = {
            "image_moments": (inputs.mean(axis=(1, 2)), jnp.square(inputs).mean(axis=(1, 2))),
            "normalised": (normalised.mean(axis=(0, 1, 2)), normalised.var(axis=(0, 1, 2))),
            "outputs": (outputs.mean(axis=(0, 1, 2)), outputs.var(axis=(0, 1, 2))),
        }
        if name == shown:
            values.extend(array.reshape(-1, array.shape[-1])[:, :_SHOWN_CHANNELS] for array in (inputs, normalised))
        return activation[0](outputs) if activation and activation[0] is not None else outputs

    with nn.intercept_methods(record):
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, norms, values


def errors_at(norms: Mapping[str, Any], images: int, seed: int) -> list[float]:
    """The root mean squares, over channels and batches of `images` images, of the errors of a batch's mean, in standard
    deviations, and of its variance, relative to the variance; the truth is that of all images of `observe`.
    """
    squares = []
    for norm in norms.values():
        means, mean_squares = (np.asarray(moments, np.float64) for moments in norm["image_moments"])
        mean, var = means.mean(axis=0), mean_squares.mean(axis=0) - means.mean(axis=0) ** 2
        order = np.random.default_rng(seed).permutation(len(means))[: len(means) // images * images]
        of_batch, square_of_batch = (
            part[order].reshape(-1, images, len(mean)).mean(1) for part in (means, mean_squares)
        )
        var_of_batch = square_of_batch - of_batch**2
        alive = var > 1e-12
        squares.append(((of_batch - mean) ** 2 / var)[:, alive].mean())
        squares.append(((var_of_batch / var - 1) ** 2)[:, alive].mean())
    return [float(np.sqrt(np.mean(squares[kind::2]))) for kind in (0, 1)]


def bias_effect(model: Any, variables: Any, images: jax.Array, labels: np.ndarray, seed: int) -> dict[str, float]:
    """What random biases of all convolutions change, in float64 and training mode: the logits' largest change, relative
    to the largest logit; and the largest ratio of the gradients' norms, of a bias to its kernel.
    """
    with jax.enable_x64(True):
        random = np.random.default_rng(seed)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
        flat = flatten_dict(params)
        convolutions = [path[:-1] for path, leaf in flat.items() if leaf.ndim == 4]
        biases = {(*path, "bias"): random.normal(size=flat[*path, "kernel"].shape[-1]) for path in convolutions}
        stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables.get("batch_stats", {})))
        inputs = jnp.asarray(np.asarray(images, np.float64))

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = model.clone(dtype=jnp.float64).apply(
                {"params": unflatten_dict(params), "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, plain), _ = program(flat | {path: np.zeros_like(bias) for path, bias in biases.items()})
        (_, biased), gradients = program(flat | biases)
    norms = {path: float(np.linalg.norm(np.ravel(leaf))) for path, leaf in gradients.items()}
    change = np.abs(np.asarray(plain) - np.asarray(biased)).max()
    return {
        "outputs": float(change / np.abs(np.asarray(plain)).max()),
        "gradient": max(norms[*path, "bias"] / norms[*path, "kernel"] for path in convolutions),
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


def deviation(measured: Measured, which: str) -> float:
    """The largest deviation of a channel's mean from 0, or of its variance from 1."""
    return max(float(np.abs(np.subtract(moments, [[0], [1]])).max()) for moments in measured[which].values())


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    first = measured[0]
    figure, axes = new_figure(2, height=2.8)
    for axis, title, channels in zip(axes, ("before", "after"), first["histograms"], strict=True):
        for place, heights in enumerate(channels):
            axis.stairs(heights, _BINS, label=f"channel {place + 1}", **_LINES[place], linewidth=1.5)
        axis.set_title(f"{title} normalisation", fontsize=11)
        axis.set_xlabel("value")
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False)
    drawings: list[Drawing | Table] = [
        Drawing(
            "histograms",
            figure,
            "Distributions of the values of three channels in a batch: before normalisation with other means and "
            "widths, after it all around 0 with the same width",
            f"Values of three channels of {_SHOWN} in a batch of training images. Their means and variances become "
            "equal; the shapes of the distributions stay.",
        )
    ]

    figure, axis = new_figure()
    for place, name in enumerate(("with", "without")):
        finals = [[losses[-1] for losses in one[name]] for one in measured]
        spread_line(axis, first["rates"], finals, f"{name} BatchNorm", place)
    axis.axhline(np.log(first["classes"]), color="#666666", linewidth=1, linestyle=":")
    axis.annotate("guessing", (first["rates"][0], np.log(first["classes"])), (0, 3), textcoords="offset points")
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"final training loss, at most {_MOST_LOSS:g}")
    axis.legend(frameon=False)
    ends = [np.mean([largest_rate(one, name) for one in measured]) for name in ("with", "without")]
    drawings.append(
        Drawing(
            "rates",
            figure,
            f"Final training loss by learning rate: with BatchNorm the network learns at rates up to {ends[0]:.2g}, "
            f"without it up to {ends[1]:.2g}",
            "The same network at the same rates, with and without BatchNorm: mean and range over the seeds.",
        )
    )

    figure, axes = new_figure(2)
    sizes = first["sizes"]
    spread_line(axes[0], sizes, [[100 * value for value in one["batches"]] for one in measured], "whole batches", 0)
    label = f"groups in a batch of {sizes[-1]}"
    spread_line(axes[0], sizes, [[100 * value for value in one["local"]] for one in measured], label, 1)
    axes[0].set_ylabel("test accuracy, %")
    for kind, name in enumerate(("mean", "variance")):
        spread_line(axes[1], sizes, [[errors[kind] for errors in one["errors"]] for one in measured], name, kind)
    start = np.mean([errors for one in measured for errors in one["errors"][:1]])
    axes[1].plot(sizes, start * (np.array(sizes) / sizes[0]) ** -0.5, ":", color="#666666", label="slope -1/2")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("error of the batch's statistics")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("images normalised together")
        axis.legend(frameon=False)
    slopes = [np.mean([slope(one, kind) for one in measured]) for kind in (0, 1)]
    drawings.append(
        Drawing(
            "sizes",
            figure,
            f"Left: test accuracy rises with the number of images normalised together, from "
            f"{100 * np.mean([one['batches'][0] for one in measured]):.0f} % to "
            f"{100 * np.mean([one['batches'][-1] for one in measured]):.0f} %. Right: the errors of a batch's mean and "
            f"variance fall with slopes of {slopes[0]:.2f} and {slopes[1]:.2f} in logarithms",
            "Left: accuracy in eval mode after training on equally many images, with batches of this size at rates in "
            f"proportion to it, or with batches of {sizes[-1]} whose groups of this size are normalised apart, as "
            "replicas with local statistics do. Right: how far mean (in standard deviations) and variance (relative) "
            "of a batch are from those of the training images.",
        )
    )
    rows = [
        [text, " ".join(f"{100 * one[key]:.1f}" for one in measured)]
        for text, key in (
            ("eval mode", "eval"),
            ("training mode, batches of all classes", "train_mixed"),
            ("training mode, batches of two images", "train_pairs"),
            ("training mode, batches of one class", "train_one_class"),
            ("trained and evaluated in eval mode", "trained_in_eval_mode"),
        )
    ]
    caption = "Accuracy on test images in either mode of the network, for each seed."
    return [*drawings, Table("modes", caption, ("mode", "accuracy, %"), rows)]


STUDY = Study(
    name="batch_norm",
    title="Batch normalisation: what it does and what it needs",
    why="In training mode each channel is normalised with the mean and variance of the batch, so the scale of the "
    "weights before it does not matter: a step that is too large makes them larger, and later gradients smaller. The "
    "statistics of a batch have errors in proportion to 1 / sqrt(images), and eval mode uses running averages instead; "
    "so the two modes differ, the more the smaller or the less mixed the batches are. A bias of the convolution is a "
    "part of the mean, which is subtracted.",
    source="Ioffe & Szegedy 2015, sections 3 to 3.3 and 4.2, figure 2; Wu & He 2018 (Group Normalization), figure 1; "
    "Wu & Johnson 2021, sections 3 and 4",
    claims=(
        Claim(
            "normalises",
            "BatchNorm gives each channel of a batch the mean 0 and the variance 1, before its scale and bias.",
            "largest deviation of mean or variance, over all channels of a trained network",
            lambda one: deviation(one, "moments"),
            below=0.01,
        ),
        Claim(
            "faster",
            "Networks with BatchNorm learn faster.",
            "mean training loss over all epochs without BatchNorm, divided by that with it, each at its best rate",
            lambda one: best(one, "without") / best(one, "with"),
            above=1.5,
        ),
        Claim(
            "higher-rates",
            "They still learn at rates at which the same network without BatchNorm does not.",
            "largest rate of the sweep that halves the training loss, divided by that without BatchNorm",
            lambda one: largest_rate(one, "with") / (largest_rate(one, "without") or one["rates"][0]),
            above=2.5,
        ),
        Claim(
            "before-activation",
            "BatchNorm belongs between convolution and activation.",
            "mean training loss with BatchNorm after the activation, divided by that before it, each at its best rate",
            lambda one: best(one, "late", "late_rates") / best(one, "with", "late_rates"),
            above=1.1,
            scale="deeper networks and longer training (--full)",
        ),
        Claim(
            "small-batches",
            "Small batches can perform very badly.",
            "test accuracy with the largest batches minus that with batches of one image, in points",
            lambda one: 100 * (one["batches"][-1] - one["batches"][0]),
            above=5,
            scale="harder images (--full)",
        ),
        Claim(
            "synchronised",
            "Where each replica has few images, synchronised statistics are better than local ones.",
            "test accuracy with the statistics of whole batches minus that with those of two images each, in points",
            lambda one: 100 * (one["local"][-1] - one["local"][1]),
            above=5,
            scale="harder images (--full)",
        ),
        Claim(
            "statistics",
            "The larger the batch, the closer its mean and variance are to those of the whole training set.",
            "largest distance from -1/2 of the slope of the error by the batch size, both as logarithms",
            lambda one: max(abs(slope(one, kind) + 0.5) for kind in (0, 1)),
            below=0.1,
        ),
        Claim(
            "bias-outputs",
            "A convolution's bias before BatchNorm has no effect on the outputs.",
            "largest change of the logits by random biases in training mode, in float64, relative to the largest logit",
            lambda one: one["bias"]["outputs"],
            below=1e-10,
        ),
        Claim(
            "bias-gradient",
            "It has no gradient either.",
            "largest ratio of the norms of the gradients of a bias and of its kernel, in float64",
            lambda one: one["bias"]["gradient"],
            below=1e-12,
        ),
        Claim(
            "evaluated-in-training-mode",
            "Evaluating in training mode costs accuracy, if a batch does not have all classes.",
            "accuracy in eval mode minus that in training mode with batches of one class, in points",
            lambda one: 100 * (one["eval"] - one["train_one_class"]),
            above=5,
        ),
        Claim(
            "trained-in-eval-mode",
            "Training in eval mode costs accuracy.",
            "test accuracy after training in training mode minus that after training in eval mode, in points",
            lambda one: 100 * (one["test"] - one["trained_in_eval_mode"]),
            above=5,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        stage_sizes=(1, 1, 1),
        num_filters=8,
        image_size=8,
        images=1024,
        epochs=5,
        batch_size=64,
        rates=(0.03, 0.1, 0.3, 1.0, 3.0),
        late_rates=(0.1, 0.3),
        learning_rate=0.2,
        sizes=(1, 2, 4, 8, 16, 32, 64),
        few_images=512,
        few_epochs=3,
    ),
    full=Settings(
        stage_sizes=(3, 3, 3),
        num_filters=16,
        image_size=32,
        images=None,
        epochs=20,
        batch_size=128,
        rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        late_rates=(0.1, 0.3),
        learning_rate=0.1,
        sizes=(1, 2, 4, 8, 16, 32, 64, 128),
        few_images=10_000,
        few_epochs=4,
    ),
    seconds=140,
)
