"""Batch normalisation with its gradient written out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Moments = tuple[jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, Moments]:
    """Normalises [..., C] over all axes but the last, and over the replicas of `axis_name`; `scale` and `bias` are [C].

    Returns the outputs, of the inputs' type, and mean and biased variance, of the scale's. Ioffe & Szegedy 2015.

    Derived automatically, the gradient sums four times where twice is enough, and keeps the centred inputs from the
    forward pass: 170 against 90 ms for [8, 56, 56, 256] on two Xeon cores. Reverse mode alone is provided for.
    """
    return _forward(inputs, scale, bias, epsilon, axis_name)[0]


def _forward(inputs: Any, scale: Any, bias: Any, epsilon: float, axis_name: str | None) -> tuple[Any, Any]:
    mean, var = batch_moments(inputs.astype(scale.dtype), axis_name)
    factor = scale * lax.rsqrt(var + epsilon)
    outputs = ((inputs.astype(scale.dtype) - mean) * factor + bias).astype(inputs.dtype)
    return (outputs, (mean, var)), (inputs, scale, mean, var)


def _backward(epsilon: float, axis_name: str | None, kept: Any, cotangents: Any) -> tuple[Any, Any, Any]:
    inputs, scale, mean, var = kept
    pulled, (mean_pulled, var_pulled) = cotangents
    axes = tuple(range(inputs.ndim - 1))
    inverse = lax.rsqrt(var + epsilon)
    pulled = pulled.astype(scale.dtype)
    centred = inputs.astype(scale.dtype) - mean
    bias_pulled = pulled.sum(axes)
    correlation = (pulled * centred).sum(axes)
    scale_pulled = correlation * inverse
    # What the statistics, of all replicas, pass on to each input: of the outputs, and of the statistics themselves.
    to_mean = mean_pulled - scale * inverse * bias_pulled
    to_var = var_pulled - 0.5 * scale * inverse**3 * correlation
    count = inputs.size // inputs.shape[-1]
    if axis_name is not None:
        to_mean, to_var = lax.psum((to_mean, to_var), axis_name)
        count *= lax.axis_size(axis_name)
    inputs_pulled = pulled * (scale * inverse) + centred * (2 / count * to_var) + to_mean / count
    return inputs_pulled.astype(inputs.dtype), scale_pulled, bias_pulled


batch_norm.defvjp(_forward, _backward)


def batch_moments(inputs: jax.Array, axis_name: str | None) -> Moments:
    """Mean [C] and biased variance [C] over all axes but the last and over `axis_name`.

    In two passes: E[x^2] - E[x]^2 loses digits where the mean is large against the deviation.
    """
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axes)
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
    mean = checkpoint_name(mean, "moments")
    var = jnp.square(inputs - mean).mean(axes)
    if axis_name is not None:
        var = lax.pmean(var, axis_name)
    return mean, checkpoint_name(var, "moments")
