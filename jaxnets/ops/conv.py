"""Two-dimensional convolution, dense or grouped.

A convolution, its input gradient and its weight gradient are one trilinear form. Each is a primitive here, whose
derivatives are the other two, so derivatives of any order and mode exist. A primitive is lowered to
`lax.conv_general_dilated` and its transposes; on the CPU to the engine's calls (cpu/), or to the forms of
conv_portable.py where the engine is not available.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxnets.errors import InputError
from jaxnets.ops import conv_portable, cpu
from jaxnets.ops.primitives import function_primitive, register_lowerings
from jaxnets.ops.windows import checked_output_size, output_size

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Size = tuple[int, int]


def conv2d(inputs: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """Cross-correlates `inputs` [N, H, W, C] with `kernel` [kh, kw, C / groups, F], giving [N, H', W', F].

    Equals `plain_conv2d` up to rounding, for finite inputs. Raises InputError if channels and groups do not match, or
    if the output would be empty.
    """
    check_conv2d(inputs, kernel, stride, padding, groups)
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    return _forward.bind(inputs.astype(dtype), kernel.astype(dtype), stride=stride, padding=padding, groups=groups)


def check_conv2d(inputs: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> None:
    """Raises the InputErrors of `conv2d`."""
    channels, features = inputs.shape[-1], kernel.shape[-1]
    if channels != kernel.shape[2] * groups or features % groups:
        raise InputError(
            f"{channels} input channels, a kernel of shape {kernel.shape} and {groups} groups do not match: "
            "the kernel's third axis must be channels / groups, and its last a multiple of groups"
        )
    for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True):
        checked_output_size(size, window, stride, padding)


def plain_conv2d(
    inputs: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> jax.Array:
    """The same convolution as one `lax.conv_general_dilated`, the reference for `conv2d`."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def dense(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, C] @ [C, F], computed as the convolution of maps of one pixel, which the CPU engine speeds up."""
    return conv2d(inputs[:, None, None], kernel[None, None])[:, 0, 0]


def _default(inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int) -> jax.Array:
    if inputs.shape[1:3] == kernel.shape[:2] == (1, 1) and padding == 0 and groups == 1:
        return jnp.tensordot(inputs, kernel[0, 0], 1)
    return plain_conv2d(inputs, kernel, stride=stride, padding=padding, groups=groups)


def _input_gradient_of(
    convolve: Callable[..., jax.Array],
    outputs: jax.Array,
    kernel: jax.Array,
    *,
    size: Size,
    groups: int,
    **options: Any,
) -> jax.Array:
    shape = (outputs.shape[0], *size, kernel.shape[2] * groups)
    (inputs,) = jax.linear_transpose(
        lambda inputs: convolve(inputs, kernel, groups=groups, **options), jax.ShapeDtypeStruct(shape, outputs.dtype)
    )(outputs)
    return inputs


