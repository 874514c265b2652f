"""Convolution with what often follows it, in one pass over memory where the platform can: for inference."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal
from jax.interpreters import ad

from jaxnets.errors import InputError
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
    """`conv2d(inputs, kernel) + bias + added`, then with `relu` max(., 0): [N, H, W, C] -> [N, H', W', F].

    The bias is [F], what is `added` [N, H', W', F]. Where it is differentiated it is just that; elsewhere NaN may
    become 0 with `relu`. Raises InputError as `conv2d` does, and for other shapes.
    """
    check_conv2d(inputs, kernel, stride, padding, groups)
    options = {"relu": relu, "stride": stride, "padding": padding, "groups": groups}
    operands = [inputs, kernel, bias, *([] if added is None else [added])]
    dtype = jnp.result_type(*operands)
    outputs = (inputs.shape[0], *_sides(inputs, kernel, stride, padding), kernel.shape[3])
    for name, array, shape in (("bias", bias, outputs[3:]), ("array to be added", added, outputs)):
        if array is not None and array.shape != shape:
            raise InputError(f"the {name} has shape {array.shape}; for these inputs and kernel it must be {shape}")
    result: jax.Array = _biased.bind(*(array.astype(dtype) for array in operands), **options)[0]
    return result


def _plain(inputs: Any, kernel: Any, bias: Any, *added: Any, relu: bool, **options: Any) -> list[Any]:
    outputs = checkpoint_name(conv2d(inputs, kernel, **options) + bias, "convolution")
    for array in added:
        outputs += array
    return [jax.nn.relu(outputs) if relu else outputs]


def _on_cpu(inputs: Any, kernel: Any, bias: Any, *added: Any, relu: bool, portable: bool, **options: Any) -> list[Any]:
    few = conv_cpu.has_few_outputs(inputs, kernel, **options)
    if portable or few or not onednn.available(inputs, kernel):
        return _plain(inputs, kernel, bias, *added, relu=relu, **options)
    return [onednn.biased_convolution(inputs, kernel, bias, *added, relu=relu, **options)]


def _shapes(inputs: Any, kernel: Any, *_: Any, stride: int, padding: int, **__: Any) -> list[Any]:
    return [inputs.update(shape=(inputs.shape[0], *_sides(inputs, kernel, stride, padding), kernel.shape[3]))]


def _sides(inputs: Any, kernel: Any, stride: int, padding: int) -> list[int]:
    sizes = zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    return [output_size(size, window, stride, padding) for size, window in sizes]


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


def with_packed_kernels(
    function: Callable[..., Any], leaves: list[jax.Array], *arguments: Any
) -> tuple[Callable[..., Any], list[jax.Array]]:
    """`function(leaves, *arguments)`, for arguments of these shapes and leaves that stay: it and its new leaves.

    Leaves that are kernels of `conv2d_bias` alone are laid out for it once. It would be done in each call otherwise.
    For the CPU.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(leaves, *arguments)
    jaxpr = closed.jaxpr
    places = {variable: place for place, variable in enumerate(jaxpr.invars[: len(leaves)])}
    uses = Counter(
        variable for equation in jaxpr.eqns for variable in equation.invars if not isinstance(variable, Literal)
    )
    uses.update(variable for variable in jaxpr.outvars if not isinstance(variable, Literal))
    packings: dict[int, Callable[[jax.Array], jax.Array]] = {}
    for equation in jaxpr.eqns:
        if equation.primitive is not _biased:
            continue
        inputs, kernel = (variable.aval for variable in equation.invars[:2])
        place = places.get(equation.invars[1])
        if place is not None and uses[equation.invars[1]] == 1 and onednn.available(inputs, kernel):
            packings[place] = partial(_packed, inputs=inputs, adds=len(equation.invars) > 3, **equation.params)

    def pack(kernels: dict[int, jax.Array]) -> dict[int, jax.Array]:
        return {place: packings[place](kernel) for place, kernel in kernels.items()}

    packed = jax.jit(pack)({place: leaves[place] for place in packings})

    def run(leaves: list[jax.Array], *arguments: Any) -> Any:
        given = [*leaves, *jax.tree.leaves(arguments)]
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *given], strict=True))

        def value_of(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            operands = [value_of(variable) for variable in equation.invars]
            if equation.primitive is _biased and places.get(equation.invars[1]) in packings:
                kernel = equation.invars[1].aval
                outputs = [onednn.packed_convolution(*operands, kernel=kernel, **equation.params)]
            else:
                params = equation.primitive.get_bind_params(equation.params)
                outputs = equation.primitive.bind(*operands, **params)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return jax.tree.unflatten(jax.tree.structure(shapes), [value_of(variable) for variable in jaxpr.outvars])

    return run, [packed.get(place, leaf) for place, leaf in enumerate(leaves)]


def _packed(kernel: jax.Array, **options: Any) -> jax.Array:
    return onednn.packed_kernel(options.pop("inputs"), kernel, **options)
