"""Data sets by name and path."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxnets.data.datasets import digits, load_dataset
from jaxnets.data.sources import ArraySource
from jaxnets.errors import InputError


def pixels(source: object) -> np.ndarray:
    assert isinstance(source, ArraySource)
    return source.images


def test_the_split_of_digits_is_fixed() -> None:
    dataset = digits()
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    # Stratified: each class is about a tenth of each split.
    for split in (dataset.train, dataset.test):
        shares = np.bincount([split[index].label for index in range(len(split))]) / len(split)
        assert np.abs(shares - 0.1).max() < 0.005
    # Published accuracies refer to this split.
    images = np.repeat(pixels(dataset.test)[..., None], 3, axis=-1)
    labels = np.array([dataset.test[index].label for index in range(360)], "<i4")
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest().startswith("9feadf9e1fbde4b7")


def test_digits_match_scikit_learn() -> None:
    scanned = load_digits()
    images = np.round(scanned.images * 255 / 16).astype(np.uint8)
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=scanned.target, random_state=0)
    for split, indices in ((digits().train, train), (digits().test, test)):
        np.testing.assert_array_equal(pixels(split), images[indices])
        assert [split[index].label for index in range(len(split))] == list(scanned.target[indices])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", r"\./nowhere: no such folder"),
        ("/nowhere/photos", "no such folder"),
        ("photos/", "no such folder"),
        ("~/nowhere", "no such folder"),
        ("pyproject.toml", "is a file"),
    ],
)
def test_paths_without_a_data_set_are_refused(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(InputError, match=words):
        load_dataset(name)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_invalid_test_shares_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="test_share="):
        load_dataset("digits", test_share=share)
