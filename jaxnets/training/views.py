"""Test-time augmentation: the mean probabilities over several views of each image."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.data.preprocessing import FiveCrops, Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.layers import param_dtype

VIEWS = ("flip", "five-crop")


def views_of(preprocessing: Preprocessing, tta: str | None) -> Preprocessing:
    """The preprocessing for the views `tta`. Raises InputError if there is no margin to crop from."""
    if tta not in (None, *VIEWS):
        raise InputError(f"unknown test-time augmentation {tta!r}; expected {' or '.join(VIEWS)}")
    if tta != "five-crop":
        return preprocessing
    if preprocessing.crop_size == preprocessing.resize_size:
        raise InputError(
            f"five-crop needs a margin, but these weights resize the short side to {preprocessing.resize_size} pixels "
            "and crop nothing of it; use flip"
        )
    return FiveCrops(**asdict(preprocessing))


def logits_of_views(
    model: Any, variables: Any, preprocessing: Preprocessing, images: jax.Array, tta: str | None
) -> jax.Array:
    """Logits [N, K] of images [N, H, W, 3], or of crops [N, V, H, W, 3] with five-crop.

    With `tta` their softmax is the mean of the probabilities of the views: the image and its mirror image, or the
    crops.
    """
    if tta == "flip":
        images = jnp.stack([images, images[:, :, ::-1]], axis=1)
    inputs = preprocessing.normalise(images, param_dtype(model.dtype))
    if tta is None:
        return model.apply(variables, inputs, train=False)
    count, views = inputs.shape[:2]
    logits = model.apply(variables, inputs.reshape(count * views, *inputs.shape[2:]), train=False)
    shares = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return jax.nn.logsumexp(shares.reshape(count, views, -1), axis=1) - jnp.log(views)
