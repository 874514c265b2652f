"""Compiling a program that calls the engine."""

import threading
from typing import Any

import jax

from jaxnets.ops.cpu.availability import available, uses
from jaxnets.ops.cpu.calls import TARGET
from jaxnets.ops.cpu.joined_calls import join_calls

_lock = threading.Lock()


def compile(jitted: Any, *arguments: Any) -> jax.stages.Compiled:
    """`jitted`, a function by `jax.jit` or `jax.pmap`, compiled for arguments of these shapes and types.

    On the CPU, calls of the engine that follow one another become one. Elsewhere this is
    `jitted.lower(*arguments).compile()`.
    """
    lowered = jitted.lower(*arguments)
    if not available() or not uses("joined_calls"):
        return lowered.compile()
    # JAX keeps the lowered module for the jitted function, and joining changes it.
    with _lock:
        join_calls(lowered.compiler_ir(), TARGET)
        return lowered.compile()
