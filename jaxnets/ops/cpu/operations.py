"""The engine's operations on JAX arrays, each as a call in the program that is traced.

They raise `Unsupported` for operands that are not float32 or are empty, and what oneDNN raises if it cannot do them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.ops.conv_portable import as_pointwise
from jaxnets.ops.cpu.availability import Unsupported
from jaxnets.ops.cpu.calls import call
from jaxnets.ops.cpu.convolutions import BiasedConvolution, Convolution, Direction, KernelPacking
from jaxnets.ops.cpu.library import has_avx512
from jaxnets.ops.cpu.normalisation import Normalisation, NormalisationGradient
from jaxnets.ops.cpu.pooling import MaxPool, MaxPoolGradient
from jaxnets.ops.windows import Padding2D, output_size

_Array = jax.Array | jax.ShapeDtypeStruct

# A convolution becomes a product of patches if its outputs have this many times fewer pixels than channels: copying the
# patches then costs less than reordering the kernel.
_KERNEL_SHARE = 4
# From this number of channels on, processors without AVX-512 normalise images as rows of pixels.
_MANY_CHANNELS = 128


def convolution(inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int) -> jax.Array:
    """Cross-correlates [N, H, W, C] with [kh, kw, C / groups, F], giving [N, H', W', F]."""
    _check(inputs, kernel)
    if _has_few_outputs(inputs, kernel, stride, padding, groups):
        inputs, kernel = as_pointwise(inputs, kernel, stride, padding)
        stride, padding = 1, 0
    outputs = _outputs(inputs, kernel, stride, padding)
    operation = _convolution(Direction.FORWARD, inputs, kernel, outputs, stride, padding, groups)
    return call([(operation, (0, 1, 2))], [outputs], inputs, kernel)[0]


def convolution_input_gradient(
    outputs: jax.Array, kernel: jax.Array, *, size: tuple[int, int], stride: int, padding: int, groups: int
) -> jax.Array:
    """The gradient of `convolution` by its inputs, maps of `size`, from the gradient by its outputs."""
    _check(outputs, kernel)
    inputs = jax.ShapeDtypeStruct((outputs.shape[0], *size, kernel.shape[2] * groups), outputs.dtype)
    operation = _convolution(Direction.INPUT_GRADIENT, inputs, kernel, outputs, stride, padding, groups)
    return call([(operation, (0, 1, 2))], [inputs], outputs, kernel)[0]


def convolution_weight_gradient(
    inputs: jax.Array, outputs: jax.Array, *, window: tuple[int, int], stride: int, padding: int, groups: int
) -> jax.Array:
    """The gradient of `convolution` by its kernel, of size `window`, from inputs and the gradient by its outputs."""
    _check(inputs, outputs)
    kernel = jax.ShapeDtypeStruct((*window, inputs.shape[3] // groups, outputs.shape[3]), inputs.dtype)
    operation = _convolution(Direction.WEIGHT_GRADIENT, inputs, kernel, outputs, stride, padding, groups)
    return call([(operation, (0, 1, 2))], [kernel], inputs, outputs)[0]


def convolution_gradients(
    inputs: jax.Array, kernel: jax.Array, outputs: jax.Array, *, stride: int, padding: int, groups: int
) -> list[jax.Array]:
    """The gradients of `convolution` by inputs and kernel, from the gradient by its outputs.

    They are one call: of two, XLA would run the second beside the operations that follow the first.
    """
    _check(inputs, kernel, outputs)
    if _has_few_outputs(inputs, kernel, stride, padding, groups):
        operands, pull = jax.vjp(lambda x, k: as_pointwise(x, k, stride, padding), inputs, kernel)
        return list(pull(tuple(_both_gradients(*operands, outputs, 1, 0, 1))))
    return _both_gradients(inputs, kernel, outputs, stride, padding, groups)


def _both_gradients(
    inputs: jax.Array, kernel: jax.Array, outputs: jax.Array, stride: int, padding: int, groups: int
) -> list[jax.Array]:
    by_inputs, by_kernel = (
        _convolution(direction, inputs, kernel, outputs, stride, padding, groups)
        for direction in (Direction.INPUT_GRADIENT, Direction.WEIGHT_GRADIENT)
    )
    return call([(by_inputs, (2, 1, 3)), (by_kernel, (0, 2, 4))], [inputs, kernel], inputs, kernel, outputs)


def biased_convolution(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, *added: jax.Array, **options: Any
) -> list[jax.Array]:
    """`convolution` plus a bias [F], plus at most one array of the outputs' shape, then with `relu` max(., 0).

    Options are those of `convolution`, and `relu`.
    """
    _check(inputs, kernel)
    geometry = {name: value for name, value in options.items() if name != "relu"}
    if _has_few_outputs(inputs, kernel, **geometry):
        raise Unsupported
    operation = _biased(BiasedConvolution, inputs, kernel, adds=bool(added), packed=False, **options)
    return _call_biased(operation, inputs, kernel, bias, *added)


def pack_kernel(inputs: _Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """A kernel as `packed_convolution` takes it for inputs of this shape, on this processor."""
    _check(inputs, kernel)
    operation = _biased(KernelPacking, inputs, kernel, packed=True, **options)
    packed = jax.ShapeDtypeStruct((operation.packed_size() // kernel.dtype.itemsize,), kernel.dtype)
    return call([(operation, (0, 1))], [packed], kernel)[0]


def packed_convolution(
    inputs: jax.Array, packed: jax.Array, bias: jax.Array, *added: jax.Array, kernel: _Array, **options: Any
) -> list[jax.Array]:
    """`biased_convolution` with a kernel by `pack_kernel`; `kernel` has the shape that it had before."""
    operation = _biased(BiasedConvolution, inputs, kernel, adds=bool(added), packed=True, **options)
    return _call_biased(operation, inputs, packed, bias, *added)


def _biased(
    kind: type[BiasedConvolution],
    inputs: _Array,
    kernel: _Array,
    *,
    adds: bool,
    packed: bool,
    relu: bool,
    stride: int,
    padding: int,
    groups: int,
) -> BiasedConvolution:
    outputs = _outputs(inputs, kernel, stride, padding)
    numbers = (inputs.shape, kernel.shape, outputs.shape, stride, padding, groups)
    return kind(Direction.FORWARD, *numbers, adds, relu, packed)


def _call_biased(operation: BiasedConvolution, *operands: jax.Array) -> list[jax.Array]:
    outputs = jax.ShapeDtypeStruct(tuple(operation.outputs), operands[0].dtype)
    return call([(operation, tuple(range(len(operands) + 1)))], [outputs], *operands)


def batch_norm_residual(inputs: _Array) -> jax.ShapeDtypeStruct:
    """What `batch_norm` with `relu` passes to its gradient for inputs of this shape; the engine alone reads it."""
    return jax.ShapeDtypeStruct((inputs.size // 8 if inputs.dtype == jnp.float32 else 0,), jnp.uint8)


def batch_norm(inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, relu: bool) -> list[jax.Array]:
    """[..., C] normalised over all axes but the last, with `relu` then max(., 0); mean and biased variance [C].

    With `relu` the `batch_norm_residual` follows.
    """
    _check(inputs, scale, bias)
    if scale.shape != bias.shape:
        raise Unsupported
    images, residual = _as_images(inputs), batch_norm_residual(inputs)
    signs = _signs(images, residual) if relu else 0
    operation = Normalisation(images, epsilon, relu, signs)
    results: list[_Array] = [inputs, scale, scale, *([residual] if signs else [])]
    outputs = call([(operation, tuple(range(3 + len(results))))], results, inputs, scale, bias)
    return [*outputs, jnp.zeros(residual.shape, residual.dtype)] if relu and not signs else outputs


def batch_norm_gradients(
    inputs: jax.Array,
    gradient: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    *rectified: jax.Array,
    epsilon: float,
) -> list[jax.Array]:
    """The gradients of `batch_norm` by inputs, scale and bias, from the `gradient` by its outputs.

    With `relu` its outputs and its residual follow the operands.
    """
    _check(inputs, gradient, scale)
    images = _as_images(inputs)
    signs = _signs(images, rectified[1]) if rectified else 0
    operation = NormalisationGradient(images, epsilon, bool(rectified), signs)
    operands = (inputs, gradient, mean, var, scale, *(rectified[1:] if signs else rectified[:1]))
    return call([(operation, tuple(range(len(operands) + 3)))], [inputs, scale, scale], *operands)


def _signs(images: Sequence[int], residual: _Array) -> int:
    """The bytes of the residual if oneDNN's record of signs fills it, else 0."""
    size = residual.size
    return size if size and Normalisation(images, 1.0, True, size).signs_needed() == size else 0


