"""OpenMP's threads: each stays on a core of its own, and gets it back soon after it waited.

An operation waits for its last thread. Where another program keeps one of two cores busy, the system puts both threads
on the other core, and an operation takes four times as long; on a core each, it takes twice as long.
"""

import ctypes
import os
from contextlib import suppress
from ctypes import c_int, c_int64, c_uint32, c_uint64
from functools import cache
from typing import Any

from jaxnets.ops.cpu import machine_code
from jaxnets.ops.cpu.availability import uses

# Of sched_setattr(2). Linux 6.12 and later let a thread choose its slice of a core; earlier ones ignore it.
_SET_ATTRIBUTES, _ORDINARY = 314, 0
_SLICE_NANOSECONDS = 100_000


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("policy", c_uint32),
        ("flags", c_uint64),
        ("nice", c_int),
        ("priority", c_uint32),
        ("runtime", c_uint64),
        ("deadline", c_uint64),
        ("period", c_uint64),
    ]


@cache
def place() -> None:
    """Places the threads of the calling thread's team, unless there are fewer than cores, or the user places them."""
    cores = sorted(os.sched_getaffinity(0))
    placed = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"} & os.environ.keys()
    if not uses("placed_threads") or placed or len(cores) != machine_code.threads():
        return
    with suppress(OSError):  # a sandbox may forbid it
        for core, thread in zip(cores, _team(), strict=True):
            os.sched_setaffinity(thread, {core})
            _shorten_slice(thread)


def _team() -> list[int]:
    """The system's numbers of the team's threads."""
    numbers = (c_int64 * machine_code.threads())()
    machine_code.run(machine_code.compile("team", _write), numbers)
    return list(numbers)


def _write(module: Any) -> None:
    writer = machine_code.Writer(module, "team", (), 1)
    writer.code.store(writer.system_thread(), writer.code.gep(writer.code.function.args[0], [writer.thread()]))
    writer.code.ret_void()


def _shorten_slice(thread: int) -> None:
    if os.sched_getscheduler(thread) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    attributes = _Attributes(ctypes.sizeof(_Attributes), _ORDINARY, 0, nice, 0, _SLICE_NANOSECONDS)
    ctypes.CDLL(None).syscall(_SET_ATTRIBUTES, thread, ctypes.byref(attributes), 0)
