"""Loads data sets by name or path."""

import os
from pathlib import Path

import numpy as np

from jaxnets.data.folder import load_folder
from jaxnets.data.records import holds_records, load_records
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.data.tfds import load_tfds
from jaxnets.errors import InputError

_DIGITS = Path(__file__).parent / "digits.npz"


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    test_share: float = 0.2,
    train_folder: str | None = None,
    test_folder: str | None = None,
    split: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads the data set `name`: digits, a folder of images or prepared records, or a TFDS data set in `data_dir`.

    If the data set has no test images, `test_share` of its training images is held out. `train_folder` and
    `test_folder`, relative to a folder of images, hold its training and test images. `split` chooses the test images:
    "val" or "test"; None is the default of the data set. With `only_test`, a folder of images needs no training images.
    Raises InputError if the data set does not exist.
    """
    if not 0 < test_share < 1:
        raise InputError(f"test_share={test_share}; expected a fraction between 0 and 1, such as 0.2")
    folder = Path(name).expanduser()
    if name != "digits" and folder.is_dir() and not holds_records(folder):
        return load_folder(
            folder, test_share, train_folder=train_folder, test_folder=test_folder, split=split, only_test=only_test
        )
    for flag, value in (("--train-folder", train_folder), ("--test-folder", test_folder)):
        if value is not None:
            raise InputError(f"{flag} {value} is for folders of images, which {name} is not; leave it out")
    if name == "digits" or folder.is_dir():
        if split is not None:
            raise InputError(f"{name} has one set of test images; leave out --split {split}")
        return digits() if name == "digits" else load_records(folder)
    if folder.exists():
        raise InputError(f"{name} is a file; expected a folder of images or the name of a data set")
    if is_path(name):
        raise InputError(f"{name}: no such folder; give a folder of images, digits, or the name of a TFDS data set")
    return load_tfds(name, None if data_dir is None else Path(data_dir).expanduser(), test_share, split)


def is_path(name: str) -> bool:
    """Whether `name` is a path rather than the name of a data set."""
    return name != "digits" and (
        Path(name).expanduser().is_dir() or name.startswith((".", "~", os.sep)) or name.endswith(os.sep)
    )


def absolute(name: str) -> str:
    """Returns paths as absolute paths, and names of data sets unchanged."""
    return str(Path(name).expanduser().absolute()) if is_path(name) else name


def digits() -> Dataset:
    """The 1,797 scanned digits of scikit-learn (8x8 px, 17 grey levels): 1,437 for training, 360 for testing.

    The split is fixed and stratified by class.
    Source: the test set of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0.
    """
    # tests/references/make_digits.py writes the file; importing scikit-learn here would be slow.
    with np.load(_DIGITS) as file:
        train, test = (
            ArraySource(file[f"{part}_images"], file[f"{part}_labels"].astype(np.int32), f"digits {part} image")
            for part in ("train", "test")
        )
    pixels = train.images / 255.0
    mean, std = (round(float(value), 4) for value in (pixels.mean(), pixels.std()))
    return Dataset(
        name="digits",
        class_names=tuple("0123456789"),
        train=train,
        test=test,
        mean=(mean, mean, mean),
        std=(std, std, std),
        tested_on="the fixed split of jaxnets",
    )
