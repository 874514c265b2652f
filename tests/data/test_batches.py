"""Every image exactly once an epoch, in an order that only the seed and the epoch decide."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.data.batches import epoch_order, evaluation_batches, step_indices, steps_through
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Split, digits, load_dataset
from jaxnets.errors import InputError

SIZES = st.integers(1, 300)


@settings(max_examples=60, deadline=None)
@given(count=SIZES, batch_size=SIZES, epochs=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_training_sees_every_image_once_an_epoch(count: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = steps_through(epochs, batch_size, count)
    seen = np.concatenate([step_indices(seed, step, batch_size, count) for step in range(steps)])
    assert epochs * count <= len(seen) < epochs * count + batch_size
    for epoch in range(epochs):
        order = seen[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
        # The same whatever the batch size.
        np.testing.assert_array_equal(order, epoch_order(seed, epoch, count))


def test_the_order_changes_with_the_seed_and_the_epoch() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@settings(max_examples=60, deadline=None)
@given(count=SIZES, batch_size=SIZES)
def test_evaluation_sees_every_image_once_in_full_batches(count: int, batch_size: int) -> None:
    split = Split(np.arange(count * 3, dtype=np.uint8).reshape(count, 1, 1, 3), np.arange(count, dtype=np.int32))
    seen = []
    for images, labels, mask in evaluation_batches(split, batch_size):
        assert images.shape == (batch_size, 1, 1, 3)
        np.testing.assert_array_equal(images, split.images[labels])
        seen.extend(labels[mask])
    assert seen == list(range(count))


def test_digits_is_split_once_and_for_all() -> None:
    dataset = digits()
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train.images.shape == (1437, 8, 8, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.images.max() == 255
    # Stratified: each class has a tenth of each part, up to what the whole allows.
    for split in (dataset.train, dataset.test):
        shares = np.bincount(split.labels) / len(split)
        assert np.abs(shares - 0.1).max() < 0.005
    # Published accuracies rest on this very split.
    digest = hashlib.sha256(dataset.test.images.tobytes() + dataset.test.labels.astype("<i4").tobytes()).hexdigest()
    assert digest.startswith("9feadf9e1fbde4b7")


def test_a_split_that_would_not_fit_in_memory_is_refused() -> None:
    with pytest.raises(InputError, match="1437 images of 4096 px would take 72 GB"):
        digits().train.preprocessed(Preprocessing(4096, (0, 0, 0), (1, 1, 1)))


def test_digits_holds_every_scan_once() -> None:
    from sklearn.datasets import load_digits

    dataset, whole = digits(), load_digits()
    both = np.concatenate([dataset.train.images[..., 0], dataset.test.images[..., 0]]).reshape(1797, 64)
    expected = np.round(whole.images.reshape(1797, 64) * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(both[np.lexsort(both.T)], expected[np.lexsort(expected.T)])


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="unknown data set 'digit'; expected digits"):
        load_dataset("digit")
