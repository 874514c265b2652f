"""Pooling with torch's rules: minus infinity around a maximum, floor or ceil mode, adaptive averages."""

import itertools
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad

from jaxnets.errors import InputError
from jaxnets.ops import cpu
from jaxnets.ops.primitives import function_primitive
from jaxnets.ops.windows import Padding2D, checked_output_size, shifted_views

# The scope of an average in a traced program, as it is several operations.
AVERAGE = "average_pool"


def max_pool(inputs: jax.Array, window: int, *, stride: int, padding: int = 0, ceil_mode: bool = False) -> jax.Array:
    """Largest value in each square window: [N, H, W, C] -> [N, H', W', C].

    The gradient goes to the first maximum of a window, row by row, as in torch, and NaN is passed on.
    Raises InputError where no window fits, or one might lie in the padding alone.
    """
    if padding > window // 2:
        raise InputError(f"a padding of {padding} px was given for a window of {window}; expected at most half of it")
    counts = [checked_output_size(size, window, stride, padding, ceil_mode) for size in inputs.shape[1:3]]
    pads = [
        (padding, max(0, (count - 1) * stride + window - size - padding))
        for size, count in zip(inputs.shape[1:3], counts, strict=True)
    ]
    return _max_pool(inputs, window, stride, tuple(pads), (counts[0], counts[1]))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(inputs: jax.Array, window: int, stride: int, pads: Padding2D, counts: tuple[int, int]) -> jax.Array:
    (outputs,) = _values.bind(inputs, window=window, stride=stride, pads=pads, counts=counts)
    return outputs


