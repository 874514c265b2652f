"""Keeping memory between steps on the CPU, and no more of it than a step takes."""

import ctypes
import os
import platform
import sys

import jax

# Parameters of glibc's mallopt: a heap from which nothing returns to the system, and where small blocks join the free
# memory around them: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_MXFAST. With one heap for all threads (M_ARENA_MAX)
# XLA's threads wait for each other, and compilation takes a third longer.
_SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 2**26, 1: 0}
_SLACK = 1 << 20


def keep_memory() -> bool:
    """Makes the C library keep freed memory for the next step, instead of returning it to the system.

    XLA allocates a step's memory at each step, and the system fills each new page with zeros. Call this once, before
    the first array; the commands of jaxnets do. Returns whether it changed anything: only on Linux with glibc, if
    GLIBC_TUNABLES in the environment does not configure glibc.malloc, and without an NVIDIA device.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not _has_glibc() or tuned or os.path.exists("/dev/nvidiactl"):
        return False
    # Otherwise XLA announces the results of a step before it frees the step's memory, and the next step takes more.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _SETTINGS.items())


def make_room(size: int) -> None:
    """Returns freed memory to the system, and leaves a free block for the `size` bytes that a program allocates."""
    if not _has_glibc():
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = library.realloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    library.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.malloc_trim(0)
    # A program's aligned block seldom fits in the gap that it left before, if that ends where it ended. The second
    # block lies behind the first, and shrinks to keep the gap from growing together with the end of the heap.
    first, second = (library.malloc(size + _SLACK) for _ in range(2))
    if second:
        library.realloc(second, 1)
    library.free(first)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
