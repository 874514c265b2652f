"""A run from Python."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.recipes import default_recipe


def two_greys(count: int) -> ArraySource:
    """Dark and light images, which any network tells apart."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(count).integers(0, 60, (count, 8, 8))
    return ArraySource((noise + 190 * labels[:, None, None]).astype(np.uint8), labels)


DATASET = Dataset("greys", ("dark", "light"), two_greys(96), two_greys(21), (0.5,) * 3, (0.4,) * 3)
RECIPE = replace(
    default_recipe("resnet20_cifar", "greys"), image_size=8, epochs=2, batch_size=16, shift=0.0, label_smoothing=0.0
)


def test_arrays_of_ones_own_train_a_classifier(tmp_path: Path) -> None:
    config = Config("resnet20_cifar", RECIPE, dataset="greys")
    result = train(config, tmp_path / "run", DATASET)
    assert result["test_accuracy"] == 1.0
    assert (result["test_images"], result["train_images"], result["steps"]) == (21, 96, 12)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["dark", "light"]
    assert 0 <= result["waiting_for_data_seconds"] < result["seconds"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ("dark",)}, "label 1; expected 0 to 0"),
        ({"class_names": ("dark", "light", "none")}, "class 'none' has no training images"),
        ({"train": two_greys(8)}, "batch_size=16, but greys has 8 training images"),
    ],
)
def test_data_that_cannot_train_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(Config("resnet20_cifar", RECIPE, dataset="greys"), tmp_path / "run", replace(DATASET, **change))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