@_max_pool.defjvp
def _differentiated(
    window: int, stride: int, pads: Padding2D, counts: tuple[int, int], primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    options = {"window": window, "stride": stride, "pads": pads, "counts": counts}
    outputs, winners = _values_and_winners.bind(*primals, **options)
    (outputs_dot,) = _tangent.bind(*tangents, winners, **options)
    return outputs, outputs_dot


def _largest(
    inputs: jax.Array, *, window: int, stride: int, pads: Padding2D, counts: tuple[int, int]
) -> list[jax.Array]:
    # `lax.reduce_window` is several times slower on the CPU, and writes float32 maps on a GPU for inputs of bfloat16.
    taps = [(i, j) for i in range(window) for j in range(window)]
    return [reduce(jnp.maximum, shifted_views(inputs, taps, stride, pads, counts, -jnp.inf))]


def _by_views(
    inputs: jax.Array, *, window: int, stride: int, pads: Padding2D, counts: tuple[int, int]
) -> list[jax.Array]:
    """The largest values, and the tap of the window that each one came from."""
    taps = [(i, j) for i in range(window) for j in range(window)]
    best, *others = shifted_views(inputs, taps, stride, pads, counts, -jnp.inf)
    winners = jnp.zeros(best.shape, _tap_dtype(window))
    for tap, values in enumerate(others, 1):
        better = (values > best) | jnp.isnan(values)
        best, winners = jnp.where(better, values, best), jnp.where(better, jnp.array(tap, winners.dtype), winners)
    return [best, winners]


def _of_winners(
    inputs_dot: jax.Array,
    winners: jax.Array,
    *,
    window: int,
    stride: int,
    pads: Padding2D,
    counts: tuple[int, int],
) -> list[jax.Array]:
    """The tangents of the largest values, from the tap that each one came from."""
    taps = [(i, j) for i in range(window) for j in range(window)]
    views = shifted_views(inputs_dot, taps, stride, pads, counts, 0)
    return [sum((jnp.where(winners == tap, view, 0) for tap, view in enumerate(views)), jnp.zeros_like(views[0]))]


def _tap_dtype(window: int) -> jnp.dtype:
    return jnp.dtype(jnp.uint8 if window**2 < 254 else jnp.int32)


def _by_inputs(
    winners: jax.Array, gradient: jax.Array, *, sizes: tuple[int, int], window: int, stride: int, pads: Padding2D
) -> list[jax.Array]:
    """The gradient by inputs of `sizes`, from that by the outputs and the tap that each one came from."""
    # XLA's own gradient scatters, which is slow. Here each input pixel gathers from the windows that contain it: where
    # its place leaves the remainder r by the stride, those in which it is at r, r + stride, ...
    largest = jnp.iinfo(winners.dtype).max
    n, *counts, channels = gradient.shape
    quotients = [-(-(size + sum(pad)) // stride) for size, pad in zip(sizes, pads, strict=True)]
    total = jnp.zeros((n, quotients[0], stride, quotients[1], stride, channels), gradient.dtype)
    reach = -(-window // stride)
    room = [(reach - 1, quotient - count, 0) for quotient, count in zip(quotients, counts, strict=True)]
    # Padded once, and then shifted: a padding of its own for each shift costs a comparison for each value.
    around = [
        lax.pad(array, jnp.array(fill, array.dtype), ((0, 0, 0), *room, (0, 0, 0)))
        for array, fill in ((winners, largest), (gradient, 0))
    ]
    for back in itertools.product(range(reach), repeat=2):
        met, pulled = (
            lax.slice(
                array,
                (0, reach - 1 - back[0], reach - 1 - back[1], 0),
                (n, reach - 1 - back[0] + quotients[0], reach - 1 - back[1] + quotients[1], channels),
            )[:, :, None, :, None]
            for array in around
        )
        rows, columns = (np.arange(stride) + stride * step for step in back)
        inside = (rows < window)[:, None] & (columns < window)
        taps = np.where(inside, rows[:, None] * window + columns, largest - 1).astype(winners.dtype)
        total += jnp.where(met == taps[None, None, :, None, :, None], pulled, 0)
    whole = total.reshape(n, stride * quotients[0], stride * quotients[1], channels)
    (top, _), (left, _) = pads
    return [whole[:, top : top + sizes[0], left : left + sizes[1]]]


def _pooled(inputs: Any, counts: tuple[int, int]) -> Any:
    return inputs.update(shape=(inputs.shape[0], *counts, inputs.shape[3]))


_values = function_primitive(
    "max_pool", lambda inputs, *, counts, **_: [_pooled(inputs, counts)], _largest, partial(cpu.max_pool, winners=False)
)
_values_and_winners = function_primitive(
    "max_pool_with_winners",
    lambda inputs, *, counts, window, **_: [
        _pooled(inputs, counts),
        _pooled(inputs, counts).update(dtype=_tap_dtype(window)),
    ],
    _by_views,
    partial(cpu.max_pool, winners=True),
)
_gradient = function_primitive(
    "max_pool_gradient",
    lambda winners, gradient, *, sizes, **_: [gradient.update(shape=(gradient.shape[0], *sizes, gradient.shape[3]))],
    _by_inputs,
    cpu.max_pool_gradient,
)
_tangent = function_primitive(
    "max_pool_tangent", lambda inputs_dot, winners, *, counts, **_: [_pooled(inputs_dot, counts)], _of_winners
)


def _transposed(
    cotangents: Any, inputs_dot: Any, winners: Any, *, window: int, stride: int, pads: Padding2D, counts: Any
) -> list[Any]:
    del counts
    _, *sizes, _ = inputs_dot.aval.shape
    gradient = ad.instantiate_zeros(cotangents[0])
    options = {"sizes": tuple(sizes), "window": window, "stride": stride, "pads": pads}
    return [*_gradient.bind(winners, gradient, **options), None]


ad.primitive_transposes[_tangent] = _transposed


def avg_pool(inputs: jax.Array, window: int, *, stride: int) -> jax.Array:
    """Mean of each square window, unpadded: [N, H, W, C] -> [N, H', W', C]. Raises InputError where none fits."""
    counts = [checked_output_size(size, window, stride, 0) for size in inputs.shape[1:3]]
    bounds = [[(o * stride, o * stride + window) for o in range(count)] for count in counts]
    return _average(inputs, bounds[0], bounds[1])


def adaptive_avg_pool(inputs: jax.Array, size: int) -> jax.Array:
    """Averages any map to `size` x `size`, as torch: output i covers floor(i H / size) to ceil((i + 1) H / size).

    A map smaller than `size` is repeated. Shapes [N, H, W, C] -> [N, size, size, C].
    """
    if size < 1:
        raise InputError(f"an adaptive pooling to {size} px was asked for; the size must be at least 1")
    bounds = [[(o * pixels // size, -(-(o + 1) * pixels // size)) for o in range(size)] for pixels in inputs.shape[1:3]]
    return _average(inputs, bounds[0], bounds[1])


@jax.named_scope(AVERAGE)
def _average(inputs: jax.Array, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> jax.Array:
    _, height, width, _ = inputs.shape
    if rows == [(0, height)] and columns == [(0, width)]:
        return inputs.mean(axis=(1, 2), keepdims=True)
    if rows == [(i, i + 1) for i in range(height)] and columns == [(i, i + 1) for i in range(width)]:
        return inputs
    dtype = jnp.promote_types(inputs.dtype, jnp.float32)
    weights = []
    for bounds, pixels in ((rows, height), (columns, width)):
        matrix = np.zeros((len(bounds), pixels))
        for row, (start, stop) in zip(matrix, bounds, strict=True):
            row[start:stop] = 1 / (stop - start)
        weights.append(jnp.asarray(matrix, dtype))
    # The highest precision: these are averages, which an accelerator's short dots would round.
    averages = jnp.einsum("nhwc,ph,qw->npqc", inputs.astype(dtype), *weights, precision=lax.Precision.HIGHEST)
    return averages.astype(inputs.dtype)
