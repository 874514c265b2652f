"""Primitives of JAX whose form is chosen when a program is lowered for its platform."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def register_lowerings(primitive: Any, default: Callable[..., Any], cpu: Callable[..., Any]) -> None:
    """Lets a primitive become `default` on all platforms but the CPU, and there `cpu`.

    `cpu` is told whether the program is to be `portable`, as one that is exported must be.
    """
    fast, portable = (
        mlir.lower_fun(partial(cpu, portable=portable), multiple_results=primitive.multiple_results)
        for portable in (False, True)
    )

    def lower_for_cpu(context: Any, *operands: Any, **options: Any) -> Any:
        exported = context.module_context.lowering_parameters.for_export
        return (portable if exported else fast)(context, *operands, **options)

    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=primitive.multiple_results))
    mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")


def function_primitive(
    name: str,
    shapes: Callable[..., list[Any]],
    function: Callable[..., list[jax.Array]],
    cpu: Callable[..., list[jax.Array]],
) -> Any:
    """A primitive of several results that stands for `function`, from which its batching and derivatives follow.

    `shapes` gives the results' abstract values from the operands'; `cpu` is as for `register_lowerings`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def batched(arrays: Any, axes: Any, **options: Any) -> tuple[list[jax.Array], list[int]]:
        outputs = jax.vmap(partial(function, **options), axes)(*arrays)
        return outputs, [0] * len(outputs)

    def differentiated(arrays: Any, tangents: Any, **options: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
        _, found = jax.jvp(partial(function, **options), tuple(arrays), tuple(tangents))
        return primitive.bind(*arrays, **options), found

    primitive.def_impl(lambda *arrays, **options: jax.jit(partial(primitive.bind, **options))(*arrays))
    primitive.def_abstract_eval(shapes)
    batching.primitive_batchers[primitive] = batched
    ad.primitive_jvps[primitive] = differentiated
    register_lowerings(primitive, function, cpu)
    return primitive
