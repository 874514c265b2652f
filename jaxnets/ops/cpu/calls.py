"""Calls of the engine in JAX programs: how a program describes them, and how they run.

A call runs operations one after another on arrays where they lie. A program carries it as text, so that programs with
calls can be kept in JAX's compilation cache; they cannot be exported.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int32
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import jax

from jaxnets.ops.cpu import handler, threads
from jaxnets.ops.cpu.convolutions import BiasedConvolution, Convolution, KernelPacking
from jaxnets.ops.cpu.joined_calls import call_text
from jaxnets.ops.cpu.library import Call, aligned, scratch_memory
from jaxnets.ops.cpu.normalisation import Normalisation, NormalisationGradient
from jaxnets.ops.cpu.pooling import MaxPool, MaxPoolGradient

TARGET = "jaxnets_cpu"

_Array = jax.Array | jax.ShapeDtypeStruct
Operation = Convolution | MaxPool | Normalisation
_KINDS = {
    kind.__name__: kind
    for kind in (
        BiasedConvolution,
        Convolution,
        KernelPacking,
        MaxPool,
        MaxPoolGradient,
        Normalisation,
        NormalisationGradient,
    )
}


class _Plan(NamedTuple):
    """A call that is ready to run.

    Operations come with the indices of their arrays. `rows` are as in `call_text`. `temporaries` are offsets in the
    call's memory, `scratch` is where the memory for the operations' own use begins, and `memory` the bytes of both.
    """

    operations: list[tuple[Call, list[int]]]
    rows: list[list[int]]
    temporaries: list[int]
    scratch: int
    memory: int


class Plans:
    """The calls that are ready to run, by their texts, and their operations."""

    def __init__(self) -> None:
        self._plans: dict[str, _Plan] = {}
        self._operations: dict[str, Call] = {}

    def find(self, text: str) -> _Plan:
        """The plan of a call, prepared now if it is new."""
        if text not in self._plans:
            fields = json.loads(text)
            operations = [(self._prepared(kind, numbers), indices) for kind, numbers, indices in fields["operations"]]
            offsets, size = _layout(fields["temporaries"], [indices for _, indices in operations])
            scratch = max(operation.scratch_size for operation, _ in operations)
            self._plans[text] = _Plan(operations, fields["rows"], offsets, size, size + scratch)
        return self._plans[text]

    def _prepared(self, kind: str, numbers: dict[str, Any]) -> Call:
        """An operation; calls may share it, as one call runs at a time."""
        text = json.dumps([kind, numbers])
        if text not in self._operations:
            self._operations[text] = prepare(kind, numbers)
        return self._operations[text]


_lock = threading.Lock()
_plans = Plans()
_scratch = scratch_memory(0)


@contextmanager
def using(plans: Plans) -> Iterator[None]:
    """Runs and prepares calls with other plans, as to compare parts of the engine."""
    global _plans
    before, _plans = _plans, plans
    yield
    _plans = before


@cache
def register() -> None:
    """Makes calls known to XLA."""
    handler.register(TARGET, _run)


def call(
    operations: Sequence[tuple[Operation, tuple[int, ...]]], results: Sequence[_Array], *operands: jax.Array
) -> list[jax.Array]:
    """A call that runs operations one after another, each with the indices of its arrays among operands and results.

    What oneDNN cannot do raises RuntimeError here, not in the running program.
    """
    text = call_text([(type(operation).__name__, asdict(operation), indices) for operation, indices in operations])
    with _lock:
        _plans.find(text)
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    return list(jax.ffi.ffi_call(TARGET, shapes)(*operands, call=text))


def prepare(kind: str, numbers: dict[str, Any]) -> Call:
    """An operation that is ready to run, from its kind and its numbers."""
    prepared: Call = _KINDS[kind](**numbers).call()
    return prepared


def _layout(sizes: Sequence[int], indices: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """The offsets of a call's temporaries in one memory, and its bytes; they overlap if they are not needed at once.

    `indices` are those of each operation's arrays. The temporaries have the last ones, and each is in some operation.
    """
    if not sizes:
        return [], 0
    first = 1 + max(index for of_operation in indices for index in of_operation) - len(sizes)
    times = [
        [time for time, of_operation in enumerate(indices) if first + number in of_operation]
        for number in range(len(sizes))
    ]
    offsets: dict[int, int] = {}
    for number in sorted(range(len(sizes)), key=lambda number: times[number][0]):
        begin, end = times[number][0], times[number][-1]
        in_use = sorted(
            (offset, offset + aligned(sizes[other]))
            for other, offset in offsets.items()
            if times[other][0] <= end and times[other][-1] >= begin
        )
        offset = 0
        for low, high in in_use:
            if offset + sizes[number] <= low:
                break
            offset = max(offset, high)
        offsets[number] = offset
    whole = max(offset + aligned(sizes[number]) for number, offset in offsets.items())
    return [offsets[number] for number in range(len(sizes))], whole


def _run(text: str, addresses: Sequence[int]) -> None:
    """Runs a call on all cores. If XLA runs several calls at once, they wait for each other."""
    global _scratch
    threads.place()
    with _lock:
        plan = _plans.find(text)
        if len(_scratch[0]) < plan.memory:
            _scratch = scratch_memory(plan.memory)
        memory = _scratch[1]
        arrays = [*addresses, *(memory + offset for offset in plan.temporaries)]
        for index, number, count, size in plan.rows:
            arrays[index] += size * min(max(c_int32.from_address(addresses[number]).value, 0), count - 1)
        for operation, indices in plan.operations:
            operation([arrays[index] for index in indices], memory + plan.scratch)
