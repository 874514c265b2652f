"""Convolution and its two gradients on the CPU, in the forms that are fast there.

That is oneDNN (onednn.py) where it can be had. Elsewhere XLA's own convolutions are kept on their fast path, which they
leave for groups and for maps smaller than the kernel.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.ops import onednn
from jaxnets.ops.windows import checked_output_size, live_taps, output_size, shifted_views

Size = tuple[int, int]

# Maps of up to this many pixels a side are multiplied as patches; larger ones cost more to copy. With groups it is the
# output's side that counts.
_PATCH_PIXELS = 4
_GROUPED_PATCH_PIXELS = 8
# Groups are merged, as blocks on the diagonal of a dense kernel, until a convolution sees this many channels.
_MERGED_CHANNELS = 32
# With oneDNN, patches are multiplied where the outputs' pixels are this much fewer than their channels: for [16, 2, 2,
# 512] and a 3x3 kernel that takes 1.2 ms, and convolving 4.9.
_KERNEL_SHARE = 4


def forward(
    inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int, portable: bool
) -> jax.Array:
    """`conv2d`, without oneDNN where the program is to be `portable`."""
    if portable or not onednn.available(inputs, kernel):
        return _portable_forward(inputs, kernel, stride, padding, groups)
    if has_few_outputs(inputs, kernel, stride, padding, groups):
        return onednn.convolution(*_pointwise(inputs, kernel, stride, padding), stride=1, padding=0, groups=1)
    return onednn.convolution(inputs, kernel, stride=stride, padding=padding, groups=groups)


def input_gradient(
    outputs: jax.Array,
    kernel: jax.Array,
    *,
    size: Size,
    stride: int,
    padding: int,
    groups: int,
    portable: bool,
) -> jax.Array:
    """The gradient of `conv2d` by its inputs, maps of `size`, from that by its outputs."""
    if portable or not onednn.available(outputs, kernel):
        shape = (outputs.shape[0], *size, kernel.shape[2] * groups)
        (inputs,) = jax.linear_transpose(
            lambda x: _portable_forward(x, kernel, stride, padding, groups),
            jax.ShapeDtypeStruct(shape, outputs.dtype),
        )(outputs)
        return inputs
    return onednn.input_gradient(outputs, kernel, size=size, stride=stride, padding=padding, groups=groups)


def weight_gradient(
    inputs: jax.Array,
    outputs: jax.Array,
    *,
    window: Size,
    stride: int,
    padding: int,
    groups: int,
    portable: bool,
) -> jax.Array:
    """The gradient of `conv2d` by its kernel, of `window`, from its inputs and the gradient by its outputs."""
    if portable or not onednn.available(inputs, outputs):
        shape = (*window, inputs.shape[-1] // groups, outputs.shape[-1])
        (kernel,) = jax.linear_transpose(
            lambda k: _portable_forward(inputs, k, stride, padding, groups),
            jax.ShapeDtypeStruct(shape, outputs.dtype),
        )(outputs)
        return kernel
    return onednn.weight_gradient(inputs, outputs, window=window, stride=stride, padding=padding, groups=groups)


def gradients(
    inputs: jax.Array, kernel: jax.Array, outputs: jax.Array, *, stride: int, padding: int, groups: int, portable: bool
) -> list[jax.Array]:
    """Both gradients of `conv2d`, by inputs and by kernel, from that by its outputs.

    One call of oneDNN, where it can be had: of two, XLA would let the second compete for the cores with what follows
    the first. ResNet-50's step took 0.95 s so, against 0.76 s for its parts one after another.
    """
    if not portable and onednn.available(inputs, kernel, outputs):
        if has_few_outputs(inputs, kernel, stride, padding, groups):
            operands, pull = jax.vjp(lambda x, k: _pointwise(x, k, stride, padding), inputs, kernel)
            return list(pull(tuple(onednn.gradients(*operands, outputs, stride=1, padding=0, groups=1))))
        return onednn.gradients(inputs, kernel, outputs, stride=stride, padding=padding, groups=groups)
    height, width, _, _ = kernel.shape
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups, "portable": portable}
    return [
        input_gradient(outputs, kernel, size=(inputs.shape[1], inputs.shape[2]), **options),
        weight_gradient(inputs, outputs, window=(height, width), **options),
    ]


def has_few_outputs(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> bool:
    """Whether a kernel is so much larger than the outputs that copying patches is less work than reordering it."""
    if groups > 1 or (kernel.shape[:2] == (1, 1) and stride == 1):
        return False
    sides = (output_size(*sizes, stride, padding) for sizes in zip(inputs.shape[1:3], kernel.shape[:2], strict=True))
    return inputs.shape[0] * math.prod(sides) * _KERNEL_SHARE <= kernel.shape[3]


def _pointwise(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[jax.Array, jax.Array]:
    """Patches [N, H', W', taps C] and a kernel [1, 1, taps C, F] whose 1x1 convolution is that of the arguments."""
    patches, live = _patches(inputs, kernel, stride, padding)
    return jnp.concatenate(patches, axis=-1), live.reshape(1, 1, -1, kernel.shape[3])


def _merged(groups: int, group_inputs: int) -> int:
    """How many neighbouring groups are computed as one."""
    enough = (m for m in range(1, groups + 1) if groups % m == 0 and m * group_inputs >= _MERGED_CHANNELS)
    return next(enough, groups)


def _portable_forward(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    largest = max(inputs.shape[1:3])
    if groups > 1:
        if largest <= _GROUPED_PATCH_PIXELS * stride:
            return _grouped_patches_dot(inputs, kernel, stride, padding, groups)
        return _merged_groups(inputs, kernel, stride, padding, groups)
    if kernel.shape[:2] == (1, 1) and padding == 0:
        return jnp.tensordot(inputs[:, ::stride, ::stride], kernel[0, 0], 1)
    if largest <= _PATCH_PIXELS:
        patches, kernel = _pointwise(inputs, kernel, stride, padding)
        return jnp.tensordot(patches, kernel[0, 0], 1)
    return _dense(inputs, kernel, stride=stride, padding=padding)


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
