"""Data sets by name, as arrays of uint8 images with labels and class names."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError

# Whole data sets are held in memory, preprocessed.
_MOST_GIGABYTES = 8


@dataclass(frozen=True)
class Split:
    """Images [N, H, W, 3], uint8, and labels [N], int32, in a fixed order."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def preprocessed(self, preprocessing: Preprocessing) -> "Split":
        """The same split with every image as the network reads it, [N, image_size, image_size, 3].

        Raises InputError where that would not fit in memory.
        """
        gigabytes = len(self) * preprocessing.image_size**2 * 3 / 1e9
        if gigabytes > _MOST_GIGABYTES:
            raise InputError(
                f"{len(self)} images of {preprocessing.image_size} px would take {gigabytes:.0f} GB of memory; "
                f"at most {_MOST_GIGABYTES} are allowed: choose a smaller --image-size"
            )
        return Split(np.stack([preprocessing(image) for image in self.images]), self.labels)


@dataclass(frozen=True)
class Dataset:
    """What a classifier is trained on and tested on. A class's index is its place in `class_names`.

    `mean` and `std` are those of the training images, a channel each, in units of the full range (0 to 1).
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_dataset(name: str) -> Dataset:
    """The data set called `name`; raises InputError where there is none."""
    if name == "digits":
        return digits()
    raise InputError(f"unknown data set {name!r}; expected digits")


def digits() -> Dataset:
    """scikit-learn's 1,797 scanned digits (UCI, 8x8 px, 17 grey levels): 1,437 to train on, 360 held out.

    The split is fixed and stratified, so that every class is as frequent in the test as in the whole.
    """
    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = data.target.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    pixels = images[train] / 255.0
    mean, std = (round(float(value), 4) for value in (pixels.mean(), pixels.std()))
    return Dataset(
        name="digits",
        class_names=tuple(str(digit) for digit in data.target_names),
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        mean=(mean, mean, mean),
        std=(std, std, std),
    )
