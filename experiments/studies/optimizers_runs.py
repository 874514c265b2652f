"""Runs of the study of optimisers: each at ten learning rates."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from experiments.studies.data import subset
from experiments.studies.lab import Lab
from experiments.studies.rates import AtRates, train_at_rates
from experiments.studies.study import Measured
from jaxnets.data.sources import Dataset
from jaxnets.models.layers import Dense
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

# The largest learning rate that is tried; the others are halves of the one before.
LARGEST = {"sgd": 2.0, "momentum": 1.0, "adagrad": 0.5, "rmsprop": 2.0**-5, "adam": 2.0**-4}
NAMES = {"sgd": "SGD", "momentum": "momentum", "adagrad": "Adagrad", "rmsprop": "RMSProp", "adam": "Adam"}
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


def share_left(measured: Measured, name: str) -> float:
    """The share of the effective rate after the first epoch that is left at the end."""
    effective = measured[name]["effective"]
    return float(effective[-1] / effective[0])


def largest_rise(measured: Measured) -> float:
    """The largest ratio of Adagrad's effective rates after an epoch and after the one before."""
    effective = np.array(measured["adagrad"]["effective"])
    return float((effective[1:] / effective[:-1]).max())


def ratio_of_losses(measured: Measured, name: str, other: str) -> float:
    """The last training loss of an optimiser, as a multiple of that of another."""
    losses, others = (measured[each]["losses"] for each in (name, other))
    return float(losses[-1] / max(others[-1], 1e-8))


def better(measured: Measured, name: str, other: str) -> float:
    """The test accuracy of an optimiser minus that of another."""
    return float(measured[name]["test_accuracy"] - measured[other]["test_accuracy"])
