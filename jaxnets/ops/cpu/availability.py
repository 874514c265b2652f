"""Whether the engine is used: the platform, the user's choice, and a test of the engine by itself."""

import os
import platform
import threading
import warnings
from functools import cache

SWITCH = "JAXNETS_CPU_WITHOUT"
# What the variable may name, separated by commas.
PARTS = (*("all", "winograd", "grouped_kernels", "own_pooling", "joined_calls", "waiting_threads", "placed_threads"),)

_lock = threading.Lock()
_state: bool | None = None


class Unsupported(Exception):
    """The engine does not take these operands; the portable form does."""


def available() -> bool:
    """Whether programs may call the engine. The first call tests it, and warns if the test fails.

    JAXNETS_CPU_WITHOUT=all in the environment switches the engine off.
    """
    global _state
    if _state is None:
        with _lock:
            if _state is None:
                _state = _works()
    return _state


def disable(error: Exception) -> None:
    """Switches the engine off for this process, with a warning that names the error."""
    global _state
    _state = False
    text = " ".join(str(error).split())
    # Without a file whose source Python would print below it.
    warnings.warn_explicit(
        f"the CPU engine is off, so training and inference are slower: {type(error).__name__}: {text}",
        *(UserWarning, "jaxnets", 1),
    )


def forget() -> None:
    """Lets the next `available` test again; for tests."""
    global _state
    _state = None
    parts_off.cache_clear()


@cache
def parts_off() -> frozenset[str]:
    """The parts of the engine that JAXNETS_CPU_WITHOUT names."""
    names = frozenset(filter(None, os.environ.get(SWITCH, "").split(",")))
    unknown = sorted(names - set(PARTS))
    if unknown:
        message = f"{SWITCH} names {', '.join(unknown)}; expected some of {', '.join(PARTS)}"
        warnings.warn_explicit(message, UserWarning, "jaxnets", 1)
    return names


def uses(part: str) -> bool:
    """Whether a part of the engine is switched on."""
    return part not in parts_off()


def _works() -> bool:
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not uses("all"):
        return False
    from jaxnets.ops.cpu import self_test

    try:
        self_test.run()
    except Exception as error:
        disable(error)
        return False
    return True
