"""Measures the limits of the machine."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_MIN_STEPS = 3
_WINDOWS = 3
_WINDOW_SECONDS = 0.3
_CPU_SIDE, _GPU_SIDE = 2048, 8192
_CPU_BYTES, _GPU_BYTES = 256 << 20, 1 << 30


def steps_per_second(
    dispatch: Callable[[], Any], seconds: float, wait: Callable[[Any], Any] = jax.block_until_ready
) -> float:
    """Measures steps per second in a window of about `seconds`, with at least 3 steps.

    The steps are dispatched one after the other and awaited once: `wait` gets the list of their results.
    """
    steps = 1
    while True:
        started = time.perf_counter()
        wait([dispatch() for _ in range(steps)])
        elapsed = time.perf_counter() - started
        if steps >= _MIN_STEPS and elapsed >= 0.8 * seconds:
            return steps / elapsed
        steps = max(_MIN_STEPS, math.ceil(seconds * steps / elapsed))


def arithmetic_ceiling(dtype: DTypeLike) -> float:
    """FLOP/s of a large matrix product of `dtype` on one device, the best of 3 windows."""
    side = _CPU_SIDE if jax.default_backend() == "cpu" else _GPU_SIDE
    left = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(left, left))
    rates = [steps_per_second(lambda: multiply(left, left), _WINDOW_SECONDS) for _ in range(_WINDOWS)]
    return 2.0 * side**3 * max(rates)


def bandwidth_ceiling() -> float:
    """Bytes per second that one device reads and writes in an in-place addition, the best of 3 windows."""
    size = _CPU_BYTES if jax.default_backend() == "cpu" else _GPU_BYTES
    add = jax.jit(lambda values: values + 1, donate_argnums=0)
    values = add(jnp.zeros(size // 4, jnp.float32))

    def step() -> None:
        nonlocal values
        values = add(values)

    rates = [steps_per_second(step, _WINDOW_SECONDS, lambda _: jax.block_until_ready(values)) for _ in range(_WINDOWS)]
    return 2.0 * size * max(rates)


def peak_memory_bytes() -> int:
    """The peak memory of the first device if JAX reports it (GPUs), otherwise of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use") or host_memory_bytes()


def host_memory_bytes() -> int:
    """The peak memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # what follows would count the parent process's on Linux
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # missing on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
