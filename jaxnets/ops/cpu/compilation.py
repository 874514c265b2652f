"""Compiling a program: with the engine's calls joined, and without XLA's fusions that lose NaN."""

import threading
from typing import Any

import jax

from jaxnets.ops.cpu.availability import available, uses
from jaxnets.ops.cpu.calls import TARGET
from jaxnets.ops.cpu.joined_calls import join_calls
from jaxnets.ops.cpu.memory import make_room

# XLA's YNNPACK fusions lose NaN in maxima and in sums of a ReLU, so that a broken network gives plausible numbers.
_KEEP_NAN = {"xla_cpu_experimental_ynn_fusion_type": ""}

_lock = threading.Lock()


def compile(jitted: Any, *arguments: Any) -> jax.stages.Compiled:
    """`jitted`, a function by `jax.jit` or `jax.pmap`, compiled for arguments of these shapes and types.

    On the CPU, the program keeps NaN where `jitted(*arguments)` may lose it, and calls of the engine that follow one
    another become one. Elsewhere this is `jitted.lower(*arguments).compile()`.
    """
    lowered = jitted.lower(*arguments)
    if not available() or not uses("joined_calls"):
        return _compiled(lowered)
    # JAX keeps the lowered module for the jitted function, and joining changes it.
    with _lock:
        join_calls(lowered.compiler_ir(), TARGET)
        return _compiled(lowered)


def _compiled(lowered: Any) -> jax.stages.Compiled:
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        compiled = lowered.compile(dict(_KEEP_NAN))
    except jax.errors.JaxRuntimeError as error:
        if not any(name in str(error) for name in _KEEP_NAN):
            raise  # otherwise this XLA has no such option
        compiled = lowered.compile()
    make_room(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))
    return compiled
