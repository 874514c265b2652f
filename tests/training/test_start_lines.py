"""What a run says before it starts, and a dry run, which ends there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxnets import InputError
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipes import RECIPES, recipe_for
from jaxnets.training.setup import set_up
from jaxnets.training.start_lines import skew_warnings, start_lines
from tests.training.tiny import GREYS, PLAIN, Tiny

ONE = Parallel.choose("jit")


def skewed(counts: tuple[int, ...]) -> Dataset:
    """Black images, so many of each class for training, and one of each for the test."""
    names = tuple(f"class {index}" for index in range(len(counts)))
    train, test = (np.repeat(np.arange(len(counts)), part) for part in (counts, 1))
    sources = [ArraySource(np.zeros((len(labels), 8, 8), np.uint8), labels) for labels in (train, test)]
    return Dataset("skewed", names, *sources)


def lines_of(config: Config, dataset: Dataset) -> dict[str, str]:
    lines = start_lines(set_up(config, dataset, ONE), ONE, Path("runs/it"))
    return {line[:12].strip(): line[12:] for line in lines}


RECIPE = replace(recipe_for("resnet20_cifar", "photos"), image_size=8, batch_size=4, epochs=3, warmup_epochs=2.0)


def test_the_lines_say_what_will_happen() -> None:
    options = {"stage_sizes": [1], "activation": "gelu"}
    config = Config("resnet20_cifar", RECIPE, "greys", network_options=options)
    lines = lines_of(config, GREYS)
    assert lines["data"] == "greys, 2 classes"
    assert lines["train"] == "32 images: 'dark' 16, 'light' 16"
    assert lines["test"] == "13 images: 'dark' 7, 'light' 6"
    parameters = 3 * 3 * 3 * 16 + 2 * 16 + 2 * (3 * 3 * 16 * 16 + 2 * 16) + 16 * 2 + 2
    assert lines["network"] == f"resnet20_cifar, stage_sizes=[1], activation=gelu: {parameters:,} parameters"
    assert lines["image size"] == "8 x 8 pixels"
    assert (
        lines["recipe"] == "the default of resnet20_cifar with image_size=8, epochs=3, batch_size=4, warmup_epochs=2.0"
    )
    assert lines["optimizer"] == "adam, learning rate 0.001, schedule cosine after 2 epochs of warm-up"
    assert lines["length"] == "3 epochs, 24 steps of 4 images"
    assert lines["device"] == "1 cpu by jit"
    assert lines["writes to"] == "runs/it"


def test_a_named_recipe_is_recognised() -> None:
    recipe = replace(RECIPES["resnet_cifar"], image_size=8, batch_size=4, epochs=2, decay_epochs=(1.0,))
    lines = lines_of(Config("resnet20_cifar", recipe, "greys", network_options={"stage_sizes": [1]}), GREYS)
    assert lines["recipe"].startswith("resnet_cifar with image_size=8, epochs=2, batch_size=4")


def test_of_many_classes_the_smallest_and_the_largest_are_named() -> None:
    dataset = skewed((5, 3, 9, *[4] * 9))
    config = Config("resnet20_cifar", RECIPE, "skewed", network_options={"stage_sizes": [1]})
    lines = lines_of(config, dataset)
    assert lines["data"] == "skewed, 12 classes"
    assert lines["train"] == "53 images: 3 ('class 1') to 9 ('class 2') in a class"


@pytest.mark.parametrize(("counts", "is_skewed"), [((9, 3), False), ((10, 3), True), ((2, 7, 1), True)])
def test_a_skew_of_more_than_three_is_warned_of(counts: tuple[int, ...], is_skewed: bool) -> None:
    warnings = skew_warnings(replace(skewed(counts), labels={"train": np.repeat(np.arange(len(counts)), counts)}))
    assert len(warnings) == is_skewed
    if is_skewed:
        most, fewest = counts.index(max(counts)), counts.index(min(counts))
        assert f"class 'class {most}' has {max(counts)} training images, 'class {fewest}' only" in warnings[0]
        assert "--class-weights balanced or --sampler balanced" in warnings[0]


def test_what_is_probably_a_mistake_is_warned_of() -> None:
    recipe = replace(RECIPE, sampler="balanced", class_weights="balanced")
    config = Config("resnet20_cifar", recipe, "greys", val_share=0.3, network_options={"stage_sizes": [1]})
    warnings = [line for line in start_lines(set_up(config, GREYS, ONE), ONE, Path("it")) if line.startswith("warning")]
    assert len(warnings) == 2
    assert "--val-share 0.3 has no effect, as greys has val images of its own" in warnings[0]
    assert "twice; leave out --sampler or --class-weights" in warnings[1]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "runs" / "it"
    options = {"stage_sizes": [1]}
    config = Config("resnet20_cifar", RECIPE, "greys", network_options=options)
    assert train(config, workdir, GREYS, parallel=ONE, dry_run=True) == {}
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert "24 steps of 4 images" in said
    assert "compiling" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_options": {"stage_sizes": [1], "groups": 2}}, "it only takes 1 and 64"),
        ({"weights": "nowhere.pth"}, "there is no such file"),
        ({"recipe": replace(RECIPE, batch_size=64)}, "32 training images"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(tmp_path: Path, changes: dict, words: str) -> None:
    config = replace(Config("resnet20_cifar", RECIPE, network_options={"stage_sizes": [1]}), **changes)
    for dry_run in (True, False):
        with pytest.raises(InputError, match=words):
            train(config, tmp_path / "run", GREYS, parallel=ONE, dry_run=dry_run)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_finds_damaged_images(tmp_path: Path) -> None:
    train_images = GREYS.train

    class Damaged:
        def __len__(self) -> int:
            return len(train_images)

        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            if index == 5:
                raise InputError("image 5: can't be read")
            return train_images[index]

        def where(self, index: int) -> str:
            return f"image {index}"

        def fingerprint(self) -> str:
            return "damaged"

    with pytest.raises(InputError, match="1 of 56 images can't be used, the first is image 5"):
        train(
            Config("tiny", PLAIN),
            tmp_path / "run",
            replace(GREYS, train=Damaged()),
            model=Tiny(2),
            parallel=ONE,
            dry_run=True,
        )
    assert list(tmp_path.iterdir()) == []
