"""The images of each batch. Their order depends on the seed and the epoch only, not on the batch size."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxnets.errors import InputError


class Slots(NamedTuple):
    """The images of a batch, or of one process's share of it; arrays [N]. A slot whose `mask` is False is empty."""

    indices: np.ndarray
    epochs: np.ndarray
    mask: np.ndarray


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in an epoch (from 0): a read-only permutation of range(count)."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order of len(labels) images for an epoch (from 0) that draws each class that occurs in `labels` equally often.

    The numbers of images of two classes differ by at most one. The images of a class are used in random order, and none
    is repeated before all have been used; this continues from epoch to epoch. Also returns how often each image has
    been used before.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    count, number = len(labels), len(classes)
    drawn, uses = [], []
    for place, (label, size) in enumerate(zip(classes, sizes, strict=True)):
        # Draw i of all draws of the run, counted over the epochs, is of class i modulo the number of classes.
        first, end = (-((place - draws) // number) for draws in (epoch * count, (epoch + 1) * count))
        passes = range(first // size, -(-end // size))
        orders = [np.random.default_rng((seed, int(label), turn)).permutation(size) for turn in passes]
        members = np.flatnonzero(labels == label)
        if orders:
            drawn.append(members[np.concatenate(orders)[first - passes.start * size :][: end - first]])
            uses.append(np.arange(first, end) // size)
    shuffled = np.random.default_rng((seed, epoch)).permutation(count)
    return np.concatenate(drawn)[shuffled], np.concatenate(uses)[shuffled]


def training_slots(
    seed: int,
    step: int,
    batch_size: int,
    count: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    repeats: int = 1,
    order: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Slots:
    """Returns the images of a training step (from 0): one process's contiguous share of the batch.

    The orders of all epochs are concatenated and cut into full batches. Each epoch uses every image exactly once, even
    if the batch size does not divide the number of images; a batch may span two epochs.

    `repeats` is the number of times each image is used in an epoch (repeated augmentation, Hoffer et al. 2020,
    arXiv 1901.09335). Pairs of images are repeated, a b a b ..., so that mixup combines different images. The only
    exception is a pair that spans two epochs of an odd number of images. Each repeat has its own number in `epochs`,
    and therefore its own crop.

    `order` gives the `count` images of an epoch (from 0), and how often each was used before, in another order than
    `epoch_order`, such as `balanced_order`.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}; expected a whole number of at least 1")
    positions = step * batch_size + _share(batch_size, process_index, process_count)
    visits = positions // (2 * repeats) * 2 + positions % 2
    passes = visits // count
    indices, uses = np.empty_like(positions), passes.copy()
    for epoch in np.unique(passes):
        here = passes == epoch
        places = visits[here] - epoch * count
        if order is None:
            indices[here] = epoch_order(seed, int(epoch), count)[places]
        else:
            indices[here], uses[here] = (array[places] for array in order(int(epoch)))
    epochs = uses * repeats + positions // 2 % repeats
    return Slots(indices, epochs, np.ones(len(positions), bool))


def steps_through(epochs: int, batch_size: int, count: int) -> int:
    """Training steps until every image has been used `epochs` times; the last step may include the next epoch."""
    return -(-epochs * count // batch_size)


def evaluation_slots(batch_size: int, count: int, process_index: int = 0, process_count: int = 1) -> Iterator[Slots]:
    """Yields a process's share of each batch. Every image occurs once, in order; empty slots pad the last batch."""
    share = _share(batch_size, process_index, process_count)
    for start in range(0, count, batch_size):
        mask = start + share < count
        yield Slots(np.where(mask, start + share, 0), np.zeros(len(share), np.int64), mask)


def _share(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} is not divisible by the {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    size = batch_size // process_count
    return np.arange(process_index * size, (process_index + 1) * size)
