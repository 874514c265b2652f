"""Which images make up a batch. The order depends on the seed and the epoch alone, not on how it is cut."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxnets.errors import InputError


class Slots(NamedTuple):
    """The images of a batch, or of one process's share of it; arrays [N]. Where `mask` is False a slot stays empty."""

    indices: np.ndarray
    epochs: np.ndarray
    mask: np.ndarray


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order [count] in which an epoch (from 0) visits the images: a permutation of range(count); read-only."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def training_slots(
    seed: int,
    step: int,
    batch_size: int,
    count: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    repeats: int = 1,
) -> Slots:
    """The images of a training step (from 0): a process's share of `batch_size`, one after the other.

    The epochs' orders are laid end to end and cut into full batches, so that every image is seen exactly once in each
    epoch though the batch size need not divide their number; a batch may hold the end of one epoch and the start of
    the next.

    With `repeats` (repeated augmentation, Hoffer et al. 2020, arXiv 1901.09335) the epochs' orders are taken two images
    at a time, a b a b ..., as often as that: mixup's pairs are then different images, but for the pair of an odd number
    of images that holds the end of one epoch and the start of the next. Each repeat counts in `epochs` as an epoch of
    its own, so that it draws its own crop.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}; an image is seen at least once")
    positions = step * batch_size + _share(batch_size, process_index, process_count)
    visits = positions // (2 * repeats) * 2 + positions % 2
    passes = visits // count
    indices = np.empty_like(positions)
    for epoch in np.unique(passes):
        here = passes == epoch
        indices[here] = epoch_order(seed, int(epoch), count)[visits[here] - epoch * count]
    epochs = passes * repeats + positions // 2 % repeats
    return Slots(indices, epochs, np.ones(len(positions), bool))


def steps_through(epochs: int, batch_size: int, count: int) -> int:
    """Training steps after which every image has been seen `epochs` times; the last step may look ahead."""
    return -(-epochs * count // batch_size)


def evaluation_slots(batch_size: int, count: int, process_index: int = 0, process_count: int = 1) -> Iterator[Slots]:
    """Every image once, in order; the last batch is filled up with empty slots. A process's share of each batch."""
    share = _share(batch_size, process_index, process_count)
    for start in range(0, count, batch_size):
        mask = start + share < count
        yield Slots(np.where(mask, start + share, 0), np.zeros(len(share), np.int64), mask)


def _share(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} can't be shared by {process_count} processes; choose a multiple of them"
        )
    size = batch_size // process_count
    return np.arange(process_index * size, (process_index + 1) * size)
