"""Loads data sets by name or path."""

import os
from pathlib import Path

import numpy as np

from jaxnets.data.division import Division, even_positions
from jaxnets.data.folder import load_folder
from jaxnets.data.idx import holds_idx, load_idx
from jaxnets.data.records import holds_records, load_records
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.data.table import load_table
from jaxnets.data.tfds import load_tfds
from jaxnets.errors import InputError

_DIGITS = Path(__file__).parent / "digits.npz"


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    division: Division = Division(),  # noqa: B008
    train_folder: str | None = None,
    val_folder: str | None = None,
    test_folder: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads the data set `name`: digits, a folder of images, of prepared records or of IDX files, a CSV file, or a TFDS
    data set in `data_dir`.

    The parts that it lacks are held out of its training images as `division` says. `train_folder`, `val_folder` and
    `test_folder`, relative to a folder of images, hold the images of the parts. With `only_test`, image files need no
    training images. Raises InputError if the data set does not exist.
    """
    path = Path(name).expanduser()
    if name != "digits" and path.is_dir() and not holds_records(path) and not holds_idx(path):
        return load_folder(
            path,
            division,
            train_folder=train_folder,
            val_folder=val_folder,
            test_folder=test_folder,
            only_test=only_test,
        )
    for part, value in (("train", train_folder), ("val", val_folder), ("test", test_folder)):
        if value is not None:
            raise InputError(f"--{part}-folder {value} is for folders of images, which {name} is not; leave it out")
    if is_table(name):
        return load_table(path, division, only_test=only_test)
    if division.group_by is not None:
        raise InputError(f"--group-by {division.group_by} is for image files, which {name} is not; leave it out")
    if name == "digits":
        return digits(division)
    if path.is_dir():
        return load_records(path, division) if holds_records(path) else load_idx(path, division)
    if path.exists():
        raise InputError(f"{name} is a file; expected a folder of images, a .csv file or the name of a data set")
    check_there(name)
    return load_tfds(name, None if data_dir is None else Path(data_dir).expanduser(), division)


def check_there(name: str) -> None:
    """Raises InputError for the path of a folder that does not exist."""
    if is_path(name) and not is_table(name) and not Path(name).expanduser().exists():
        raise InputError(
            f"{name}: no such folder; give a folder of images, a .csv file, digits, or the name of a TFDS data set"
        )


def is_table(name: str) -> bool:
    """Whether `name` is the path of a CSV file."""
    return Path(name).suffix.lower() == ".csv" and not Path(name).expanduser().is_dir()


def is_path(name: str) -> bool:
    """Whether `name` is a path rather than the name of a data set."""
    return name != "digits" and (
        Path(name).expanduser().is_dir()
        or is_table(name)
        or name.startswith((".", "~", os.sep))
        or name.endswith(os.sep)
    )


def absolute(name: str) -> str:
    """Returns paths as absolute paths, and names of data sets unchanged."""
    return str(Path(name).expanduser().absolute()) if is_path(name) else name


def digits(division: Division = Division()) -> Dataset:  # noqa: B008
    """The 1,797 scanned digits of scikit-learn (8x8 px, 17 grey levels): 1,437 for training and val, 360 for testing.

    The test images are fixed and stratified by class; val images are held out of the others as `division` says.
    Source: the test set of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0.
    """
    # tests/references/make_digits.py writes the file; importing scikit-learn here would be slow.
    with np.load(_DIGITS) as file:
        images, labels, test_images, test_labels = (
            file[f"{part}_{what}"] for part in ("train", "test") for what in ("images", "labels")
        )
    pixels = images / 255.0
    mean, std = (round(float(value), 4) for value in (pixels.mean(), pixels.std()))
    labels, test_labels = labels.astype(np.int32), test_labels.astype(np.int32)
    whole = Dataset(
        name="digits",
        class_names=tuple("0123456789"),
        train=ArraySource(images, labels, "digits train image"),
        test=ArraySource(test_images, test_labels, "digits test image"),
        mean=(mean, mean, mean),
        std=(std, std, std),
        origins={"test": "the fixed split of jaxnets"},
    )
    return division.divide(whole, labels, even_positions(labels), subset=ArraySource.subset)
