"""The augmentations of a recipe, as one ordered list.

To add one, declare its settings as fields of `AugmentationSettings` and add an entry to `AUGMENTATIONS`. The options of
the command, the random keys and `augments` follow from these two. A setting without an entry is an error at import.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnets.data.augmentation import color_jitter, image_keys, mix, random_erasing, random_flip, random_shift
from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.trivial_augment import trivial_augment
from jaxnets.training.losses import smoothed_targets
from jaxnets.training.settings import setting


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """The settings of all augmentations. With its default, each setting is off."""

    min_crop_area: float = setting(
        "smallest share of an image that a random crop keeps; 0: no random crops", 0.0, most=1
    )
    shift: float = setting("largest random shift, as a share of the side", 0.0, most=1)
    flip: float = setting("probability of a horizontal flip", 0.0, most=1)
    trivial_augment: bool = setting("apply one random operation of random strength to each image", False)
    color_jitter: float = setting("largest change of brightness, contrast and saturation, such as 0.4", 0.0)
    random_erasing: float = setting("probability of erasing a rectangle", 0.0, most=1)
    mixup_alpha: float = setting("mix images by mixup, with shares from Beta(alpha, alpha)", 0.0)
    cutmix_alpha: float = setting("mix images by CutMix, with shares from Beta(alpha, alpha)", 0.0)


@dataclass(frozen=True)
class Augmentation:
    """One entry of the list. It applies if any of its `settings`, names of fields, is on.

    `on` says what `function` gets, before the values of the settings:
    "raw": keys [N], and images [N, H, W, 3], uint8 or floats from 0 to 255; "normalised": keys [N], normalised images;
    "batch": one key, normalised images, target probabilities [N, K]. It returns its inputs without the keys, changed.
    "host" entries have no function: the images are changed when they are decoded, with their own random numbers.
    """

    settings: tuple[str, ...]
    on: Literal["host", "raw", "normalised", "batch"]
    function: Callable[..., Any] | None = None

    def values(self, settings: AugmentationSettings) -> tuple[Any, ...]:
        """The values of this augmentation's settings."""
        return tuple(getattr(settings, name) for name in self.settings)

    def applies(self, settings: AugmentationSettings) -> bool:
        """Whether the settings turn this augmentation on."""
        return any(self.values(settings))


def _shift(keys: jax.Array, images: jax.Array, share: float) -> jax.Array:
    return random_shift(keys, images, round(share * images.shape[1]))


def _trivial_augment(keys: jax.Array, images: jax.Array, on: bool) -> jax.Array:
    return trivial_augment(keys, images)


# In the order in which they apply. A new one goes to the end of its kind ("raw", ...); this changes the keys of those
# after it.
AUGMENTATIONS: tuple[Augmentation, ...] = (
    Augmentation(("min_crop_area",), "host"),
    Augmentation(("shift",), "raw", _shift),
    Augmentation(("flip",), "raw", random_flip),
    Augmentation(("trivial_augment",), "raw", _trivial_augment),
    Augmentation(("color_jitter",), "raw", color_jitter),
    Augmentation(("random_erasing",), "normalised", random_erasing),
    Augmentation(("mixup_alpha", "cutmix_alpha"), "batch", mix),
)


def _check(augmentations: tuple[Augmentation, ...], settings: type) -> None:
    listed = [name for augmentation in augmentations for name in augmentation.settings]
    declared = [one.name for one in fields(settings)]
    if sorted(listed) != sorted(declared):
        raise TypeError(f"each setting of {settings.__name__} needs one entry: {declared} are not {listed}")


_check(AUGMENTATIONS, AugmentationSettings)


def augments(settings: AugmentationSettings) -> bool:
    """Whether any augmentation is on."""
    return any(augmentation.applies(settings) for augmentation in AUGMENTATIONS)


def training_inputs(
    key: jax.Array,
    batch: Batch,
    num_classes: int,
    preprocessing: Preprocessing,
    settings: AugmentationSettings,
    label_smoothing: float,
    axis_name: str | None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Augmented, normalised images [N, H, W, 3] of `dtype`, and target probabilities [N, K], of a batch.

    Each augmentation gets a key of its own, and each image a key of its own from that.
    """
    images = jnp.asarray(batch.images)
    on_device = [augmentation for augmentation in AUGMENTATIONS if augmentation.function is not None]
    keys = dict(zip(on_device, jax.random.split(key, len(on_device)), strict=True))
    image_keys_of = partial(image_keys, count=len(images), axis_name=axis_name)

    def active(on: str) -> list[Any]:
        return [one for one in on_device if one.on == on and one.applies(settings)]

    for one in active("raw"):
        images = one.function(image_keys_of(keys[one]), images, *one.values(settings))
    inputs = preprocessing.normalise(images, dtype)
    for one in active("normalised"):
        inputs = one.function(image_keys_of(keys[one]), inputs, *one.values(settings))
    targets = smoothed_targets(jnp.asarray(batch.labels), num_classes, label_smoothing)
    for one in active("batch"):
        inputs, targets = one.function(keys[one], inputs, targets, *one.values(settings))
    return inputs, targets
