"""Convolution and its two gradients on the CPU, in the forms that are fast there.

With oneDNN (onednn.py) the input gradient is a convolution by the turned kernel, one for each remainder by the stride,
and the weight gradient a matrix product for each tap of the window. Without, XLA's own convolutions are kept on their
fast path, which they leave for groups and for maps smaller than the kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.ops import onednn
from jaxnets.ops.windows import checked_output_size, live_taps, shifted_views

Size = tuple[int, int]

# Maps of up to this many pixels a side are multiplied as patches; larger ones cost more to copy. With groups it is the
# output's side that counts.
_PATCH_PIXELS = 4
_GROUPED_PATCH_PIXELS = 8
# Groups are merged, as blocks on the diagonal of a dense kernel, until a convolution sees this many channels.
_MERGED_CHANNELS = 32
# With oneDNN, a 1x1 convolution of fewer pixels is a matrix product: it would spend its time on reordering the kernel.
_POINTWISE_ROWS = 2_048
# Products over fewer pixels, such as the weight gradients of dense layers, are XLA's.
_TRANSPOSED_ROWS = 128


def forward(
    inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int, portable: bool
) -> jax.Array:
    """`conv2d`, without oneDNN where the program is to be `portable`."""
    if portable or not onednn.available(inputs.dtype):
        return _portable_forward(inputs, kernel, stride, padding, groups)
    rows = inputs.shape[0] * inputs.shape[1] * inputs.shape[2] // stride**2
    if kernel.shape[:2] == (1, 1) and padding == 0 and groups == 1 and rows < _POINTWISE_ROWS:
        return onednn.matmul(inputs[:, ::stride, ::stride], kernel)
    return onednn.convolution(inputs, kernel, stride=stride, padding=((padding, padding),) * 2, groups=groups)


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
    if portable or not onednn.available(outputs.dtype):
        shape = (outputs.shape[0], *size, kernel.shape[2] * groups)
        (inputs,) = jax.linear_transpose(
            lambda x: _portable_forward(x, kernel, stride, padding, groups),
            jax.ShapeDtypeStruct(shape, outputs.dtype),
        )(outputs)
        return inputs
    if stride == 1 and padding < min(kernel.shape[:2]):
        row_pad, column_pad = (window - 1 - padding for window in kernel.shape[:2])
        return _turned_convolution(outputs, kernel, ((row_pad, row_pad), (column_pad, column_pad)), groups)
    # An input pixel meets the taps that share its place's remainder by the stride: a smaller kernel for each.
    counts = [-(-(pixels + 2 * padding) // stride) for pixels in size]
    rows = []
    for i in range(stride):
        row = [_phase(outputs, kernel[i::stride, j::stride], counts, groups) for j in range(stride)]
        rows.append(_interleaved(row, axis=2))
    padded = _interleaved(rows, axis=1)
    assert padded is not None  # a window has at least one tap, the first
    return padded[:, padding : padding + size[0], padding : padding + size[1]]


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
    channels, features = inputs.shape[-1], outputs.shape[-1]
    if portable or not onednn.available(outputs.dtype):
        shape = (*window, channels // groups, features)
        (kernel,) = jax.linear_transpose(
            lambda k: _portable_forward(inputs, k, stride, padding, groups),
            jax.ShapeDtypeStruct(shape, outputs.dtype),
        )(outputs)
        return kernel
    pixels = outputs.shape[0] * outputs.shape[1] * outputs.shape[2]
    if window == (1, 1) and padding == 0 and groups == 1 and pixels < _TRANSPOSED_ROWS:
        return jnp.einsum("nhwc,nhwf->cf", inputs[:, ::stride, ::stride], outputs)[None, None]
    merged = _merged(groups, channels // groups)
    blocks = groups // merged
    rows, columns = (
        live_taps(pixels, side, stride, padding, count)
        for pixels, side, count in zip(inputs.shape[1:3], window, outputs.shape[1:3], strict=True)
    )
    taps = [(i, j) for i in rows for j in columns]
    by_block = _split_channels(inputs, blocks).reshape(-1, *inputs.shape[1:3], channels // blocks)
    counts = (outputs.shape[1], outputs.shape[2])
    views = shifted_views(by_block, taps, stride, ((padding, padding),) * 2, counts, 0)
    seen = [view.reshape(blocks, -1, channels // blocks) for view in views]
    pulled = _split_channels(outputs, blocks).reshape(blocks, -1, features // blocks)
    if channels < _MERGED_CHANNELS:  # of an image's colours; a product each would be too narrow
        product = onednn.matmul(jnp.concatenate(seen, axis=-1), pulled, transpose_left=True)
        products = product.reshape(blocks, len(taps), -1, features // blocks).swapaxes(0, 1)
    else:
        products = jnp.stack([onednn.matmul(values, pulled, transpose_left=True) for values in seen])
    # [taps, blocks, merged, C / groups, merged, F / groups]: what a group's inputs do to another's outputs is dropped.
    products = products.reshape(len(taps), blocks, merged, channels // groups, merged, features // groups)
    own = jnp.einsum("tbmcmf->tcbmf", products).reshape(len(rows), len(columns), -1, features)
    dead = [(live[0], side - 1 - live[-1]) for live, side in zip((rows, columns), window, strict=True)]
    return jnp.pad(own, (*dead, (0, 0), (0, 0)))


def _turned_convolution(outputs: jax.Array, kernel: jax.Array, pads: tuple[Size, Size], groups: int) -> jax.Array:
    """What a kernel [kh, kw, C / groups, F], turned by 180 degrees, makes of [N, H', W', F]: [N, H, W, C]."""
    rows = outputs.shape[0] * outputs.shape[1] * outputs.shape[2]
    if kernel.shape[:2] == (1, 1) and groups == 1 and pads == ((0, 0), (0, 0)) and rows < _POINTWISE_ROWS:
        return onednn.matmul(outputs, kernel, transpose_right=True)
    turned = kernel[::-1, ::-1]
    if groups == 1:
        return onednn.convolution(outputs, turned, stride=1, padding=pads, transposed=True)
    height, width, group_inputs, features = kernel.shape
    turned = turned.reshape(height, width, group_inputs, groups, features // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(height, width, features // groups, groups * group_inputs)
    return onednn.convolution(outputs, turned, stride=1, padding=pads, groups=groups)


def _phase(outputs: jax.Array, kernel: jax.Array, counts: list[int], groups: int) -> jax.Array | None:
    """The input gradient [N, *counts, C] at the places that meet the taps of `kernel` alone; None if those are none."""
    if 0 in kernel.shape[:2]:
        return None
    missing = [count - size for count, size in zip(counts, outputs.shape[1:3], strict=True)]
    high = [min(pixels, window - 1) for pixels, window in zip(missing, kernel.shape[:2], strict=True)]
    pads = ((kernel.shape[0] - 1, high[0]), (kernel.shape[1] - 1, high[1]))
    found = _turned_convolution(outputs, kernel, pads, groups)
    rest = [(0, pixels - pad) for pixels, pad in zip(missing, high, strict=True)]
    return jnp.pad(found, ((0, 0), *rest, (0, 0)))


def _interleaved(parts: list[jax.Array | None], axis: int) -> jax.Array | None:
    """Arrays of one shape woven together along `axis`, element by element; None counts as zeros."""
    first = parts[0]
    if len(parts) == 1 or first is None:
        return first
    if all(part is None for part in parts[1:]):
        gap = len(parts) - 1
        gaps = [(0, gap, gap) if i == axis else (0, 0, 0) for i in range(first.ndim)]
        return lax.pad(first, jnp.zeros((), first.dtype), gaps)
    filled = [jnp.zeros_like(first) if part is None else part for part in parts]
    shape = list(first.shape)
    shape[axis] *= len(parts)
    return jnp.stack(filled, axis=axis + 1).reshape(shape)


def _split_channels(images: jax.Array, blocks: int) -> jax.Array:
    """[N, H, W, C] -> [blocks, N, H, W, C / blocks]."""
    *shape, channels = images.shape
    return jnp.moveaxis(images.reshape(*shape, blocks, channels // blocks), 3, 0)


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
        patches, kernel = _patches(inputs, kernel, stride, padding)
        return jnp.tensordot(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1]), 1)
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
