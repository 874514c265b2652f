"""JAX primitives whose form is chosen when a program is lowered for its platform."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnets.ops import cpu


def register_lowerings(
    primitive: Any,
    default: Callable[..., Any],
    portable: Callable[..., Any] | None = None,
    engine: Callable[..., Any] | None = None,
) -> None:
    """Lowers `primitive` as `default`, and on the CPU as `engine`.

    The CPU uses `portable` (`default` if None) where `engine` is None, is unavailable, or fails, and in programs that
    are exported.
    """
    lower_default, lower_portable, lower_engine = (
        mlir.lower_fun(form, multiple_results=primitive.multiple_results)
        for form in (default, portable or default, engine or default)
    )

    def lower_for_cpu(context: Any, *operands: Any, **options: Any) -> Any:
        exported = context.module_context.lowering_parameters.for_export
        if engine is not None and not exported and cpu.available():
            try:
                return lower_engine(context, *operands, **options)
            except cpu.Unsupported:
                pass
            except Exception as error:
                cpu.disable(error)
        return lower_portable(context, *operands, **options)

    mlir.register_lowering(primitive, lower_default)
    mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")


def function_primitive(
    name: str,
    shapes: Callable[..., list[Any]],
    function: Callable[..., list[jax.Array]],
    engine: Callable[..., list[jax.Array]] | None = None,
) -> Any:
    """A primitive with several results that computes `function`; batching and derivatives follow from `function`.

    `shapes` maps the operands' abstract values to the results'. `engine` is as for `register_lowerings`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def batched(arrays: Any, axes: Any, **options: Any) -> tuple[list[jax.Array], list[int]]:
        outputs = jax.vmap(partial(function, **options), axes)(*arrays)
        return outputs, [0] * len(outputs)

    def differentiated(arrays: Any, tangents: Any, **options: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
        _, derivatives = jax.jvp(partial(function, **options), tuple(arrays), tuple(tangents))
        return primitive.bind(*arrays, **options), derivatives

    primitive.def_impl(lambda *arrays, **options: jax.jit(partial(primitive.bind, **options))(*arrays))
    primitive.def_abstract_eval(shapes)
    batching.primitive_batchers[primitive] = batched
    ad.primitive_jvps[primitive] = differentiated
    register_lowerings(primitive, function, engine=engine)
    return primitive
