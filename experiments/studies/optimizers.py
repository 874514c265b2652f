"""Optimisers: SGD, momentum, Adagrad, RMSProp and Adam, each at the learning rate that suits it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from experiments.studies.data import subset
from experiments.studies.drawing import new_figure, spread_line, whole_epochs
from experiments.studies.lab import Lab
from experiments.studies.rates import AtRates, train_at_rates
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.data.sources import Dataset
from jaxnets.models.layers import Dense
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

# The largest learning rate that is tried; the others are halves of the one before.
LARGEST = {"sgd": 2.0, "momentum": 1.0, "adagrad": 0.5, "rmsprop": 2.0**-5, "adam": 2.0**-4}
_NAMES = {"sgd": "SGD", "momentum": "momentum", "adagrad": "Adagrad", "rmsprop": "RMSProp", "adam": "Adam"}
_TUNING_SEED = 1000


class Perceptron(nn.Module):
    """Two hidden layers of ReLUs over the grey levels of an image: [N, H, W, 3] -> logits [N, num_classes]."""

    num_classes: int
    dtype: DTypeLike
    width: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images.mean(axis=-1).reshape(len(images), -1)
        for layer in ("fc1", "fc2"):
            x = nn.relu(Dense(self.width, dtype=self.dtype, name=layer)(x))
        return Dense(self.num_classes, dtype=self.dtype, name="fc3")(x)


def perceptron(num_classes: int, dtype: DTypeLike, width: int = 32) -> nn.Module:
    """The network of the quick study."""
    return Perceptron(num_classes, dtype, width)


@dataclass(frozen=True)
class Settings:
    """The sizes of the study. `whole_steps` is the number of steps with all images in each step; `whole_images` is the
    number of those images. `loss` is the training loss that SGD and momentum race to.
    """

    arch: str
    image_size: int
    images: int | None
    batch_size: int
    epochs: int
    whole_images: int
    whole_steps: int
    rates: int = 10
    loss: float = 0.1


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """Each optimiser at all rates: with a seed of its own, which tunes, and with the seed of the lab, which counts."""
    data = subset(lab.dataset, lab.seed, settings.images)
    whole = subset(lab.dataset, lab.seed, settings.whole_images)
    measured: dict[str, Any] = {"loss": settings.loss, "epochs": settings.epochs}
    for name in LARGEST:

        def train(name: str = name) -> dict[str, Any]:
            tuning, final = _runs(lab, settings, name, data)
            best = _best(tuning)
            return {
                "rate": _rates(name, settings)[best],
                "losses": final.epoch_losses[:, best].tolist(),
                "val_accuracies": final.val_accuracies[:, best].tolist(),
                "test_accuracy": float(final.test_accuracies[best]),
                "effective": final.effective[:, best].tolist(),
                "steps": _steps(tuning, final, settings.loss),
            }

        measured[name] = lab.kept(name, train)
    for name in ("sgd", "momentum"):

        def race(name: str = name) -> int:
            tuning, final = _runs(lab, settings, name, whole, whole=True)
            return _steps(tuning, final, settings.loss)

        measured[name] = {**measured[name], "whole_steps": lab.kept(f"{name}, all images", race)}
    return measured


def _rates(name: str, settings: Settings) -> list[float]:
    return [LARGEST[name] / 2**place for place in reversed(range(settings.rates))]


def _runs(lab: Lab, settings: Settings, name: str, data: Dataset, *, whole: bool = False) -> list[AtRates]:
    """The runs at all rates with the seed that tunes and with that of the lab."""
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=settings.whole_steps if whole else settings.epochs,
        batch_size=len(data.train) if whole else settings.batch_size,
        optimizer=name,
        learning_rate=1.0,
        weight_decay=0.0,
        label_smoothing=0.0,
    )
    seeds = (lab.seed + _TUNING_SEED, lab.seed)
    return [
        train_at_rates(
            lab, Config(settings.arch, recipe, seed=seed), _rates(name, settings), data, judge_epochs=not whole
        )
        for seed in seeds
    ]


def _best(tuning: AtRates) -> int:
    """The rate of the highest val accuracy, its mean over the last quarter; of equal ones that of the lowest loss."""
    epochs = len(tuning.val_accuracies)
    accuracies = tuning.val_accuracies[epochs - max(1, epochs // 4) :].mean(axis=0)
    return int(np.lexsort((tuning.epoch_losses[-1], -accuracies))[0])


def _steps(tuning: AtRates, final: AtRates, loss: float) -> int:
    """The steps to the training loss, at the rate that takes fewest with the seed that tunes."""
    return int(final.steps_to(loss)[tuning.steps_to(loss).argmin()])


def _left(measured: Measured, name: str) -> float:
    """The share of the effective rate after the first epoch that is left at the end."""
    effective = measured[name]["effective"]
    return float(effective[-1] / effective[0])


def _largest_rise(measured: Measured) -> float:
    effective = np.array(measured["adagrad"]["effective"])
    return float((effective[1:] / effective[:-1]).max())


def _too_early(measured: Measured) -> float:
    adagrad, rmsprop, adam = (measured[name]["losses"][-1] for name in ("adagrad", "rmsprop", "adam"))
    return float(adagrad / max(min(rmsprop, adam), 1e-8))


def _best_of_all(measured: Measured) -> float:
    accuracies = {name: measured[name]["test_accuracy"] for name in LARGEST}
    return float(max(accuracies["sgd"], accuracies["momentum"]) - accuracies["adam"])


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    epochs = range(1, measured[0]["epochs"] + 1)
    figure, (left, right) = new_figure(2)
    for place, (name, label) in enumerate(_NAMES.items()):
        spread_line(left, epochs, [one[name]["losses"] for one in measured], label, place)
        accuracies = [[100 * value for value in one[name]["val_accuracies"]] for one in measured]
        spread_line(right, epochs, accuracies, label, place)
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel("val accuracy, %")
    # The first epochs would take most of the axis.
    right.set_ylim(bottom=100 * min(one[name]["val_accuracies"][-1] for one in measured for name in _NAMES) - 15)
    for axis in (left, right):
        whole_epochs(axis)
    left.legend(frameon=False, fontsize=8)
    rates, axis = new_figure()
    for place, name in ((2, "adagrad"), (3, "rmsprop"), (4, "adam")):
        effective = np.array([one[name]["effective"] for one in measured])
        spread_line(axis, epochs, effective / effective[:, :1], _NAMES[name], place)
    axis.set_yscale("log")
    whole_epochs(axis)
    axis.set_ylabel("effective learning rate,\nshare of that after one epoch")
    axis.legend(frameon=False)
    losses = ", ".join(f"{_mean(measured, name, 'losses'):.2g} {label}" for name, label in _NAMES.items())
    left_over = ", ".join(
        f"{np.mean([_left(one, name) for one in measured]):.2g} {_NAMES[name]}"
        for name in ("adagrad", "rmsprop", "adam")
    )
    return [
        Drawing(
            "curves",
            figure,
            f"Training loss and val accuracy by epoch for five optimisers; final losses {losses}",
            "Training loss and val accuracy at constant rates, mean and range over the seeds. Each optimiser has the "
            "rate of ten, each double the one before, that had the highest val accuracy with another seed.",
        ),
        Drawing(
            "effective",
            rates,
            f"The effective learning rate as a share of that after the first epoch; at the end {left_over}",
            "The median over the weights of the factor by which the next step multiplies the gradient. Adagrad divides "
            "by all past gradients, RMSProp and Adam by the recent ones; the factor of SGD and momentum is constant.",
        ),
        Table(
            "tuned",
            f"The rates that were chosen, the steps to a training loss of {measured[0]['loss']:g} at the rate that is "
            "fastest with another seed, and the test accuracy, for each seed.",
            ("optimiser", "rate", "steps", "steps, all images in each", "test accuracy"),
            [
                [
                    label,
                    ", ".join(f"{one[name]['rate']:.2g}" for one in measured),
                    ", ".join(str(one[name]["steps"]) for one in measured),
                    ", ".join(str(one[name].get("whole_steps", "")) for one in measured).strip(", "),
                    ", ".join(f"{one[name]['test_accuracy']:.1%}" for one in measured),
                ]
                for name, label in _NAMES.items()
            ],
        ),
    ]


def _mean(measured: Sequence[Measured], name: str, curve: str) -> float:
    return float(np.mean([one[name][curve][-1] for one in measured]))


STUDY = Study(
    name="optimizers",
    title="Optimisers: which way, and how far",
    why="Momentum adds up past gradients, which helps where the loss is steep in one direction and flat in another; "
    "when small batches limit the rate by their noise, SGD at a ten times larger rate makes the same progress. Adagrad "
    "divides each weight's rate by the root of the sum of its squared gradients, so its rate can only fall; RMSProp "
    "and Adam take a moving average, which forgets. How early Adagrad's fall is too early depends on the length of the "
    "run and on its tuned rate, and which optimiser ends best depends on the network and the data.",
    source="Duchi et al. 2011 (Adagrad), figure 1 of Kingma & Ba 2014 (Adam), Tieleman & Hinton 2012 (RMSProp), "
    "Sutskever et al. 2013 (momentum), Wilson et al. 2017 (which ends best)",
    claims=(
        Claim(
            "adagrad-falls",
            "Adagrad's rate falls as squared gradients add up.",
            "share of the effective rate after the first epoch that is left at the end",
            lambda one: _left(one, "adagrad"),
            below=0.5,
        ),
        Claim(
            "adagrad-never-rises",
            "Adagrad's rate never rises.",
            "largest ratio of the effective rate after an epoch to that after the epoch before",
            _largest_rise,
            below=1.0001,
        ),
        Claim(
            "adagrad-too-early",
            "Adagrad's rate falls too early: it may stop before it has converged.",
            "Adagrad's training loss in the last epoch, as a multiple of the lower one of RMSProp and Adam",
            _too_early,
            above=2,
            scale="longer runs, of networks that are harder to train (--full)",
        ),
        Claim(
            "rmsprop-bounded",
            "RMSProp's rate does not fall to zero.",
            "share of RMSProp's effective rate that is left at the end, as a multiple of Adagrad's share",
            lambda one: _left(one, "rmsprop") / _left(one, "adagrad"),
            above=2,
        ),
        Claim(
            "momentum-batches",
            "Momentum is faster than SGD, with small batches.",
            "steps of SGD to the training loss, as a multiple of those with momentum",
            lambda one: one["sgd"]["steps"] / one["momentum"]["steps"],
            above=1.25,
        ),
        Claim(
            "momentum-all-images",
            "Momentum is faster than SGD, with all images in each step.",
            "steps of SGD to the training loss, as a multiple of those with momentum",
            lambda one: one["sgd"]["whole_steps"] / one["momentum"]["whole_steps"],
            above=1.25,
        ),
        Claim(
            "sgd-ends-best",
            "SGD is slow but may end best.",
            "test accuracy of the better one of SGD and momentum minus that of Adam",
            _best_of_all,
            above=0.005,
            scale="the papers' networks, thousands of test images and a schedule (--full)",
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        arch="experiments.studies.optimizers:perceptron",
        image_size=8,
        images=500,
        batch_size=50,
        epochs=60,
        whole_images=500,
        whole_steps=200,
    ),
    full=Settings(
        arch="resnet20_cifar",
        image_size=32,
        images=None,
        batch_size=128,
        epochs=60,
        whole_images=2000,
        whole_steps=600,
    ),
    seconds=40,
)
