"""Transfer: a network trained on some classes learns others sooner and from fewer images, if it gets them normalised as
it is used to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from experiments.studies.data import labels_of, of_classes, subset
from experiments.studies.drawing import new_figure, spread_line, style
from experiments.studies.lab import Lab, Trained
from experiments.studies.study import Claim, Drawing, Measured, Study
from jaxnets.data.sources import PHOTO_MEAN, PHOTO_STD, Channels, Dataset, Subset
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

# Adam's learning rates. That from scratch is the better of 3e-3 and 1e-2 on the val images of seed 10; with it `full`,
# for which both are as good, shares its compiled step. The others are not tuned at this scale.
RATES = {"scratch": 1e-2, "full": 1e-2, "partial": 1e-2, "head": 3e-2}
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


def _final(measured: Measured, way: str, images: int) -> float:
    return float(measured["curves"][str(images)][way][-1])


def _share_of_steps(measured: Measured) -> float:
    """The steps until `full` is as accurate as training from scratch is at the end, as a share of those from scratch.

    If it never is, it counts as having taken twice as long as the training.
    """
    curves = measured["curves"][str(measured["few"])]
    aim = curves["scratch"][-1]
    full, scratch = (next((i for i, a in enumerate(curves[way], 1) if a >= aim), None) for way in ("full", "scratch"))
    assert scratch is not None
    return (full or 2 * len(curves["full"])) / scratch


def _gain(measured: Measured) -> float:
    images = [images for images in measured["images"] if images <= measured["few"]]
    return float(np.mean([_final(measured, "full", n) - _final(measured, "scratch", n) for n in images]))


def _lost(measured: Measured, way: str) -> float:
    return _final(measured, way, measured["few"]) - float(measured["wrong"][way][-1])


def _draw(measured: Sequence[Measured]) -> list[Drawing]:
    first = measured[0]
    few, ways = first["few"], ("scratch", *WAYS)
    figure, (sooner, fewer) = new_figure(2, sharey=True)
    for place, way in enumerate(ways):
        curves = [[100 * value for value in one["curves"][str(few)][way]] for one in measured]
        steps = [first["steps_an_epoch"] * epoch for epoch in range(1, len(curves[0]) + 1)]
        spread_line(sooner, steps, curves, "from scratch" if way == "scratch" else way, place)
        finals = [[100 * _final(one, way, images) for images in one["images"]] for one in measured]
        spread_line(fewer, first["images"], finals, way, place)
    sooner.set_title(f"{few} images of each class", fontsize=11)
    sooner.set_xlabel("steps")
    sooner.set_ylabel("test accuracy, %")
    fewer.set_title("at the end", fontsize=11)
    fewer.set_xscale("log")
    fewer.set_xticks(first["images"], list(map(str, first["images"])))
    fewer.minorticks_off()
    fewer.set_xlabel("training images of each class")
    sooner.legend(frameon=False, loc="lower right")
    ends = ", ".join(f"{way} {100 * np.mean([_final(one, way, few) for one in measured]):.0f} %" for way in ways)
    return [
        Drawing(
            "curves",
            figure,
            f"Test accuracy by step and by number of images; with {few} images of each class the ends are {ends}",
            "Test accuracy on the new classes, mean and range over the seeds, after training on the other classes and "
            "from scratch.",
        ),
        _draw_normalisations(measured),
    ]


def _draw_normalisations(measured: Sequence[Measured]) -> Drawing:
    few = measured[0]["few"]
    groups = {
        "as it is": {name: [one["as_it_is"][name] for one in measured] for name in measured[0]["as_it_is"]},
        **{
            f"{way}, fine-tuned": {
                OWN: [_final(one, way, few) for one in measured],
                RANGE: [one["wrong"][way][-1] for one in measured],
            }
            for way in ("head", "full")
        },
    }
    rows = [(f"{name}: {group}", values) for group, of in groups.items() for name, values in of.items()]
    figure, axis = new_figure(height=3.0)
    for place, (name, values) in enumerate(rows):
        look = style(int(not name.startswith(OWN)))
        axis.plot([100 * value for value in values], [place] * len(values), look["marker"], color=look["color"])
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 103)
    axis.set_xlabel("test accuracy, %")
    means = ", ".join(f"{name} {100 * np.mean(values):.0f} %" for name, values in rows)
    return Drawing(
        "preprocessing",
        figure,
        f"Test accuracy by normalisation: {means}",
        "The pretrained network with images that are normalised otherwise than in its training, a point for each seed: "
        f"as it is, on its own classes; and fine-tuned on {few} images of each new class.",
    )


STUDY = Study(
    name="transfer",
    title="Transfer: sooner, and from fewer images",
    why="The first layers of a trained network already find edges and strokes, which other classes consist of too, so "
    "less has to be learnt. A frozen trunk expects the numbers that it was trained with, and its statistics don't "
    "follow others; where all weights train, BatchNorm measures the new numbers and takes scale and shift out. With "
    "plenty of images the start matters little, and features that can't change become the limit.",
    source="Yosinski et al. 2014 (arXiv 1411.1792), section 4; He, Girshick, Dollar 2019 (arXiv 1811.08883), section 5",
    claims=(
        Claim(
            "sooner",
            "A pretrained network reaches a good result sooner.",
            "steps until `full` has the final accuracy of training from scratch, as a share of the steps that it takes "
            "from scratch, with ten images of each class",
            _share_of_steps,
            below=0.5,
        ),
        Claim(
            "little-data",
            "With few images a pretrained network gets better results.",
            "final test accuracy of `full` minus that from scratch, mean over up to ten images of each class",
            _gain,
            above=0.05,
        ),
        Claim(
            "preprocessing",
            "A pretrained network needs the preprocessing that it was trained with.",
            "test accuracy that it loses as it is with values from 0 to 255 instead of 0 to 1",
            lambda one: one["as_it_is"][OWN] - one["as_it_is"][RANGE],
            above=0.1,
        ),
        Claim(
            "preprocessing-head",
            "A new head does not make up for other preprocessing.",
            "final test accuracy that `head` loses with values from 0 to 255 instead of 0 to 1",
            lambda one: _lost(one, "head"),
            above=0.1,
        ),
        Claim(
            "preprocessing-full",
            "Training all weights does not make up for it either.",
            "final test accuracy that `full` loses with values from 0 to 255 instead of 0 to 1",
            lambda one: _lost(one, "full"),
            above=0.03,
        ),
        Claim(
            "plenty",
            "With plenty of images training from scratch catches up.",
            "final test accuracy of `full` minus that from scratch, with plenty of images",
            lambda one: one["plenty"]["full"][-1] - one["plenty"]["scratch"][-1],
            below=0.03,
        ),
        Claim(
            "frozen",
            "With plenty of images a frozen trunk falls behind training from scratch.",
            "final test accuracy from scratch minus that of `head`, with plenty of images",
            lambda one: one["plenty"]["scratch"][-1] - one["plenty"]["head"][-1],
            above=0.03,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(
        blocks=1,
        image_size=8,
        images=(2, 5, 10, 20),
        few=10,
        plenty=120,
        batch_size=50,
        epochs=20,
        plenty_epochs=5,
        trunk_epochs=6,
    ),
    full=Settings(
        blocks=3,
        image_size=32,
        images=(2, 5, 10, 20, 50),
        few=10,
        plenty=1000,
        batch_size=50,
        epochs=20,
        plenty_epochs=10,
        trunk_epochs=10,
    ),
    seconds=130,
)
