"""Two-dimensional convolution, dense or grouped, in the form that suits the platform.

Every form is ordinary differentiable JAX, so forward- and reverse-mode derivatives of any order work. Under jit the
form is chosen when the program is lowered for its platform, not when it is traced.

XLA's CPU convolutions leave their fast path for groups and for maps smaller than the kernel. Measured on two Zen 4
cores, float32, batch 16, jax 0.10.2, forward / input gradient / weight gradient:

| case                         | plain lax          | the form used here                                  |
|------------------------------|--------------------|-----------------------------------------------------|
| 3x3, 2 px, C=512             | 139 / 139 / 2 ms   | one dot over patches: 2.4 / 4.0 / 3.8 ms            |
| 3x3, 4 to 2 px, C=512        | 4 / 150 / 4 ms     | one dot over patches: 1.9 / 3.8 / 3.8 ms            |
| 3x3, 4 px, C=512, 32 groups  | 2 / 3 / 329 ms     | batched dot over patches: 1.6 / 1.1 / 1.6 ms        |
| 3x3, 16 px, C=128, 32 groups | 12 / 12 / 1,312 ms | 4 dense convolutions of 8 groups: 3.5 / 3.2 / 4.5 ms |
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.errors import InputError
from jaxnets.ops.windows import checked_output_size, live_taps, shifted_views

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# On the CPU, maps of up to this many pixels a side are multiplied as patches; larger ones cost more to copy. With
# groups it is the output's side that counts.
_PATCH_PIXELS = 4
_GROUPED_PATCH_PIXELS = 8
# Groups are merged, as blocks on the diagonal of a dense kernel, until a convolution sees this many channels.
_MERGED_CHANNELS = 32


def conv2d(inputs: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """Cross-correlates `inputs` [N, H, W, C] with `kernel` [kh, kw, C / groups, F], giving [N, H', W', F].

    Equals `plain_conv2d` up to rounding, for finite inputs. Raises InputError where channels and groups do not fit, or
    no pixel is left.
    """
    channels, features = inputs.shape[-1], kernel.shape[-1]
    if channels != kernel.shape[2] * groups or features % groups:
        raise InputError(
            f"{channels} input channels, a kernel of shape {kernel.shape} and {groups} groups do not fit: "
            "the kernel's third axis must be channels / groups, and groups must divide its last"
        )
    for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True):
        checked_output_size(size, window, stride, padding)

    def plain(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain_conv2d(inputs, kernel, stride=stride, padding=padding, groups=groups)

    # Rematerialised, so that its patches are not kept from the forward to the backward pass.
    @partial(jax.checkpoint, prevent_cse=False)
    def cpu(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return _cpu_conv2d(inputs, kernel, stride, padding, groups)

    return lax.platform_dependent(inputs, kernel, cpu=cpu, default=plain)


def plain_conv2d(
    inputs: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """The same convolution as one `lax.conv_general_dilated`: what `conv2d` must equal."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def _cpu_conv2d(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    largest = max(inputs.shape[1:3])
    if groups > 1:
        if largest <= _GROUPED_PATCH_PIXELS * stride:
            return _grouped_patches_dot(inputs, kernel, stride, padding, groups)
        return _merged_groups(inputs, kernel, stride, padding, groups)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return jnp.tensordot(inputs[:, ::stride, ::stride], kernel[0, 0], 1)
    if largest <= _PATCH_PIXELS:
        patches, kernel = _patches(inputs, kernel, stride, padding)
        return jnp.tensordot(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1]), 1)
    return plain_conv2d(inputs, kernel, stride=stride, padding=padding)


def _patches(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[list[jax.Array], jax.Array]:
    """Views of the input under each kernel tap that meets a pixel, and the kernel [taps, C / groups, F] cut to them."""
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
    """A few dense convolutions, each over several neighbouring groups with a block-diagonal kernel."""
    height, width, group_inputs, features = kernel.shape
    merged = next(
        m for m in range(1, groups + 1) if groups % m == 0 and (m == groups or m * group_inputs >= _MERGED_CHANNELS)
    )
    count = groups // merged
    blocks = kernel.reshape(height, width, group_inputs, count, merged, features // groups)
    diagonal = jnp.einsum("hwicmo,nm->chwnimo", blocks, jnp.eye(merged, dtype=kernel.dtype))
    diagonal = diagonal.reshape(count, height, width, merged * group_inputs, features // count)
    return jnp.concatenate(
        [
            plain_conv2d(part, diagonal[i], stride=stride, padding=padding)
            for i, part in enumerate(jnp.split(inputs, count, axis=-1))
        ],
        axis=-1,
    )