def _weight_gradient_of(
    convolve: Callable[..., jax.Array],
    inputs: jax.Array,
    outputs: jax.Array,
    *,
    window: Size,
    groups: int,
    **options: Any,
) -> jax.Array:
    shape = (*window, inputs.shape[-1] // groups, outputs.shape[-1])
    (kernel,) = jax.linear_transpose(
        lambda kernel: convolve(inputs, kernel, groups=groups, **options), jax.ShapeDtypeStruct(shape, outputs.dtype)
    )(outputs)
    return kernel


def _primitive(
    name: str,
    shape: Callable[..., tuple[int, ...]],
    default: Callable[..., jax.Array],
    portable: Callable[..., jax.Array],
    engine: Callable[..., jax.Array],
) -> Any:
    primitive = Primitive(name)

    @cache
    def compiled(**options: Any) -> Callable[..., jax.Array]:
        return jax.jit(partial(primitive.bind, **options))

    def batched(arrays: Any, axes: Any, **options: Any) -> tuple[jax.Array, int]:
        return jax.vmap(partial(default, **options), axes)(*arrays), 0

    primitive.def_impl(lambda *arrays, **options: compiled(**options)(*arrays))
    primitive.def_abstract_eval(
        lambda left, right, **options: left.update(shape=shape(left.shape, right.shape, **options))
    )
    batching.primitive_batchers[primitive] = batched
    register_lowerings(primitive, default, portable, engine)
    return primitive


def _output_shape(
    inputs: tuple[int, ...], kernel: tuple[int, ...], *, stride: int, padding: int, groups: int
) -> tuple[int, ...]:
    del groups
    sides = [output_size(size, window, stride, padding) for size, window in zip(inputs[1:3], kernel[:2], strict=True)]
    return (inputs[0], *sides, kernel[3])


_forward = _primitive("conv2d", _output_shape, _default, conv_portable.conv2d, cpu.convolution)
_input_gradient = _primitive(
    "conv2d_input_gradient",
    lambda outputs, kernel, *, size, groups, **_: (outputs[0], *size, kernel[2] * groups),
    partial(_input_gradient_of, _default),
    partial(_input_gradient_of, conv_portable.conv2d),
    cpu.convolution_input_gradient,
)
_weight_gradient = _primitive(
    "conv2d_weight_gradient",
    lambda inputs, outputs, *, window, groups, **_: (*window, inputs[3] // groups, outputs[3]),
    partial(_weight_gradient_of, _default),
    partial(_weight_gradient_of, conv_portable.conv2d),
    cpu.convolution_weight_gradient,
)

# A transpose rule gets the cotangent, then both operands; the operand to solve for is an abstract value.
ad.defbilinear(
    _forward,
    lambda outputs, inputs, kernel, **options: _input_gradient.bind(
        outputs, kernel, size=inputs.aval.shape[1:3], **options
    ),
    lambda outputs, inputs, kernel, **options: _weight_gradient.bind(
        inputs, outputs, window=kernel.aval.shape[:2], **options
    ),
)
ad.defbilinear(
    _input_gradient,
    lambda inputs, outputs, kernel, *, size, **options: _forward.bind(inputs, kernel, **options),
    lambda inputs, outputs, kernel, *, size, **options: _weight_gradient.bind(
        inputs, outputs, window=kernel.aval.shape[:2], **options
    ),
)
ad.defbilinear(
    _weight_gradient,
    lambda kernel, inputs, outputs, *, window, **options: _input_gradient.bind(
        outputs, kernel, size=inputs.aval.shape[1:3], **options
    ),
    lambda kernel, inputs, outputs, *, window, **options: _forward.bind(inputs, kernel, **options),
)


def _tangent(
    inputs: jax.Array, kernel: jax.Array, inputs_dot: jax.Array, kernel_dot: jax.Array, **options: Any
) -> list[jax.Array]:
    return [_forward.bind(inputs_dot, kernel, **options) + _forward.bind(inputs, kernel_dot, **options)]


def _gradients(inputs: jax.Array, kernel: jax.Array, outputs: jax.Array, **options: Any) -> list[jax.Array]:
    return [
        _input_gradient.bind(outputs, kernel, size=inputs.shape[1:3], **options),
        _weight_gradient.bind(inputs, outputs, window=kernel.shape[:2], **options),
    ]


_tangent_of_both = function_primitive(
    "conv2d_tangent",
    lambda inputs, kernel, inputs_dot, kernel_dot, **options: [
        inputs.update(shape=_output_shape(inputs.shape, kernel.shape, **options))
    ],
    _tangent,
)
_both_gradients = function_primitive(
    "conv2d_gradients",
    lambda inputs, kernel, outputs, **_: [inputs, inputs.update(shape=kernel.shape)],
    _gradients,
    cpu.convolution_gradients,
)


def _differentiated(operands: Any, tangents: Any, **options: Any) -> tuple[jax.Array, Any]:
    if any(isinstance(tangent, ad.Zero) for tangent in tangents):
        return _differentiated_by_one(operands, tangents, **options)
    return _forward.bind(*operands, **options), _tangent_of_both.bind(*operands, *tangents, **options)[0]


def _transposed_tangent(cotangents: Any, inputs: Any, kernel: Any, *tangents: Any, **options: Any) -> list[Any]:
    (cotangent,) = cotangents
    if isinstance(cotangent, ad.Zero):
        return [None] * 4
    gradients = _both_gradients.bind(inputs, kernel, cotangent, **options)
    return [None, None, *(g if ad.is_undefined_primal(t) else None for g, t in zip(gradients, tangents, strict=True))]


def _transposed_gradients(cotangents: Any, inputs: Any, kernel: Any, outputs: Any, **options: Any) -> list[Any]:
    cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    return [None, None, *_tangent_of_both.bind(inputs, kernel, *cotangents, **options)]


# If both operands vary, one primitive computes both gradients, so that the engine needs one call.
_differentiated_by_one = ad.primitive_jvps[_forward]
ad.primitive_jvps[_forward] = _differentiated
ad.primitive_transposes[_tangent_of_both] = _transposed_tangent
ad.primitive_transposes[_both_gradients] = _transposed_gradients
