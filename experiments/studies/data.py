"""The data of the studies: digits, or Fashion-MNIST where it is found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.data.datasets import load_dataset
from jaxnets.data.idx import holds_idx
from jaxnets.data.sources import ArraySource, Dataset, Relabelled, Source, Subset
from jaxnets.errors import InputError

# Where Debian's package dataset-fashion-mnist puts it, and TFDS what it has prepared.
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_TFDS = Path("~/tensorflow_datasets/fashion_mnist")


def study_data(name: str | None, *, harder: bool = False) -> Dataset:
    """The data set `name`, as for `jaxnets train --dataset`; by default digits.

    The default of `harder` studies is Fashion-MNIST, if Debian's package or TFDS has it on this machine. Raises
    InputError as `load_dataset` does.
    """
    if name is None and harder:
        if holds_idx(_DEBIAN):
            return replace(load_dataset(str(_DEBIAN)), name="fashion_mnist")
        if _TFDS.expanduser().is_dir():
            return load_dataset("fashion_mnist")
    return load_dataset(name or "digits")


def subset(
    dataset: Dataset, seed: int, images: int | None = None, test_images: int | None = None, val: bool = True
) -> Dataset:
    """The data set with up to `images` training images, and as many of val and of test as `test_images`, of each class
    equally many, drawn with the seed; None keeps all. Without `val` there is no val part.
    """
    random = np.random.default_rng(seed)
    train = drawn(dataset.train, images, random)
    val_part, test = (
        None if part is None else drawn(part, test_images, random) for part in (dataset.val, dataset.test)
    )
    return replace(dataset, train=train, val=val_part if val else None, test=test)


def drawn(source: Source, images: int | None, random: np.random.Generator) -> Source:
    """Up to `images` of a source, of each class equally many."""
    if images is None or images >= len(source):
        return source
    labels = labels_of(source)
    order = random.permutation(len(labels))
    rank = np.empty(len(labels), int)  # the place of an image among those of its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    indices = np.lexsort((order, rank))[:images]
    return source.subset(indices) if isinstance(source, ArraySource) else Subset(source, indices)


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """The images of some classes of a data set, labelled by their places in `classes`."""
    new_labels = np.zeros(len(dataset.class_names), int)
    new_labels[list(classes)] = range(len(classes))

    def some(source: Source | None) -> Source | None:
        if source is None:
            return None
        indices = np.flatnonzero(np.isin(labels_of(source), classes))
        return Relabelled(Subset(source, indices), new_labels)

    names = tuple(dataset.class_names[label] for label in classes)
    train, val, test = map(some, (dataset.train, dataset.val, dataset.test))
    assert train is not None
    return replace(dataset, class_names=names, train=train, val=val, test=test)


def labels_of(source: Any) -> np.ndarray:
    """The labels [N] of a source."""
    return source.labels if isinstance(source, ArraySource) else np.array([source[i].label for i in range(len(source))])


def arrays(source: Source | None) -> tuple[np.ndarray, np.ndarray]:
    """The images [N, H, W] or [N, H, W, 3], uint8, and labels [N] of a source in memory; InputError for others."""
    if not isinstance(source, ArraySource):
        raise InputError("this study needs images in memory; leave out --dataset, or give a folder of IDX files")
    return source.images, source.labels
