"""The balanced sampler draws each class equally often, and repeats no image before all of its class were used."""

from dataclasses import replace

import numpy as np
import pytest

from jaxnets.data.batches import balanced_order, training_slots
from jaxnets.data.sources import ArraySource
from jaxnets.training.feed import TrainingFeed
from jaxnets.training.recipes import recipe_for

# Class 3 has no images; class 5 has one.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4, 5], [40, 7, 13, 22, 1]))


@pytest.mark.parametrize("epoch", range(7))
def test_classes_are_drawn_equally_often(epoch: int) -> None:
    order = balanced_order(3, epoch, LABELS)[0]
    assert order.shape == LABELS.shape
    counts = np.bincount(LABELS[order], minlength=6)
    assert counts[3] == 0
    # 83 images of 5 classes: three classes have 17, two have 16.
    assert sorted(np.delete(counts, 3)) == [16, 16, 17, 17, 17]


def test_no_image_is_repeated_before_all_of_its_class_were_used() -> None:
    # More images than an epoch draws of class 0: its images continue in the next epoch.
    epochs = [balanced_order(5, epoch, LABELS)[0] for epoch in range(12)]
    for label in np.unique(LABELS):
        uses = np.zeros(len(LABELS), int)
        for order in epochs:
            np.add.at(uses, order[LABELS[order] == label], 1)
            members = uses[label == LABELS]
            assert members.max() - members.min() <= 1
        assert uses[label == LABELS].min() >= 4


def test_the_number_of_images_of_a_class_is_even_over_the_epochs() -> None:
    total = sum(np.bincount(LABELS[balanced_order(0, epoch, LABELS)[0]], minlength=6) for epoch in range(5))
    assert np.delete(total, 3).tolist() == [83] * 5


def test_more_classes_than_images_of_each() -> None:
    assert sorted(balanced_order(0, 4, np.arange(9))[0]) == list(range(9))


def test_the_order_depends_on_seed_and_epoch() -> None:
    first = balanced_order(1, 2, LABELS)[0]
    np.testing.assert_array_equal(first, balanced_order(1, 2, LABELS.copy())[0])
    assert (first != balanced_order(2, 2, LABELS)[0]).any()
    assert (first != balanced_order(1, 3, LABELS)[0]).any()


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 1), (12, 2), (6, 3)])
def test_the_order_does_not_depend_on_batch_size_and_processes(batch_size: int, processes: int) -> None:
    expected = np.concatenate([balanced_order(9, epoch, LABELS)[0] for epoch in range(3)])
    steps = len(expected) // batch_size
    slots = [
        training_slots(
            9, step, batch_size, len(LABELS), process, processes, order=lambda e: balanced_order(9, e, LABELS)
        )
        for step in range(steps)
        for process in range(processes)
    ]
    indices = np.concatenate([slot.indices for slot in slots])
    np.testing.assert_array_equal(indices, expected[: len(indices)])
    # Each use of an image has a number of its own, and so its own random crop.
    uses = list(zip(indices.tolist(), np.concatenate([slot.epochs for slot in slots]).tolist(), strict=True))
    assert len(set(uses)) == len(uses)


def test_a_feed_of_the_recipe_is_balanced_and_starts_anywhere() -> None:
    images = np.zeros((len(LABELS), 8, 8), np.uint8)
    source = ArraySource(images, LABELS)
    recipe = replace(
        recipe_for("resnet20_cifar", "digits", None),
        batch_size=16,
        epochs=4,
        image_size=8,
        train_image_sizes=(),
        min_crop_area=0.0,
        repeats=1,
        sampler="balanced",
    )
    preprocessing = recipe.preprocessing((0.5,) * 3, (0.5,) * 3)
    feed = TrainingFeed(source, preprocessing, recipe, 7, labels=LABELS)
    steps = feed.steps_through(2)
    labels = np.concatenate([batch.labels for batch in feed.batches(0, steps)])
    expected = LABELS[np.concatenate([balanced_order(7, epoch, LABELS)[0] for epoch in range(3)])]
    np.testing.assert_array_equal(labels, expected[: len(labels)])
    later = [batch.labels for batch in TrainingFeed(source, preprocessing, recipe, 7, labels=LABELS).batches(5, steps)]
    np.testing.assert_array_equal(np.concatenate(later), labels[5 * 16 :])
    plain = TrainingFeed(source, preprocessing, replace(recipe, sampler="shuffled"), 7)
    assert np.bincount(next(iter(plain.batches(0, 1))).labels, minlength=6)[0] > 5