def max_pool(inputs: jax.Array, *, counts: tuple[int, int], winners: bool, **options: Any) -> list[jax.Array]:
    """Max-pooling into maps of `counts`, and if asked for the winners, as `jaxnets.ops.pool` defines them."""
    _check(inputs)
    outputs = jax.ShapeDtypeStruct((inputs.shape[0], *counts, inputs.shape[3]), inputs.dtype)
    _check_winners(inputs.shape, outputs.shape, **options)
    taps = [jax.ShapeDtypeStruct(outputs.shape, jnp.uint8)] if winners else []
    operation = _pooling(MaxPool, inputs.shape, outputs.shape, winners=winners, **options)
    return call([(operation, tuple(range(2 + len(taps))))], [outputs, *taps], inputs)


def max_pool_gradient(
    winners: jax.Array, gradient: jax.Array, *, sizes: tuple[int, int], **options: Any
) -> list[jax.Array]:
    """The gradient of max-pooling by its inputs, maps of `sizes`, as `jaxnets.ops.pool` defines it."""
    _check(gradient)
    inputs = jax.ShapeDtypeStruct((gradient.shape[0], *sizes, gradient.shape[3]), gradient.dtype)
    _check_winners(inputs.shape, gradient.shape, **options)
    operation = _pooling(MaxPoolGradient, inputs.shape, gradient.shape, winners=True, **options)
    return call([(operation, (0, 1, 2))], [inputs], gradient, winners)


