"""Convolution with what often follows it, in one pass over memory where the platform can: for inference."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jaxnets.ops import conv_cpu, onednn
from jaxnets.ops.conv import check_conv2d, conv2d
from jaxnets.ops.primitives import function_primitive
from jaxnets.ops.windows import output_size


def conv2d_bias(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    added: jax.Array | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> jax.Array:
    """`conv2d(inputs, kernel) + bias + added`, then with `relu` max(., 0); the bias is [F], the rest as the outputs.

    All are of one type. Where it is differentiated it is just that; elsewhere NaN may become 0 with `relu`.
    Raises InputError as `conv2d` does.
    """
    check_conv2d(inputs, kernel, stride, padding, groups)
    more = () if added is None else (added,)
    outputs: jax.Array = _biased.bind(
        inputs, kernel, bias, *more, relu=relu, stride=stride, padding=padding, groups=groups
    )[0]
    return outputs


def _plain(inputs: Any, kernel: Any, bias: Any, *added: Any, relu: bool, **options: Any) -> list[Any]:
    outputs = conv2d(inputs, kernel, **options) + bias
    for array in added:
        outputs += array
    return [jnp.maximum(outputs, 0) if relu else outputs]


def _on_cpu(inputs: Any, kernel: Any, bias: Any, *added: Any, relu: bool, portable: bool, **options: Any) -> list[Any]:
    few = conv_cpu.has_few_outputs(inputs, kernel, **options)
    if portable or few or not onednn.available(inputs.dtype):
        return _plain(inputs, kernel, bias, *added, relu=relu, **options)
    return [onednn.biased_convolution(inputs, kernel, bias, *added, relu=relu, **options)]


def _shapes(inputs: Any, kernel: Any, *_: Any, stride: int, padding: int, **__: Any) -> list[Any]:
    sides = [
        output_size(size, window, stride, padding)
        for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    ]
    return [inputs.update(shape=(inputs.shape[0], *sides, kernel.shape[3]))]


_biased = function_primitive("conv2d_bias", _shapes, _plain, _on_cpu)


def _differentiated(operands: Any, tangents: Any, **options: Any) -> Any:
    varying = [place for place, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def plain(*arrays: Any) -> list[Any]:
        all_operands = list(operands)
        for place, array in zip(varying, arrays, strict=True):
            all_operands[place] = array
        return _plain(*all_operands, **options)

    primals, given = (tuple(arrays[place] for place in varying) for arrays in (operands, tangents))
    return jax.jvp(plain, primals, given)


ad.primitive_jvps[_biased] = _differentiated
