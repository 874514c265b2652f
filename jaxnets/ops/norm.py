"""Batch normalisation in training, with its gradient written out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from jaxnets.ops import cpu
from jaxnets.ops.primitives import function_primitive

Activation = Callable[[jax.Array], jax.Array]
Moments = tuple[jax.Array, jax.Array]


def batch_norm(
    inputs: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
    activation: Activation | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalises [..., C] over all axes but the last, and over the replicas of `axis_name`; `scale` and `bias` are [C].

    Returns the outputs, in the inputs' type, after the `activation`; and mean and biased variance, in the scale's type.
    ReLU costs nothing on the CPU. Ioffe & Szegedy 2015.

    The gradient is written out: derived automatically it sums four times instead of twice, and keeps the centred
    inputs.
    """
    relu = activation is jax.nn.relu
    outputs, moments = _batch_norm(inputs, scale, bias, epsilon, axis_name, relu)
    return outputs if activation is None or relu else activation(outputs), moments


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None, relu: bool
) -> tuple[jax.Array, Moments]:
    outputs, moments, _ = _with_residual(inputs, scale, bias, epsilon, axis_name, relu)
    return outputs, moments


def _with_residual(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None, relu: bool
) -> tuple[jax.Array, Moments, list[jax.Array]]:
    """Outputs, moments, and with ReLU what the CPU engine passes to its gradient."""
    if axis_name is not None:
        outputs, mean, var, *residual = _normalise(inputs, scale, bias, epsilon=epsilon, relu=relu, axis_name=axis_name)
        return outputs, (mean, var), residual
    outputs, mean, var, *residual = _normalisation.bind(inputs, scale, bias, epsilon=epsilon, relu=relu)
    return outputs, (checkpoint_name(mean, "moments"), checkpoint_name(var, "moments")), residual


