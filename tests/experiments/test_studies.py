"""The studies run, and their arithmetic is right; what they find is in the README."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.studies import transfer
from experiments.studies.transfer import IMAGES_PER_CLASS, KNOWN, NEW, WAYS, digits_of
from jaxnets.data.datasets import digits
from jaxnets.data.division import Division

pytestmark = pytest.mark.usefixtures("small_networks")


def run(
    name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--json"])
    capsys.readouterr()
    import_module(f"experiments.studies.{name}").main()
    return json.loads(capsys.readouterr().out)


def test_the_new_classes_are_different_and_have_few_images() -> None:
    known, few = digits_of(KNOWN), digits_of(NEW, IMAGES_PER_CLASS, 3)
    assert set(known.class_names).isdisjoint(few.class_names)
    assert len(few.train) == IMAGES_PER_CLASS * len(NEW)
    whole: Any = digits(Division(val_share=0))
    for dataset, classes in ((known, KNOWN), (few, NEW)):
        for part, source in ((dataset.train, whole.train), (dataset.test, whole.test)):
            assert set(part.labels) == set(range(len(classes)))  # type: ignore[attr-defined]
            for index in range(0, len(part), 17):
                image, label = part[index]
                found = [
                    i for i in np.flatnonzero(source.labels == classes[label]) if (source.images[i] == image).all()
                ]
                assert found
        assert len(dataset.test) == sum((whole.test.labels == digit).sum() for digit in classes)
    assert not np.array_equal(digits_of(NEW, 10, 1).train.images, digits_of(NEW, 10, 2).train.images)  # type: ignore[attr-defined]


def test_transfer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trained: list[Any] = []

    def train(config: Any, workdir: Path, dataset: Any) -> dict[str, float]:
        trained.append((config, workdir, dataset))
        return {"test_accuracy": len(trained) / 100}

    monkeypatch.setattr(transfer, "train", train)
    figure = tmp_path / "figure.png"
    arguments = ("--arch", "tiny_resnet", "--steps", 4, "--seeds", 2, "--figure", figure)
    found = run("transfer", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    # A trunk, and four ways from the same images, for each seed.
    assert found["test_accuracy"] == {way: [(2 + i) / 100, (7 + i) / 100] for i, way in enumerate(WAYS)}
    for seed in (0, 1):
        (_, trunk, known), *ways = trained[5 * seed : 5 * seed + 5]
        assert known.class_names == tuple("01234")
        assert [config.transfer for config, _, _ in ways] == [None, "full", "partial", "head"]
        assert [config.weights for config, _, _ in ways] == [None, *[str(trunk)] * 3]
        for config, _, few in ways:
            assert (config.seed, config.recipe.epochs, config.recipe.batch_size, len(few.train)) == (seed, 4, 50, 50)
    assert Image.open(figure).size[0] > 500


@pytest.mark.slow
def test_transfer_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--arch", "small_resnet", "--image-size", 8, "--batch-size", 4)
    found = run("transfer_cost", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    # One momentum a parameter that is trained, and the schedule's count.
    for way in ("full", "partial", "head"):
        assert found[way]["optimizer_bytes"] == 4 * found[way]["trained_parameters"] + 4
        assert found[way]["seconds_a_step"] > 0
    assert found["full"]["memory_ratio"] == found["full"]["time_ratio"] == 1
    assert found["head"]["trained_parameters"] == 8 * 10 + 10
    assert found["partial"]["memory_ratio"] < 0.5
