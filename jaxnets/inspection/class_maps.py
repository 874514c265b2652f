"""Class activation maps: where in an image a network sees a class.

Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", 2017 (arXiv 1610.02391).
HiResCAM: Draelos, Carin, "Use HiResCAM instead of Grad-CAM", 2020 (arXiv 2011.08891).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError
from jaxnets.inspection.batches import Programs, batches, checked_classes, checked_images
from jaxnets.models.contract import anatomy
from jaxnets.models.features import map_shapes, with_features
from jaxnets.models.layers import param_dtype


class ClassMaps(NamedTuple):
    """Probabilities [N, K], classes [N, T] and for each of these a map [N, T, h, w] of values from 0."""

    probabilities: np.ndarray
    classes: np.ndarray
    maps: np.ndarray


def grad_cam(
    model: Any,
    variables: Mapping[str, Any],
    images: Any,
    classes: Any = None,
    stage: str | None = None,
    *,
    method: str = "grad_cam",
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Grad-CAM maps [N, h, w] of normalised images [N, H, W, 3], at the resolution of the stage's output.

    `classes` [N] are by default the most probable ones; for classes [N, T] the maps are [N, T, h, w]. See `class_maps`
    for the other arguments, and for errors.
    """
    maps = class_maps(model, variables, images, classes, stage, method=method, batch_size=batch_size, done=done).maps
    return maps[:, 0] if classes is None or np.ndim(classes) == 1 else maps


def class_maps(
    model: Any,
    variables: Mapping[str, Any],
    images: Any,
    classes: Any = None,
    stage: str | None = None,
    *,
    top: int = 1,
    method: str = "grad_cam",
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> ClassMaps:
    """Probabilities and class activation maps of normalised images [N, H, W, 3], from one forward pass.

    The maps are of `classes` [N, T], or of the `top` most probable ones. `stage` is by default the last one whose
    output has more than one pixel; only what follows it is differentiated. `method` is "grad_cam" or "hires_cam",
    which are equal before a mean and a linear head, as in a ResNet. Before dense layers that read positions, as in
    AlexNet, HiResCAM's maps are narrower, as Grad-CAM averages gradients over the image. `done` gets the number of
    images so far. Raises InputError for a stage without a map, and if outputs are not finite.
    """
    images = checked_images(images)
    if method not in METHODS:
        raise InputError(f"method={method!r}; expected one of {', '.join(METHODS)}")
    stage = map_stage(model, variables, images.shape[1:3], stage)
    if classes is None:
        if not 1 <= top <= model.num_classes:
            raise InputError(f"top={top}; expected 1 to {model.num_classes} classes")
        program = _programs(model, stage=stage, method=method, top=top)
        arrays: tuple[np.ndarray, ...] = (images,)
    else:
        program = _programs(model, stage=stage, method=method, top=0)
        arrays = (images, checked_classes(classes, len(images), model.num_classes))
    parts, count = [], 0
    for part in batches(program, variables, arrays, batch_size):
        parts.append(part)
        count += len(part[0])
        done(count)
    return ClassMaps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def map_stage(model: Any, variables: Mapping[str, Any], side: tuple[int, int], stage: str | None = None) -> str:
    """The stage, by its last block, whose output [N, h, w, C] class maps of images of this height and width read.

    By default the last one with more than one pixel. Raises InputError if there is none, or `stage` outputs no map.
    """
    images = jax.ShapeDtypeStruct((1, *side, 3), param_dtype(model.dtype))
    maps = map_shapes(model, variables, images)
    if stage is None:
        large = [name for name, shape in maps.items() if shape.shape[1] * shape.shape[2] > 1]
        if not large:
            raise InputError(
                f"{type(model).__name__} has no stage with a map of more than one pixel for images of {side[0]}x"
                f"{side[1]} px; give larger images"
            )
        return large[-1]
    block = anatomy(model).blocks(stage, type(model).__name__)[-1]
    if block not in maps:
        raise InputError(f"stage {stage} outputs no map [N, H, W, C]; the stages with maps are {', '.join(maps)}")
    return block


def _step(
    variables: Any, batch: tuple[jax.Array, ...], *, model: Any, stage: str, method: str, top: int
) -> tuple[jax.Array, ...]:
    images, *given = batch
    precise = param_dtype(model.dtype)
    images = images.astype(precise)
    shape = map_shapes(model, variables, images)[stage]

    def from_stage(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, outputs = with_features(model, variables, images, [stage], {stage: added})
        return logits, outputs[stage]

    # Only what depends on `added` is differentiated: the part of the network after the stage.
    logits, pullback, activations = jax.vjp(from_stage, jnp.zeros(shape.shape, shape.dtype), has_aux=True)
    probabilities = jax.nn.softmax(logits.astype(precise))
    classes = given[0] if given else jax.lax.top_k(probabilities, top)[1]
    maps = []
    for column in classes.T:
        (gradient,) = pullback(jax.nn.one_hot(column, logits.shape[-1], dtype=logits.dtype))
        maps.append(METHODS[method](activations.astype(precise), gradient.astype(precise)))
    return probabilities, classes, jnp.stack(maps, axis=1)


def _grad_cam(activations: jax.Array, gradient: jax.Array) -> jax.Array:
    """Equations 1 and 2: channels weighted by the mean of their gradient."""
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((weights * activations).sum(axis=-1))


def _hires_cam(activations: jax.Array, gradient: jax.Array) -> jax.Array:
    """The sum of the products of activations and gradients."""
    return jax.nn.relu((gradient * activations).sum(axis=-1))


METHODS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"grad_cam": _grad_cam, "hires_cam": _hires_cam}
_programs = Programs(_step)
