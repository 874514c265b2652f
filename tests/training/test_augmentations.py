"""The list of augmentations: nothing that it holds is forgotten, and its numbers are what they were."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data.augmentation import color_jitter, mix, random_erasing, random_flip, random_shift
from jaxnets.data.trivial_augment import trivial_augment
from jaxnets.ops import image_keys
from jaxnets.training import augmentations
from jaxnets.training.augmentations import AUGMENTATIONS, Augmentation, AugmentationSettings, training_inputs
from jaxnets.training.losses import smoothed_targets
from jaxnets.training.settings import setting
from tests.training.tiny import PLAIN, PREPROCESSING, make_batch

ON: dict[str, Any] = {
    "min_crop_area": 0.5, "shift": 0.2, "flip": 0.5, "trivial_augment": True, "color_jitter": 0.4,
    "random_erasing": 0.9, "mixup_alpha": 0.3, "cutmix_alpha": 1.0,
}  # fmt: skip
BATCH = make_batch(8)


def inputs(**changes: Any) -> tuple[np.ndarray, np.ndarray]:
    recipe = replace(PLAIN, **changes)
    images, targets = training_inputs(jax.random.key(5), BATCH, 3, PREPROCESSING, recipe, 0.1, None)
    return np.asarray(images), np.asarray(targets)


def test_a_recipe_knows_of_each_augmentation() -> None:
    assert set(ON) == {one.name for one in fields(AugmentationSettings)}
    assert not PLAIN.augments
    for name, value in ON.items():
        assert replace(PLAIN, **{name: value}).augments, name
    assert replace(PLAIN, train_image_sizes=(8, 12)).augments
    assert not replace(PLAIN, train_image_sizes=(12,), repeats=2).augments


@pytest.mark.slow
def test_each_augmentation_changes_its_images() -> None:
    plain = inputs()
    for augmentation in AUGMENTATIONS:
        if augmentation.function is not None:
            changed = inputs(**{name: ON[name] for name in augmentation.settings})
            assert not np.array_equal(plain[0], changed[0]), augmentation


def test_a_setting_without_an_entry_is_an_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(AugmentationSettings):
        blur: float = setting("largest blur", 0.0)

    with pytest.raises(TypeError, match="each setting of More needs one entry"):
        augmentations._check(AUGMENTATIONS, More)
    augmentations._check((*AUGMENTATIONS, Augmentation(("blur",), "raw")), More)


@pytest.mark.slow
def test_the_images_are_those_of_six_keys_in_a_fixed_order() -> None:
    """As written out by hand: seeds give the same images as before there was a list."""
    shift, flip, trivial, colour, erasing, mixing = jax.random.split(jax.random.key(5), 6)
    keys = partial(image_keys, count=8, axis_name=None)
    images: Any = random_shift(keys(shift), jnp.asarray(BATCH.images), round(0.2 * 8))
    images = random_flip(keys(flip), images, 0.5)
    images = trivial_augment(keys(trivial), images)
    images = color_jitter(keys(colour), images, 0.4)
    normalised = random_erasing(keys(erasing), PREPROCESSING.normalise(images, jnp.float32), 0.9)
    expected = mix(mixing, normalised, smoothed_targets(jnp.asarray(BATCH.labels), 3, 0.1), 0.3, 1.0)
    for actual, array in zip(inputs(**ON), expected, strict=True):
        np.testing.assert_array_equal(actual, array)
