"""Keeping memory between steps on the CPU."""

import ctypes
import os
import platform
import sys

# Parameters of glibc's mallopt: one heap for all threads, from which nothing returns to the system.
_SETTINGS = {-8: 1, -4: 0, -1: 2**31 - 1, -2: 2**26}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_memory() -> bool:
    """Makes the C library keep freed memory for the next step, instead of returning it to the system.

    XLA allocates a step's memory at each step, and the system fills each new page with zeros. Call this once, before
    the first array; the commands of jaxnets do. Returns whether it changed anything: only on Linux with glibc, if
    GLIBC_TUNABLES in the environment does not configure glibc.malloc, and without an NVIDIA device.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or tuned or os.path.exists("/dev/nvidiactl"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in _SETTINGS.items())
