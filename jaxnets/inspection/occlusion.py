"""Occlusion maps: how much less probable a class is when a part of the image is covered.

Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2013 (arXiv 1311.2901), section 4.2.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError
from jaxnets.inspection.batches import Programs, batches, checked_classes, checked_images
from jaxnets.models.layers import param_dtype


def occlusion(
    model: Any,
    variables: Mapping[str, Any],
    images: Any,
    classes: Any = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    value: float = 0.0,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Maps [N, H, W] of how much the probability of a class drops when a square around a pixel is covered.

    Squares of `window` pixels, by default a quarter of the shorter side, are set to `value`, which is the mean colour
    in normalised images [N, H, W, 3]. They lie `stride` pixels apart, by default half a window; the last ones end at
    the border. A pixel's value is the mean drop over the squares that cover it; it is negative where the class becomes
    more probable. `classes` [N] are by default the most probable ones. `done` gets the number of images so far.
    This is independent of gradients and needs one prediction for each square. Raises InputError for a window that is
    larger than the images, and if outputs are not finite.
    """
    images = checked_images(images)
    count, height, width, _ = images.shape
    window = max(1, min(height, width) // 4) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= min(height, width):
        raise InputError(f"window={window}; expected 1 to {min(height, width)} pixels")
    if not 1 <= stride <= window:
        raise InputError(f"stride={stride}; expected 1 to {window} pixels, so that the squares cover all of the image")
    tops, lefts = (_starts(side, window, stride) for side in (height, width))
    squares = [(top, left) for top in tops for left in lefts]
    program = _programs(model, window=window, value=float(value))

    # The first square of each image is beyond its border, and covers nothing.
    places = np.array([(height, width), *squares], np.int32)
    which = np.repeat(np.arange(count, dtype=np.int32), len(places))
    arrays = (which, np.tile(places, (count, 1)))
    parts, computed = [], 0
    if classes is not None:
        columns = checked_classes(classes, count, model.num_classes)[:, 0]
    for (probabilities,) in batches(program, variables, arrays, batch_size, (jnp.asarray(images),)):
        parts.append(probabilities)
        computed += len(probabilities)
        done(computed // len(places))
    probabilities = np.concatenate(parts).reshape(count, len(places), -1)
    if classes is None:
        columns = probabilities[:, 0].argmax(axis=1)
    of_class = np.take_along_axis(probabilities, columns[:, None, None], axis=2)[..., 0]
    drops = of_class[:, :1] - of_class[:, 1:]
    sums, covered = np.zeros((count, height, width)), np.zeros((height, width))
    for index, (top, left) in enumerate(squares):
        sums[:, top : top + window, left : left + window] += drops[:, index, None, None]
        covered[top : top + window, left : left + window] += 1
    return sums / covered


def _starts(side: int, window: int, stride: int) -> list[int]:
    return sorted({*range(0, side - window + 1, stride), side - window})


def _step(variables: Any, batch: tuple[jax.Array, ...], *, model: Any, window: int, value: float) -> tuple[jax.Array]:
    """The probabilities [B, K] of images with a covered square; the images, their indices and the squares' corners."""
    images, which, places = batch
    precise = param_dtype(model.dtype)
    inside = [
        (jnp.arange(side) >= places[:, axis, None]) & (jnp.arange(side) < places[:, axis, None] + window)
        for axis, side in enumerate(images.shape[1:3])
    ]
    covered = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    inputs = jnp.where(covered, jnp.asarray(value, precise), images[which].astype(precise))
    logits = model.apply(variables, inputs, train=False)
    return (jax.nn.softmax(logits.astype(precise)),)


_programs = Programs(_step)
