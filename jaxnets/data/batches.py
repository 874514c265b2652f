"""Which images make up a batch. The order depends on the seed and the epoch alone, not on the batch size."""

from collections.abc import Iterator

import numpy as np

from jaxnets.data.sources import Split


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order [count] in which an epoch (from 0) visits the images: a permutation of range(count)."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def step_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """The images [batch_size] of a training step (from 0).

    The epochs' orders are laid end to end and cut into full batches, so that every image is seen exactly once in each
    epoch though the batch size need not divide their number; a batch may hold the end of one epoch and the start of
    the next.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    orders = {epoch: epoch_order(seed, int(epoch), count) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position % count] for epoch, position in zip(epochs, positions, strict=True)])


def steps_through(epochs: int, batch_size: int, count: int) -> int:
    """Training steps after which every image has been seen `epochs` times; the last step may look ahead."""
    return -(-epochs * count // batch_size)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images, labels and a mask of the whole split in order; the last batch is filled up with masked images."""
    for start in range(0, len(split), batch_size):
        indices = np.arange(start, start + batch_size)
        mask = indices < len(split)
        indices = np.minimum(indices, len(split) - 1)
        yield split.images[indices], split.labels[indices], mask
