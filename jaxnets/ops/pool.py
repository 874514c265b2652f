"""Pooling with torch's rules: minus infinity around a maximum, floor or ceil mode, adaptive averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.errors import InputError
from jaxnets.ops.windows import Padding2D, checked_output_size, shifted_views


def max_pool(inputs: jax.Array, window: int, *, stride: int, padding: int = 0, ceil_mode: bool = False) -> jax.Array:
    """Largest value in each square window: [N, H, W, C] -> [N, H', W', C].

    The gradient goes to the first maximum of a window, row by row, as in torch, and NaN is passed on.
    Raises InputError where no window fits.
    """
    counts = [checked_output_size(size, window, stride, padding, ceil_mode) for size in inputs.shape[1:3]]
    pads = [
        (padding, max(0, (count - 1) * stride + window - size - padding))
        for size, count in zip(inputs.shape[1:3], counts, strict=True)
    ]
    return _max_pool(inputs, window, stride, tuple(pads), (counts[0], counts[1]))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(inputs: jax.Array, window: int, stride: int, pads: Padding2D, counts: tuple[int, int]) -> jax.Array:
    del counts  # they follow from the padding
    return lax.reduce_window(
        inputs, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0))
    )


def _forward(
    inputs: jax.Array, window: int, stride: int, pads: Padding2D, counts: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    taps = [(i, j) for i in range(window) for j in range(window)]
    best, *others = shifted_views(inputs, taps, stride, pads, counts, -jnp.inf)
    winners = jnp.zeros(best.shape, jnp.uint8 if len(taps) <= 256 else jnp.int32)
    for tap, values in enumerate(others, 1):
        better = (values > best) | jnp.isnan(values)
        best, winners = jnp.where(better, values, best), jnp.where(better, jnp.array(tap, winners.dtype), winners)
    # Of the inputs only the shape is needed, which an empty array carries.
    return best, (winners, jnp.zeros((0, *inputs.shape[1:3]), jnp.bool_))


def _backward(
    window: int,
    stride: int,
    pads: Padding2D,
    counts: tuple[int, int],
    kept: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array]:
    # XLA's own gradient scatters: 37 ms (32 px, 64 channels, batch 16, two Zen 4 cores). Input pixels whose places have
    # the same remainder by the stride are met by the same taps; each remainder is summed by itself, then they are woven
    # together: 4 ms instead of 8 for comparing the inputs again and padding nine times (112 px, 64 channels, batch 8).
    winners, shape = kept
    sizes = shape.shape[1:]
    quotients = [-(-(size + sum(pad)) // stride) for size, pad in zip(sizes, pads, strict=True)]
    n, _, _, channels = gradient.shape

    def met_by(row: int, column: int) -> jax.Array:
        total = jnp.zeros((n, *quotients, channels), gradient.dtype)
        for i in range(row, window, stride):
            for j in range(column, window, stride):
                won = jnp.where(winners == i * window + j, gradient, 0)
                room = [
                    (tap // stride, quotient - count - tap // stride)
                    for tap, quotient, count in zip((i, j), quotients, counts, strict=True)
                ]
                total += jnp.pad(won, ((0, 0), *room, (0, 0)))
        return total

    rows = [jnp.stack([met_by(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    woven = jnp.stack(rows, axis=2).reshape(n, *(stride * quotient for quotient in quotients), channels)
    (top, _), (left, _) = pads
    return (woven[:, top : top + sizes[0], left : left + sizes[1]],)


_max_pool.defvjp(_forward, _backward)


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