@_batch_norm.defjvp
def _differentiated(epsilon: float, axis_name: str | None, relu: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    inputs, scale, bias = primals
    outputs, moments, residual = _with_residual(inputs, scale, bias, epsilon, axis_name, relu)
    operands = (*tangents, inputs, scale, *moments, *((outputs, *residual) if relu else ()))
    if axis_name is None:
        by_outputs, *by_moments = _tangent.bind(*operands, epsilon=epsilon)
    else:
        by_outputs, *by_moments = _tangents(*operands, epsilon=epsilon, axis_name=axis_name)
    return (outputs, moments), (by_outputs, tuple(by_moments))


def _normalise(
    inputs: Any, scale: Any, bias: Any, *, epsilon: float, relu: bool, axis_name: str | None = None
) -> list[Any]:
    """Outputs, mean and variance, and with ReLU a residual of zeros."""
    wide = inputs.astype(scale.dtype)
    mean, var = _moments(wide, axis_name)
    outputs = ((wide - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(inputs.dtype)
    if not relu:
        return [outputs, mean, var]
    residual = cpu.batch_norm_residual(inputs)
    return [jnp.maximum(outputs, 0), mean, var, jnp.zeros(residual.shape, residual.dtype)]


def _moments(inputs: Any, axis_name: str | None) -> Moments:
    """Mean and variance, in one pass over the inputs.

    E[x^2] - E[x]^2 loses digits if the mean is large, so the mean of the first row of pixels is subtracted first.
    """
    axes = tuple(range(inputs.ndim - 1))
    origin = lax.stop_gradient(inputs[(slice(1),) * len(axes[:-1])].mean(axes))
    shifted = inputs - origin
    mean, square = shifted.mean(axes), jnp.square(shifted).mean(axes)
    var = jnp.maximum(square - jnp.square(mean), 0)
    # Not in place: if it is a NumPy array, JAX may still be reading it for the variance.
    mean = mean + origin
    if axis_name is None:
        return mean, var
    overall = checkpoint_name(lax.pmean(mean, axis_name), "moments")
    return overall, checkpoint_name(lax.pmean(var + jnp.square(mean - overall), axis_name), "moments")


def _tangents(
    inputs_dot: Any,
    scale_dot: Any,
    bias_dot: Any,
    inputs: Any,
    scale: Any,
    mean: Any,
    var: Any,
    *rectified: Any,
    epsilon: float,
    axis_name: str | None = None,
) -> list[Any]:
    """Of outputs, mean and variance, from those of inputs, scale and bias; with ReLU outputs and residual follow.

    The transpose of this form sums twice.
    """
    axes = tuple(range(inputs.ndim - 1))
    inverse = lax.rsqrt(var + epsilon)
    wide, centred = inputs_dot.astype(scale.dtype), inputs.astype(scale.dtype) - mean
    mean_dot, covariance = wide.mean(axes), (centred * wide).mean(axes)
    if axis_name is not None:
        mean_dot, covariance = lax.pmean((mean_dot, covariance), axis_name)
    slope = scale * inverse
    outputs_dot = slope * wide + centred * (inverse * (scale_dot - slope * inverse * covariance))
    outputs_dot = (outputs_dot + (bias_dot - slope * mean_dot)).astype(inputs.dtype)
    if rectified:
        outputs_dot = jnp.where(rectified[0] > 0, outputs_dot, 0)
    return [outputs_dot, mean_dot, 2 * covariance]


def _gradients(inputs: Any, pulled: Any, mean: Any, var: Any, scale: Any, *rectified: Any, epsilon: float) -> list[Any]:
    """By inputs, scale and bias, from the outputs' gradient `pulled`; with ReLU outputs and residual follow."""
    if rectified:
        pulled = jnp.where(rectified[0] > 0, pulled, 0)
    axes = tuple(range(inputs.ndim - 1))
    inverse = lax.rsqrt(var + epsilon)
    wide, centred = pulled.astype(scale.dtype), inputs.astype(scale.dtype) - mean
    by_bias = wide.sum(axes)
    by_scale = (wide * centred).sum(axes) * inverse
    # Each input contributes to all outputs through the moments.
    count = inputs.size // inputs.shape[-1]
    by_inputs = scale * inverse * (wide - by_bias / count - centred * (inverse * by_scale / count))
    return [by_inputs.astype(inputs.dtype), by_scale, by_bias]


_normalisation = function_primitive(
    "batch_norm",
    lambda inputs, scale, bias, *, relu, **_: [inputs, *_per_channel(inputs, scale), *_residual(inputs, relu)],
    _normalise,
    cpu.batch_norm,
)
_gradient = function_primitive(
    "batch_norm_gradients",
    lambda inputs, pulled, mean, var, scale, *rectified, **_: [inputs, *_per_channel(inputs, scale)],
    _gradients,
    cpu.batch_norm_gradients,
)
_tangent = function_primitive(
    "batch_norm_tangents",
    lambda inputs_dot, scale_dot, bias_dot, inputs, scale, *_, **__: [inputs, *_per_channel(inputs, scale)],
    _tangents,
)


def _transposed(cotangents: Any, *operands: Any, epsilon: float) -> list[Any]:
    """Cotangents of the tangents of inputs, scale and bias."""
    tangents, (inputs, scale, mean, var, *rectified) = operands[:3], operands[3:]
    pulled, mean_pulled, var_pulled = map(ad.instantiate_zeros, cotangents)
    by_inputs, *others = _gradient.bind(inputs, pulled, mean, var, scale, *rectified, epsilon=epsilon)
    if not all(isinstance(cotangent, ad.Zero) for cotangent in cotangents[1:]):
        count = inputs.size // inputs.shape[-1]
        by_moments = (2 * (inputs.astype(scale.dtype) - mean) * var_pulled + mean_pulled) / count
        by_inputs += by_moments.astype(inputs.dtype)
    gradients = zip((by_inputs, *others), tangents, strict=True)
    return [g if ad.is_undefined_primal(t) else None for g, t in gradients] + [None] * (len(operands) - 3)


ad.primitive_transposes[_tangent] = _transposed


def _residual(inputs: Any, relu: bool) -> list[Any]:
    residual = cpu.batch_norm_residual(inputs)
    return [inputs.update(shape=residual.shape, dtype=residual.dtype)] if relu else []


def _per_channel(inputs: Any, scale: Any) -> list[Any]:
    return [inputs.update(shape=scale.shape, dtype=scale.dtype)] * 2