def _check(*operands: _Array) -> None:
    """Raises Unsupported unless all are float32, and not empty: oneDNN leaves the results of empty ones unwritten."""
    if not all(array.dtype == jnp.float32 and array.size for array in operands):
        raise Unsupported


def _check_winners(inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
    """Raises Unsupported unless oneDNN writes a window's taps as `jaxnets.ops.pool` does, in one byte each."""
    if options["window"] ** 2 >= 254:
        raise Unsupported
    operation = _pooling(MaxPool, inputs, outputs, winners=True, **options)
    if operation.winners_needed() != math.prod(outputs):
        raise Unsupported


def _pooling(
    kind: type[MaxPool],
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    window: int,
    stride: int,
    pads: Padding2D,
    winners: bool,
) -> MaxPool:
    low, high = zip(*pads, strict=True)
    return kind(inputs, outputs, window, stride, low, high, winners)


def _as_images(array: jax.Array) -> tuple[int, ...]:
    """The shape [N, H, W, C] in which [..., C] is normalised.

    oneDNN walks over an image's pixels for a few channels at a time. If there are many channels, these lie far apart,
    and images of one pixel each are faster on processors without AVX-512.
    """
    channels = array.shape[-1]
    as_pixels = array.ndim != 4 or (channels >= _MANY_CHANNELS and not has_avx512())
    return (array.size // channels, 1, 1, channels) if as_pixels else array.shape


def _has_few_outputs(inputs: _Array, kernel: _Array, stride: int, padding: int, groups: int) -> bool:
    if groups > 1 or (kernel.shape[:2] == (1, 1) and stride == 1):
        return False
    outputs = _outputs(inputs, kernel, stride, padding)
    return math.prod(outputs.shape[:3]) * _KERNEL_SHARE <= kernel.shape[3]


def _outputs(inputs: _Array, kernel: _Array, stride: int, padding: int) -> jax.ShapeDtypeStruct:
    sides = (
        output_size(size, window, stride, padding)
        for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    )
    return jax.ShapeDtypeStruct((inputs.shape[0], *sides, kernel.shape[3]), inputs.dtype)


def _convolution(
    direction: Direction, inputs: _Array, kernel: _Array, outputs: _Array, stride: int, padding: int, groups: int
) -> Convolution:
    return Convolution(direction, inputs.shape, kernel.shape, outputs.shape, stride, padding, groups)
