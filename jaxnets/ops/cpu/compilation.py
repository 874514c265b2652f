"""Compiling a program that calls the engine."""

import threading
from typing import Any

import jax

from jaxnets.ops.cpu.availability import available, uses
from jaxnets.ops.cpu.calls import TARGET
from jaxnets.ops.cpu.joined_calls import has_calls, join_calls

# By default XLA orders a program's operations so that several can run at once, each on one core; the engine's calls,
# which use all cores, would then share them.
_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

_lock = threading.Lock()


def compile(jitted: Any, *arguments: Any) -> jax.stages.Compiled:
    """`jitted`, a function by `jax.jit` or `jax.pmap`, compiled for arguments of these shapes and types.

    On the CPU, calls of the engine that follow one another become one, and XLA runs one operation at a time. Elsewhere
    this is `jitted.lower(*arguments).compile()`.
    """
    lowered = jitted.lower(*arguments)
    if not available():
        return lowered.compile()
    # JAX keeps the lowered module for the jitted function, and joining changes it.
    with _lock:
        module = lowered.compiler_ir()
        if not has_calls(module, TARGET):
            return lowered.compile()
        if uses("joined_calls"):
            join_calls(module, TARGET)
        return lowered.compile(dict(_OPTIONS) if uses("scheduler") else None)
