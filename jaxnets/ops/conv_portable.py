"""Convolution on the CPU without the engine: forms that keep XLA's own convolutions on their fast path.

XLA leaves its fast path for grouped convolutions and for maps smaller than the kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.ops.windows import checked_output_size, live_taps, shifted_views

# Maps of at most this many pixels a side are multiplied as patches; copying larger ones costs more. For groups the
# output's side counts.
_PATCH_PIXELS = 4
_GROUPED_PATCH_PIXELS = 8
# Groups are merged into blocks on the diagonal of a dense kernel until a convolution has this many channels.
_MERGED_CHANNELS = 32


def as_pointwise(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[jax.Array, jax.Array]:
    """Patches [N, H', W', taps C] and a kernel [1, 1, taps C, F] whose 1x1 convolution equals the given one."""
    patches, live = _patches(inputs, kernel, stride, padding)
    return jnp.concatenate(patches, axis=-1), live.reshape(1, 1, -1, kernel.shape[3])


def _merged(groups: int, group_inputs: int) -> int:
    """The number of neighbouring groups that one dense convolution computes."""
    enough = (m for m in range(1, groups + 1) if groups % m == 0 and m * group_inputs >= _MERGED_CHANNELS)
    return next(enough, groups)


def conv2d(inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int) -> jax.Array:
    """Cross-correlates [N, H, W, C] with [kh, kw, C / groups, F], giving [N, H', W', F]."""
    largest = max(inputs.shape[1:3])
    if groups > 1:
        if largest <= _GROUPED_PATCH_PIXELS * stride:
            return _grouped_patches_dot(inputs, kernel, stride, padding, groups)
        return _merged_groups(inputs, kernel, stride, padding, groups)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return jnp.tensordot(inputs[:, ::stride, ::stride], kernel[0, 0], 1)
    if largest <= _PATCH_PIXELS:
        patches, kernel = as_pointwise(inputs, kernel, stride, padding)
        return jnp.tensordot(patches, kernel[0, 0], 1)
    return _dense(inputs, kernel, stride=stride, padding=padding)


def _patches(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[list[jax.Array], jax.Array]:
    """The input under each kernel tap that meets a pixel, and the kernel [taps, C / groups, F] of these taps."""
    counts = [
        checked_output_size(size, window, stride, padding)
        for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    ]
    rows, columns = (
        live_taps(size, window, stride, padding, count)
        for size, window, count in zip(inputs.shape[1:3], kernel.shape[:2], counts, strict=True)
    )
    taps = [(i, j) for i in rows for j in columns]
    views = shifted_views(inputs, taps, stride, [(padding, padding)] * 2, (counts[0], counts[1]), 0)
    live = kernel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return views, live.reshape(len(taps), *kernel.shape[2:])


def _grouped_patches_dot(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """One matrix product a group, batched: [groups, N H' W', taps C/groups] @ [groups, taps C/groups, F/groups]."""
    n, height, width, channels = inputs.shape
    by_group = jnp.moveaxis(inputs.reshape(n, height, width, groups, channels // groups), 3, 0)
    views, kernel = _patches(by_group.reshape(groups * n, height, width, -1), kernel, stride, padding)
    _, rows, columns, _ = views[0].shape
    patches = jnp.concatenate(views, axis=-1).reshape(groups, n * rows * columns, -1)
    kernels = jnp.moveaxis(kernel.reshape(patches.shape[-1], groups, -1), 1, 0)
    outputs = jnp.matmul(patches, kernels).reshape(groups, n, rows, columns, -1)
    return jnp.moveaxis(outputs, 0, 3).reshape(n, rows, columns, -1)


def _merged_groups(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """Dense convolutions, each of several neighbouring groups with a block-diagonal kernel."""
    height, width, group_inputs, features = kernel.shape
    merged = _merged(groups, group_inputs)
    count = groups // merged
    blocks = kernel.reshape(height, width, group_inputs, count, merged, features // groups)
    diagonal = jnp.einsum("hwicmo,nm->chwnimo", blocks, jnp.eye(merged, dtype=kernel.dtype))
    diagonal = diagonal.reshape(count, height, width, merged * group_inputs, features // count)
    return jnp.concatenate(
        [
            _dense(part, diagonal[i], stride=stride, padding=padding)
            for i, part in enumerate(jnp.split(inputs, count, axis=-1))
        ],
        axis=-1,
    )


def _dense(inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        inputs, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
