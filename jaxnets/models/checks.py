"""Checks of what a network is called with and built from: one line each, before anything is computed."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError


def check_call(network: str, images: Any, train: Any, smallest: int) -> bool:
    """Returns `train`; raises InputError unless it is a bool, and `images` are floating-point [N, H, W, C].

    H and W must be at least `smallest`. Images [N, C, H, W] of one or three channels are recognised by their shape.
    """
    if not isinstance(train, bool | np.bool_):
        got = "was not given" if train is None else f"is {train!r}"
        raise InputError(f"{network}: train {got}; give train=True or train=False, a constant where it is compiled")
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        raise InputError(f"{network} got images of type {type(images).__name__}; expected an array [N, H, W, C]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"{network} got images of type {images.dtype}; expected floating-point, normalised images")
    shape = tuple(images.shape)
    if len(shape) != 4:
        hint = "; add an axis: images[None]" if len(shape) == 3 else ""
        raise InputError(f"{network} got images of shape {shape}; expected [N, H, W, C]{hint}")
    _, height, width, channels = shape
    if height in (1, 3) and channels > 4:
        raise InputError(
            f"{network} got images of shape {shape}, which looks like [N, C, H, W]; expected [N, H, W, C]: "
            "images.transpose(0, 2, 3, 1)"
        )
    if min(height, width) < smallest:
        raise InputError(
            f"{network} got images of {height}x{width} px; the smallest that it can take is {smallest}x{smallest}"
        )
    return bool(train)


def check_channels(layer: str, kernel: Sequence[int], channels: int, groups: int) -> None:
    """Raises InputError unless inputs of `channels` channels fit a kernel of this shape, [window, window, C, F]."""
    if kernel[-2] * groups == channels:
        return
    hint = "give the images, and the network with the options, that the variables are of"
    if (channels, kernel[-2]) == (1, 3):
        hint = "repeat grey images: jnp.repeat(images, 3, axis=-1)"
    raise InputError(f"{layer} reads {kernel[-2] * groups} channels, but its inputs have {channels}; {hint}")


def check_whole(owner: str, least: int = 1, **values: Any) -> None:
    """Raises InputError unless each value is a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise InputError(f"{owner}: {name}={value!r}; expected a whole number of at least {least}")


def check_functions(owner: str, **values: Any) -> None:
    """Raises InputError unless each value can be called."""
    for name, value in values.items():
        if not callable(value):
            raise InputError(f"{owner}: {name}={value!r}; expected a function or a class")


def check_stage_sizes(stage_sizes: Any) -> None:
    """Raises InputError unless `stage_sizes` are the numbers of blocks of one stage or more."""
    sizes = list(stage_sizes) if isinstance(stage_sizes, Sequence | np.ndarray) else []
    if not sizes or any(not isinstance(size, numbers.Integral) or size < 1 for size in sizes):
        raise InputError(
            f"stage_sizes={stage_sizes!r}; expected the number of blocks of each stage, such as (2, 2, 2, 2)"
        )
