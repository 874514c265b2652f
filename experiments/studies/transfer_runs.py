"""Runs of the study of transfer: on some classes, from scratch and from a network trained on the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from experiments.studies.data import labels_of, of_classes, subset
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Measured
from jaxnets.data.sources import PHOTO_MEAN, PHOTO_STD, Channels, Dataset, Subset
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

# Adam's learning rates. Of 3e-3, 1e-2 and 3e-2, the first is soonest from scratch and for `full` with the seeds 20 and
# 21; at the end all are within a few points of each other. The others are not tuned at this scale.
RATES = {"scratch": 3e-3, "full": 3e-3, "partial": 1e-2, "head": 3e-2}
WAYS = ("full", "partial", "head")
OWN, RANGE = "its own", "0 to 255"
Normalisations = Mapping[str, tuple[Channels, Channels]]


@dataclass(frozen=True)
class Settings:
    """The sizes of the study: `images` of each new class, of which `few` is the number for the curves and for other
    preprocessing, and `plenty`. `blocks` are those of each of the three stages.
    """

    blocks: int
    image_size: int
    images: tuple[int, ...]
    few: int
    plenty: int
    batch_size: int
    epochs: int
    plenty_epochs: int
    trunk_epochs: int


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """Accuracies on the second half of the classes: from scratch, and after training on the first half."""
    count = len(lab.dataset.class_names)
    known, new = (of_classes(lab.dataset, range(*part)) for part in ((0, count // 2), (count // 2, count)))
    pretrained = cache(lambda: pretrain(lab, known, settings))
    normalisations = normalisations_of(lab.dataset)

    def curve(way: str, images: int, normalisation: str = OWN) -> list[float]:
        data = new_images(new, lab.seed, images, settings)
        mean, std = normalisations[normalisation]
        epochs = settings.epochs if images in settings.images else settings.plenty_epochs
        config = _config(settings, epochs, RATES[way])
        if way in ("partial", "head"):
            train_from = "layer3" if way == "partial" else None
            config = replace(config, weights="the known classes", transfer=way, train_from=train_from)

        def train() -> list[float]:
            start = None if way == "scratch" else pretrained().variables
            return lab.train(config, replace(data, mean=mean, std=std), start=start).val_accuracies

        kept: list[float] = lab.kept(f"{way} {images} {normalisation}", train)
        return kept

    def curves(images: int) -> dict[str, list[float]]:
        return {way: curve(way, images) for way in ("scratch", *WAYS)}

    return {
        "images": settings.images,
        "few": settings.few,
        "steps_an_epoch": -(-max(settings.images) * len(new.class_names) // settings.batch_size),
        "curves": {str(images): curves(images) for images in settings.images},
        "plenty": curves(settings.plenty),
        "as_it_is": lab.kept("as it is", lambda: accuracies_as_it_is(pretrained(), normalisations)),
        "wrong": {way: curve(way, settings.few, RANGE) for way in ("full", "head")},
    }


def pretrain(lab: Lab, known: Dataset, settings: Settings) -> Trained:
    """The network trained on the known classes."""
    return lab.train(_config(settings, settings.trunk_epochs, RATES["scratch"]), replace(known, val=None))


def new_images(new: Dataset, seed: int, images: int, settings: Settings) -> Dataset:
    """The new classes with `images` of each for training. They are repeated, so that few are trained for as many steps
    as the most of `settings.images`. Each epoch is judged on the test images; nothing is chosen by them.
    """
    data = subset(new, seed, images * len(new.class_names))
    size = max(len(data.train), max(settings.images) * len(new.class_names))
    return replace(data, train=Subset(data.train, np.resize(np.arange(len(data.train)), size)), val=data.test)


def _config(settings: Settings, epochs: int, learning_rate: float) -> Config:
    recipe = Recipe(
        image_size=settings.image_size,
        epochs=epochs,
        batch_size=settings.batch_size,
        optimizer="adam",
        learning_rate=learning_rate,
        weight_decay=0.0,
        warmup_epochs=0.0,
        label_smoothing=0.0,
    )
    return Config("resnet20_cifar", recipe, network_options={"stage_sizes": [settings.blocks] * 3})


def normalisations_of(dataset: Dataset) -> Normalisations:
    """Means and deviations, for values from 0 to 1: the data set's own, and what a network may get by mistake."""
    mean, std = (tuple(value / 255 for value in values) for values in (dataset.mean, dataset.std))
    return {
        OWN: (dataset.mean, dataset.std),
        "ImageNet's": (PHOTO_MEAN, PHOTO_STD),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        RANGE: (mean, std),  # type: ignore[dict-item]
    }


def accuracies_as_it_is(pretrained: Trained, normalisations: Normalisations) -> dict[str, float]:
    """The accuracy of a network on its own test images, with each normalisation."""
    run, test = pretrained.run, pretrained.run.dataset.judged()
    forward: Callable[..., Any] = jax.jit(partial(run.network.apply, train=False))
    accuracies = {}
    for name, (mean, std) in normalisations.items():
        preprocess = replace(run.preprocessing, mean=mean, std=std)
        images = np.stack([preprocess(test[index].image) for index in range(len(test))])
        predicted = np.asarray(forward(pretrained.variables, images)).argmax(axis=1)
        accuracies[name] = float((predicted == labels_of(test)).mean())
    return accuracies


def final(measured: Measured, way: str, images: int) -> float:
    """The test accuracy at the end, on the new classes."""
    return float(measured["curves"][str(images)][way][-1])


def early_gain(measured: Measured) -> float:
    """The accuracy that `full` is ahead of training from scratch, mean over the first third of the steps and all
    numbers of images.
    """
    ways = [[curves[way] for curves in measured["curves"].values()] for way in ("full", "scratch")]
    full, scratch = (np.array(curves)[:, : len(curves[0]) // 3].mean() for curves in ways)
    return float(full - scratch)


def gain(measured: Measured) -> float:
    """The accuracy that `full` gains over training from scratch, mean over up to `few` images."""
    images = [images for images in measured["images"] if images <= measured["few"]]
    return float(np.mean([final(measured, "full", n) - final(measured, "scratch", n) for n in images]))


def lost(measured: Measured, way: str) -> float:
    """The accuracy that a way loses by other preprocessing."""
    return final(measured, way, measured["few"]) - float(measured["wrong"][way][-1])
