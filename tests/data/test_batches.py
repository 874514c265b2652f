"""Every image exactly once an epoch, in an order that only the seed and the epoch decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.data.batches import epoch_order, evaluation_slots, steps_through, training_slots
from jaxnets.errors import InputError

COUNTS = st.integers(1, 300)
PROCESSES = st.sampled_from((1, 2, 3))
DEVICES = st.sampled_from((1, 2, 4, 8))


@settings(max_examples=150, deadline=None)
@given(
    count=COUNTS, share=st.integers(1, 9), processes=PROCESSES, devices=DEVICES, epochs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_training_sees_every_image_once_an_epoch(
    count: int, share: int, processes: int, devices: int, epochs: int, seed: int
) -> None:
    batch_size = share * processes * devices
    steps = steps_through(epochs, batch_size, count)
    seen = []
    for step in range(steps):
        for process in range(processes):
            slots = training_slots(seed, step, batch_size, count, process, processes)
            assert slots.mask.all()
            assert [len(array) for array in slots] == [share * devices] * 3
            # Each device takes as many images, one after the other.
            on_devices = np.stack([slots.epochs, slots.indices], axis=-1).reshape(devices, share, 2)
            seen.extend(map(tuple, on_devices.reshape(-1, 2)))
    assert epochs * count <= len(seen) < epochs * count + batch_size
    for epoch in range(epochs):
        # The same whatever the batch size, the devices and the processes.
        expected = [(epoch, int(index)) for index in np.random.default_rng((seed, epoch)).permutation(count)]
        assert seen[epoch * count : (epoch + 1) * count] == expected
        assert sorted(index for _, index in expected) == list(range(count))


def test_the_order_changes_with_the_seed_and_the_epoch() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(7, 3, 12).tolist() == [4, 2, 5, 8, 7, 3, 11, 10, 0, 1, 9, 6]


@settings(max_examples=150, deadline=None)
@given(count=COUNTS, share=st.integers(1, 9), processes=PROCESSES, devices=DEVICES)
def test_evaluation_sees_every_image_once_in_full_batches(count: int, share: int, processes: int, devices: int) -> None:
    batch_size = share * processes * devices
    plans = [list(evaluation_slots(batch_size, count, process, processes)) for process in range(processes)]
    # All processes take as many steps, or those that have more would wait for ever.
    assert {len(plan) for plan in plans} == {-(-count // batch_size)}
    seen = []
    for batches in zip(*plans, strict=True):
        for slots in batches:
            assert len(slots.mask) == share * devices
            seen.extend(slots.indices[slots.mask].tolist())
    assert seen == list(range(count))


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size=32 can't be shared by 3 processes"):
        training_slots(0, 0, 32, 100, 0, 3)
