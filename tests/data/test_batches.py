"""Each epoch uses every image once, in an order that depends on the seed and the epoch only."""

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
def test_training_uses_every_image_once_per_epoch(
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
            # Each device takes an equal, contiguous share.
            on_devices = np.stack([slots.epochs, slots.indices], axis=-1).reshape(devices, share, 2)
            seen.extend(map(tuple, on_devices.reshape(-1, 2)))
    assert epochs * count <= len(seen) < epochs * count + batch_size
    for epoch in range(epochs):
        # The order does not depend on the batch size, the devices and the processes.
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
def test_evaluation_uses_every_image_once_in_full_batches(count: int, share: int, processes: int, devices: int) -> None:
    batch_size = share * processes * devices
    plans = [list(evaluation_slots(batch_size, count, process, processes)) for process in range(processes)]
    # All processes must take the same number of steps; collectives would hang otherwise.
    assert {len(plan) for plan in plans} == {-(-count // batch_size)}
    seen = []
    for batches in zip(*plans, strict=True):
        for slots in batches:
            assert len(slots.mask) == share * devices
            seen.extend(slots.indices[slots.mask].tolist())
    assert seen == list(range(count))


def test_a_batch_size_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size=32 is not divisible by the 3 processes"):
        training_slots(0, 0, 32, 100, 0, 3)


def all_samples(
    seed: int, samples: int, batch_size: int, count: int, repeats: int, processes: int = 1
) -> list[tuple[int, int]]:
    """The epochs and indices of the first samples, in order."""
    seen: list[tuple[int, int]] = []
    for step in range(-(-samples // batch_size)):
        for process in range(processes):
            slots = training_slots(seed, step, batch_size, count, process, processes, repeats=repeats)
            assert slots.mask.all()
            assert {array.shape for array in slots} == {(batch_size // processes,)}
            seen.extend(zip(slots.epochs.tolist(), slots.indices.tolist(), strict=True))
    return seen[:samples]


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 60), share=st.integers(1, 9), processes=PROCESSES, repeats=st.integers(1, 5),
    passes=st.integers(1, 3), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_image_is_repeated_in_each_pass(
    count: int, share: int, processes: int, repeats: int, passes: int, seed: int
) -> None:
    groups = -(-passes * count // 2)
    samples = 2 * repeats * groups
    seen = all_samples(seed, samples, share * processes, count, repeats, processes)
    # The samples do not depend on the batch size and the processes.
    assert seen == all_samples(seed, samples, samples, count, repeats)
    # In a full pass, each image occurs once for each of the pass's epoch numbers.
    full = sorted(sample for sample in seen if sample[0] < passes * repeats)
    assert full == [(epoch, index) for epoch in range(passes * repeats) for index in range(count)]
    # Rounding up to a pair adds one image of the next pass.
    ahead = [sample for sample in seen if sample[0] >= passes * repeats]
    first = int(np.random.default_rng((seed, passes)).permutation(count)[0])
    expected = [(passes * repeats + repeat, first) for repeat in range(repeats)]
    assert ahead == (expected if passes * count % 2 else [])


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 60), repeats=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_repeats_come_in_pairs_of_different_images(count: int, repeats: int, seed: int) -> None:
    seen = all_samples(seed, 2 * repeats * 2 * count, 12, count, repeats)
    # Concatenates the orders of the passes and repeats each pair of images.
    orders = [(epoch, int(i)) for epoch in range(4) for i in np.random.default_rng((seed, epoch)).permutation(count)]
    expected = [
        (epoch * repeats + repeat, index)
        for group in range(2 * count)
        for repeat in range(repeats)
        for epoch, index in orders[2 * group : 2 * group + 2]
    ]
    assert seen == expected
    # Mixup combines neighbours, which must differ. Only a pair that spans two passes may have equal images.
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    same_pass = [(one[1], other[1]) for one, other in pairs if one[0] // repeats == other[0] // repeats]
    assert all(one != other for one, other in same_pass)
    assert len(pairs) - len(same_pass) == (2 * repeats if count % 2 else 0)


def test_only_a_pair_that_spans_two_passes_can_repeat_an_image() -> None:
    # An odd number of images, and an order that ends with the first image of the next.
    count = 5
    seed = next(seed for seed in range(100) if epoch_order(seed, 0, count)[-1] == epoch_order(seed, 1, count)[0])
    seen = all_samples(seed, 3 * 6, 6, count, repeats=3)
    assert [seen[place][1] == seen[place + 1][1] for place in range(0, 18, 2)] == 6 * [False] + 3 * [True]
    # Their crops differ.
    assert len(set(seen)) == 18


def test_repeats_are_adjacent_and_count_as_epochs() -> None:
    slots = training_slots(7, 0, 12, 12, repeats=3)
    first, second, third, fourth = epoch_order(7, 0, 12)[:4]
    assert slots.indices.tolist() == 3 * [first, second] + 3 * [third, fourth]
    assert slots.epochs.tolist() == 2 * [0, 0, 1, 1, 2, 2]
    following = training_slots(7, 3, 12, 12, repeats=3)
    first, second, third, fourth = epoch_order(7, 1, 12)[:4]
    assert following.indices.tolist() == 3 * [first, second] + 3 * [third, fourth]
    assert following.epochs.tolist() == 2 * [3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("repeats", [1, 3])
def test_large_epochs_do_not_overflow(repeats: int) -> None:
    count, batch_size, step = 1_000, 12, 10**15
    slots = training_slots(1, step, batch_size, count, 1, 2, repeats=repeats)
    # Python integers have arbitrary precision.
    for place, epoch, index in zip(range(6, 12), slots.epochs.tolist(), slots.indices.tolist(), strict=True):
        position = step * batch_size + place
        visit = 2 * (position // (2 * repeats)) + position % 2
        assert epoch == visit // count * repeats + position // 2 % repeats
        assert index == epoch_order(1, visit // count, count)[visit % count]
    assert slots.epochs.dtype == slots.indices.dtype == np.int64
    assert slots.epochs.min() > 2**32


@pytest.mark.parametrize("repeats", [0, -2])
def test_repeats_below_one_are_refused(repeats: int) -> None:
    with pytest.raises(InputError, match=f"repeats={repeats}"):
        training_slots(0, 0, 4, 10, repeats=repeats)
