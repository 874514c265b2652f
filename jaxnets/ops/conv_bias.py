"""Convolution with bias, addition and activation; with fixed kernels for inference."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal
from jax.interpreters import ad

from jaxnets.errors import InputError
from jaxnets.ops import cpu
from jaxnets.ops.conv import check_conv2d, conv2d
from jaxnets.ops.primitives import function_primitive
from jaxnets.ops.windows import output_size

Activation = Callable[[jax.Array], jax.Array]


def conv2d_bias(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    added: jax.Array | None = None,
    *,
    activation: Activation | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> jax.Array:
    """`activation(conv2d(inputs, kernel) + bias + added)`: [N, H, W, C] -> [N, H', W', F].

    The bias is [F], `added` is [N, H', W', F]. On the CPU all this is one pass over memory in inference, and ReLU of
    NaN may be 0 there. Raises InputError as `conv2d` does, and for other shapes.
    """
    check_conv2d(inputs, kernel, stride, padding, groups)
    relu = activation is jax.nn.relu
    options = {"relu": relu, "stride": stride, "padding": padding, "groups": groups}
    operands = [inputs, kernel, bias, *([] if added is None else [added])]
    dtype = jnp.result_type(*operands)
    outputs = (inputs.shape[0], *_sides(inputs, kernel, stride, padding), kernel.shape[3])
    for name, array, shape in (("bias", bias, outputs[3:]), ("added array", added, outputs)):
        if array is not None and array.shape != shape:
            raise InputError(f"the {name} has shape {array.shape}; for these inputs and kernel it must be {shape}")
    result: jax.Array = _biased.bind(*(array.astype(dtype) for array in operands), **options)[0]
    return result if activation is None or relu else activation(result)


def _plain(inputs: Any, kernel: Any, bias: Any, *added: Any, relu: bool, **options: Any) -> list[Any]:
    outputs = checkpoint_name(conv2d(inputs, kernel, **options) + bias, "convolution")
    for array in added:
        outputs += array
    return [jax.nn.relu(outputs) if relu else outputs]


def _shapes(inputs: Any, kernel: Any, *_: Any, stride: int, padding: int, **__: Any) -> list[Any]:
    return [inputs.update(shape=(inputs.shape[0], *_sides(inputs, kernel, stride, padding), kernel.shape[3]))]


def _sides(inputs: Any, kernel: Any, stride: int, padding: int) -> list[int]:
    sizes = zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    return [output_size(size, window, stride, padding) for size, window in sizes]


_biased = function_primitive("conv2d_bias", _shapes, _plain, cpu.biased_convolution)


def _differentiated(operands: Any, tangents: Any, **options: Any) -> Any:
    varying = [index for index, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def plain(*arrays: Any) -> list[Any]:
        all_operands = list(operands)
        for index, array in zip(varying, arrays, strict=True):
            all_operands[index] = array
        return _plain(*all_operands, **options)

    primals, directions = (tuple(arrays[index] for index in varying) for arrays in (operands, tangents))
    return jax.jvp(plain, primals, directions)


ad.primitive_jvps[_biased] = _differentiated


def pack_kernels(
    function: Callable[..., Any], leaves: list[jax.Array], *arguments: Any
) -> tuple[Callable[..., Any], list[jax.Array]]:
    """A function equal to `function(leaves, *arguments)` for arguments of these shapes, and the leaves it takes.

    On the CPU, leaves that are used as a kernel of `conv2d_bias` only are laid out for the engine here, instead of in
    each call.
    """
    if jax.default_backend() != "cpu" or not cpu.available():
        return function, leaves
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(leaves, *arguments)
    jaxpr = closed.jaxpr
    indices = {variable: index for index, variable in enumerate(jaxpr.invars[: len(leaves)])}
    uses = Counter(
        variable for equation in jaxpr.eqns for variable in equation.invars if not isinstance(variable, Literal)
    )
    uses.update(variable for variable in jaxpr.outvars if not isinstance(variable, Literal))
    packings: dict[int, Callable[[jax.Array], jax.Array]] = {}
    for equation in jaxpr.eqns:
        kernel = equation.invars[1] if equation.primitive is _biased else None
        if kernel in indices and uses[kernel] == 1:
            inputs, adds = equation.invars[0].aval, len(equation.invars) > 3
            packings[indices[kernel]] = partial(cpu.pack_kernel, inputs, adds=adds, **equation.params)

    def pack(kernels: dict[int, jax.Array]) -> dict[int, jax.Array]:
        packed: dict[int, jax.Array] = {}
        for index, kernel in kernels.items():
            with suppress(cpu.Unsupported):
                packed[index] = packings[index](kernel)
        return packed

    try:
        packed = jax.jit(pack)({index: leaves[index] for index in packings})
    except Exception as error:
        cpu.disable(error)
        return function, leaves

    def run(leaves: list[jax.Array], *arguments: Any) -> Any:
        values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(jaxpr.invars, [*leaves, *jax.tree.leaves(arguments)], strict=True))

        def value_of(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            operands = [value_of(variable) for variable in equation.invars]
            if equation.primitive is _biased and indices.get(equation.invars[1]) in packed:
                kernel = equation.invars[1].aval
                outputs = cpu.packed_convolution(*operands, kernel=kernel, **equation.params)
            else:
                params = equation.primitive.get_bind_params(equation.params)
                outputs = equation.primitive.bind(*operands, **params)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return jax.tree.unflatten(jax.tree.structure(shapes), [value_of(variable) for variable in jaxpr.outvars])

    return run, [packed.get(index, leaf) for index, leaf in enumerate(leaves)]
