"""IDX files, the format of MNIST: read as they were written, refused where they are damaged."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnets.data.datasets import load_dataset
from jaxnets.data.division import Division
from jaxnets.errors import InputError


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file, value by value."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + bytes(int(value) for value in array.reshape(-1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 9)):
        images, labels = random.integers(0, 256, (count, 5, 4)), np.arange(count) % 3
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_images_and_labels_are_those_that_were_written(folder: Path) -> None:
    dataset: Any = load_dataset(str(folder), division=Division(val_share=0))
    random = np.random.default_rng(0)
    for source, count in ((dataset.train, 40), (dataset.test, 9)):
        np.testing.assert_array_equal(source.images, random.integers(0, 256, (count, 5, 4)))
        np.testing.assert_array_equal(source.labels, np.arange(count) % 3)
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.name == folder.name
    pixels = dataset.train.images / 255
    assert dataset.mean == pytest.approx([pixels.mean()] * 3, abs=1e-4)
    assert dataset.std == pytest.approx([pixels.std()] * 3, abs=1e-4)


def test_val_and_test_are_held_out_where_they_are_missing(folder: Path) -> None:
    whole = load_dataset(str(folder), division=Division(val_share=0.25))
    sizes = {part: len(source) for part, source in whole.parts.items()}
    assert sizes["train"] + sizes["val"] == 40
    assert 8 <= sizes["val"] <= 12
    assert sizes["test"] == 9
    for file in folder.glob("t10k*"):
        file.unlink()
    assert set(load_dataset(str(folder)).parts) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-1], "799 values, but its header says"),
        ("train-images-idx3-ubyte", lambda data: b"\0\0\x0d\3" + data[4:], "no IDX file of unsigned bytes"),
        ("train-images-idx3-ubyte", lambda data: data[:7], "no IDX file of unsigned bytes"),
        ("train-labels-idx1-ubyte.gz", lambda data: data[:-9], "is damaged"),
        (
            "train-labels-idx1-ubyte.gz",
            lambda data: gzip.compress(idx(np.zeros(39, int))),
            "40 images of train, but 39",
        ),
    ],
)
def test_damage_is_named(folder: Path, name: str, change: Any, reason: str) -> None:
    file = folder / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=reason):
        load_dataset(str(folder))


def test_half_a_part_is_refused(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="has images of test, but not both"):
        load_dataset(str(folder))


def test_a_folder_of_several_data_sets_is_refused(folder: Path) -> None:
    images = folder / "train-images-idx3-ubyte"
    (folder / "emnist-letters-train-images-idx3-ubyte").write_bytes(images.read_bytes())
    with pytest.raises(InputError, match="has several data sets: emnist-letters-train-images-idx3-ubyte, "):
        load_dataset(str(folder))
