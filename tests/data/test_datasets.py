"""Data sets by name and path."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxnets.data.datasets import digits, load_dataset
from jaxnets.data.division import Division
from jaxnets.data.sources import ArraySource
from jaxnets.errors import InputError


def pixels(source: object) -> np.ndarray:
    assert isinstance(source, ArraySource)
    return source.images


def test_the_split_of_digits_is_fixed() -> None:
    dataset = digits()
    assert {part: len(source) for part, source in dataset.parts.items()} == {"train": 1295, "val": 142, "test": 360}
    assert dataset.class_names == tuple("0123456789")
    # Stratified: each class is about a tenth of each split.
    for split in (dataset.train, dataset.judged("test")):
        shares = np.bincount([split[index].label for index in range(len(split))]) / len(split)
        assert np.abs(shares - 0.1).max() < 0.005
    assert set(np.bincount([dataset.judged("val")[index].label for index in range(142)])) == {14, 15}
    # Published accuracies refer to this split.
    images = np.repeat(pixels(dataset.test)[..., None], 3, axis=-1)
    labels = np.array([dataset.test[index].label for index in range(360)], "<i4")
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest().startswith("9feadf9e1fbde4b7")


def test_digits_match_scikit_learn() -> None:
    scanned = load_digits()
    images = np.round(scanned.images * 255 / 16).astype(np.uint8)
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=scanned.target, random_state=0)
    dataset = digits(Division(val_share=0))
    for split, indices in ((dataset.train, train), (dataset.judged(), test)):
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


@pytest.mark.parametrize("share", [1.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["val_share", "test_share"])
def test_invalid_shares_are_refused(name: str, share: float) -> None:
    with pytest.raises(InputError, match=f"{name}="):
        Division(**{name: share})


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", "a/b", "1/5/2", "-1/5", ""])
def test_invalid_folds_are_refused(fold: str) -> None:
    with pytest.raises(InputError, match="expected K/N"):
        Division(fold=fold)


def test_folds_hold_each_training_image_once() -> None:
    whole = digits(Division(val_share=0))
    folds = [digits(Division(fold=f"{number}/5")) for number in range(1, 6)]
    seen = np.concatenate([pixels(fold.val) for fold in folds])
    np.testing.assert_array_equal(
        np.sort(seen.reshape(1437, -1), axis=0), np.sort(pixels(whole.train).reshape(1437, -1), axis=0)
    )
    for fold in folds:
        assert len(fold.train) + len(fold.judged("val")) == 1437
        assert fold.test is not None
        assert fold.test.fingerprint() == whole.judged().fingerprint()
        assert not {image.tobytes() for image in pixels(fold.train)} & {image.tobytes() for image in pixels(fold.val)}
        assert 28 * 9 < len(fold.judged("val")) < 30 * 10
