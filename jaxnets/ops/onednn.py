"""Convolution, batch normalisation and max-pooling by oneDNN, for programs on x86 CPUs.

XLA's own convolutions reach a quarter to a half of what a processor can do, and grouped ones a hundredth. Here a
program calls oneDNN's (dnnl_convolution.py and the like) instead, or code of our own where that is faster, on the
arrays where they lie. Programs with such calls can't be exported.
"""

import json
import math
import os
import platform
import threading
from collections.abc import Sequence
from ctypes import c_int32
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.ops import xla_handler
from jaxnets.ops.dnnl_convolution import BiasedConvolution, Convolution, Direction, KernelPacking
from jaxnets.ops.dnnl_library import Call, aligned, has_avx512, loadable, scratch_memory
from jaxnets.ops.dnnl_normalisation import Normalisation, NormalisationGradient
from jaxnets.ops.dnnl_pooling import MaxPool, MaxPoolGradient
from jaxnets.ops.joined_calls import call_text, join_calls
from jaxnets.ops.windows import Padding2D, output_size

_Array = jax.Array | jax.ShapeDtypeStruct
_Work = tuple[Convolution | MaxPool | Normalisation, tuple[int, ...]]


class _Prepared(NamedTuple):
    """A call's works with their arrays, its rows as `call_text` has them, and its memory: temporaries, then scratch."""

    works: list[tuple[Call, list[int]]]
    rows: list[list[int]]
    temporaries: list[int]
    scratch: int
    memory: int


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

SWITCH = "JAXNETS_ONEDNN"
TARGET = "jaxnets_onednn"

# XLA's default order of a program's parts is for running several at once, each on one core; oneDNN would then share
# the cores with them.
_COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

_MANY_CHANNELS = 128

_compiling = threading.Lock()
_lock = threading.Lock()
_calls: dict[str, _Prepared] = {}
_scratch = scratch_memory(0)


@cache
def usable() -> bool:
    """Whether oneDNN is here and wanted."""
    here = platform.system() == "Linux" and platform.machine() == "x86_64"
    if not here or os.environ.get(SWITCH, "1") == "0" or not loadable():
        return False
    _register()
    return True


@cache
def _register() -> None:
    xla_handler.register(TARGET, _run)


def available(*operands: _Array) -> bool:
    """Whether the calls work here for such operands; JAXNETS_ONEDNN=0 in the environment turns them off.

    They must be float32, and not empty: oneDNN leaves results of empty operands as they are.
    """
    return all(array.dtype == jnp.float32 and array.size for array in operands) and usable()


def compiled(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """A program of the networks, lowered for a platform, compiled as suits its convolutions.

    JAX keeps the lowered module for the jitted function, and it is changed: call that nowhere else meanwhile.
    """
    if platform != "cpu" or not usable():
        return lowered.compile()
    with _compiling:
        join_calls(lowered.compiler_ir(), TARGET)
        return lowered.compile(dict(_COMPILER_OPTIONS))


def prepared_calls() -> list[str]:
    """All calls that programs of this process make or made, for `prepare` in another process."""
    with _lock:
        return list(_calls)


def prepare(calls: Sequence[str]) -> None:
    """Prepares calls for a program that was lowered elsewhere, which would do it as it runs."""
    if usable():
        with _lock:
            _calls.update({text: _prepared(text) for text in calls if text not in _calls})


def convolution(inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int) -> jax.Array:
    """Cross-correlates [N, H, W, C] with [kh, kw, C / groups, F], giving [N, H', W', F]."""
    outputs = _outputs(inputs, kernel, stride, padding)
    work = _convolution(Direction.FORWARD, inputs, kernel, outputs, stride, padding, groups)
    return _call([(work, (0, 1, 2))], [outputs], inputs, kernel)[0]


def biased_convolution(
    inputs: jax.Array, kernel: jax.Array, bias: jax.Array, *added: jax.Array, **options: Any
) -> jax.Array:
    """`convolution` plus a bias [F], plus at most one array of the outputs' shape, then with `relu` max(., 0)."""
    work = _biased(BiasedConvolution, inputs, kernel, adds=bool(added), packed=False, **options)
    return _call_biased(work, inputs, kernel, bias, *added)


def packed_kernel(inputs: _Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """A kernel as `packed_convolution` takes it for such inputs, on this processor."""
    work = _biased(KernelPacking, inputs, kernel, packed=True, **options)
    packed = jax.ShapeDtypeStruct((work.packed_size() // kernel.dtype.itemsize,), kernel.dtype)
    return _call([(work, (0, 1))], [packed], kernel)[0]


def packed_convolution(
    inputs: jax.Array, packed: jax.Array, bias: jax.Array, *added: jax.Array, kernel: _Array, **options: Any
) -> jax.Array:
    """`biased_convolution` with a `packed_kernel`, of the shape of `kernel` before."""
    work = _biased(BiasedConvolution, inputs, kernel, adds=bool(added), packed=True, **options)
    return _call_biased(work, inputs, packed, bias, *added)


def _biased(
    kind: type[BiasedConvolution],
    inputs: _Array,
    kernel: _Array,
    *,
    adds: bool,
    packed: bool,
    relu: bool,
    stride: int,
    padding: int,
    groups: int,
) -> BiasedConvolution:
    outputs = _outputs(inputs, kernel, stride, padding)
    numbers = (inputs.shape, kernel.shape, outputs.shape, stride, padding, groups)
    return kind(Direction.FORWARD, *numbers, adds, relu, packed)


def _call_biased(work: BiasedConvolution, *operands: jax.Array) -> jax.Array:
    outputs = jax.ShapeDtypeStruct(tuple(work.outputs), operands[0].dtype)
    return _call([(work, tuple(range(len(operands) + 1)))], [outputs], *operands)[0]


def input_gradient(
    outputs: jax.Array, kernel: jax.Array, *, size: tuple[int, int], stride: int, padding: int, groups: int
) -> jax.Array:
    """The gradient of `convolution` by its inputs, maps of `size`, from that by its outputs."""
    inputs = jax.ShapeDtypeStruct((outputs.shape[0], *size, kernel.shape[2] * groups), outputs.dtype)
    work = _convolution(Direction.INPUT_GRADIENT, inputs, kernel, outputs, stride, padding, groups)
    return _call([(work, (0, 1, 2))], [inputs], outputs, kernel)[0]


def weight_gradient(
    inputs: jax.Array, outputs: jax.Array, *, window: tuple[int, int], stride: int, padding: int, groups: int
) -> jax.Array:
    """The gradient of `convolution` by its kernel, of `window`, from its inputs and the gradient by its outputs."""
    kernel = jax.ShapeDtypeStruct((*window, inputs.shape[3] // groups, outputs.shape[3]), inputs.dtype)
    work = _convolution(Direction.WEIGHT_GRADIENT, inputs, kernel, outputs, stride, padding, groups)
    return _call([(work, (0, 1, 2))], [kernel], inputs, outputs)[0]


def gradients(
    inputs: jax.Array, kernel: jax.Array, outputs: jax.Array, *, stride: int, padding: int, groups: int
) -> list[jax.Array]:
    """Both gradients of `convolution`, by inputs and by kernel, from that by its outputs, in one call."""
    by_inputs, by_kernel = (
        _convolution(direction, inputs, kernel, outputs, stride, padding, groups)
        for direction in (Direction.INPUT_GRADIENT, Direction.WEIGHT_GRADIENT)
    )
    return _call([(by_inputs, (2, 1, 3)), (by_kernel, (0, 2, 4))], [inputs, kernel], inputs, kernel, outputs)


def batch_norm(inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, signs: int) -> list[jax.Array]:
    """[..., C] normalised over all axes but the last, mean and biased variance [C], and `signs` bytes.

    With `signs` the outputs are max(., 0), and these bytes are for `batch_norm_gradients`; see `keeps_signs_in`.
    """
    work = Normalisation(_as_images(inputs), epsilon, signs)
    bits = jax.ShapeDtypeStruct((signs,), jnp.uint8)
    if not signs:
        return [*_call([(work, tuple(range(6)))], [inputs, scale, scale], inputs, scale, bias), jnp.zeros(0, jnp.uint8)]
    return _call([(work, tuple(range(7)))], [inputs, scale, scale, bits], inputs, scale, bias)


def keeps_signs_in(inputs: jax.Array, size: int) -> bool:
    """Whether so many bytes are what oneDNN needs to keep the signs of a normalisation's outputs."""
    return size > 0 and Normalisation(_as_images(inputs), 1.0, size).signs_needed() == size


def batch_norm_gradients(
    inputs: jax.Array,
    outputs: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    *signs: jax.Array,
    epsilon: float,
) -> list[jax.Array]:
    """The gradients of `batch_norm`'s outputs by inputs, scale and bias, from that by the `outputs`."""
    work = NormalisationGradient(_as_images(inputs), epsilon, sum(bits.size for bits in signs))
    operands = (inputs, outputs, mean, var, scale, *signs)
    return _call([(work, tuple(range(len(operands) + 3)))], [inputs, scale, scale], *operands)


def max_pool(inputs: jax.Array, *, counts: tuple[int, int], winners: bool, **options: Any) -> list[jax.Array]:
    """Max-pooling into maps of `counts`, and if asked for the winners, as `pool.py` defines them."""
    outputs = jax.ShapeDtypeStruct((inputs.shape[0], *counts, inputs.shape[3]), inputs.dtype)
    taps = [jax.ShapeDtypeStruct(outputs.shape, jnp.uint8)] if winners else []
    work = _pooling(MaxPool, inputs.shape, outputs.shape, winners=winners, **options)
    return _call([(work, tuple(range(2 + len(taps))))], [outputs, *taps], inputs)


def max_pool_gradient(
    winners: jax.Array, gradient: jax.Array, *, sizes: tuple[int, int], **options: Any
) -> list[jax.Array]:
    """The gradient of max-pooling by its inputs, maps of `sizes`, as `pool.py` defines it."""
    inputs = jax.ShapeDtypeStruct((gradient.shape[0], *sizes, gradient.shape[3]), gradient.dtype)
    work = _pooling(MaxPoolGradient, inputs.shape, gradient.shape, winners=True, **options)
    return _call([(work, (0, 1, 2))], [inputs], gradient, winners)


def knows_winners(inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> bool:
    """Whether oneDNN writes the taps of the windows as `pool.py` does, for inputs and outputs of these shapes."""
    return _pooling(MaxPool, inputs, outputs, winners=True, **options).winners_needed() == math.prod(outputs)


def _pooling(
    kind: type[MaxPool],
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    window: int,
    stride: int,
    pads: Padding2D,
    winners: bool,
) -> MaxPool:
    low, high = zip(*pads, strict=True)
    return kind(inputs, outputs, window, stride, low, high, winners)


def _as_images(array: jax.Array) -> tuple[int, ...]:
    """The shape that [..., C] is normalised in: with vectors of 8 numbers, many channels as images of one pixel each.

    oneDNN walks over an image's pixels for a few channels at a time, which for many lie far apart: [8, 14, 14, 1024]
    takes 3.1 ms, and [1568, 1, 1, 1024] 0.9 ms (two Zen 3 cores; its gradient 1.9 and 1.3 ms), but [32, 32, 32, 16] 0.3
    and [32768, 1, 1, 16] 0.4 ms.
    """
    channels = array.shape[-1]
    as_pixels = array.ndim != 4 or (channels >= _MANY_CHANNELS and not has_avx512())
    return (array.size // channels, 1, 1, channels) if as_pixels else array.shape


def _outputs(inputs: _Array, kernel: _Array, stride: int, padding: int) -> jax.ShapeDtypeStruct:
    sides = (
        output_size(size, window, stride, padding)
        for size, window in zip(inputs.shape[1:3], kernel.shape[:2], strict=True)
    )
    return jax.ShapeDtypeStruct((inputs.shape[0], *sides, kernel.shape[3]), inputs.dtype)


def _convolution(
    direction: Direction, inputs: _Array, kernel: _Array, outputs: _Array, stride: int, padding: int, groups: int
) -> Convolution:
    return Convolution(direction, inputs.shape, kernel.shape, outputs.shape, stride, padding, groups)


def _call(works: Sequence[_Work], results: Sequence[_Array], *operands: jax.Array) -> list[jax.Array]:
    """A call of the running program for works one after another, each on some of the operands and results."""
    text = call_text([(type(work).__name__, asdict(work), places) for work, places in works])
    with _lock:
        if text not in _calls:
            _calls[text] = _prepared(text)  # what can't be done fails here, not in a running program
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    return list(jax.ffi.ffi_call(TARGET, shapes)(*operands, call=text))


def _prepared(text: str) -> _Prepared:
    carried = json.loads(text)
    works = [(_prepared_work(json.dumps([kind, work])), places) for kind, work, places in carried["works"]]
    offsets, size = _placed(carried["temporaries"], [places for _, places in works])
    return _Prepared(works, carried["rows"], offsets, size, size + max(call.scratch_size for call, _ in works))


@cache
def _prepared_work(text: str) -> Call:
    """A work of a kind and its numbers; calls may share it, as one runs at a time."""
    kind, work = json.loads(text)
    call: Call = _KINDS[kind](**work).call()
    return call


def _placed(sizes: Sequence[int], places: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Where in one memory a call's temporaries lie, and its bytes; they share it where their times don't meet.

    `places` are those of each work's arrays; the temporaries' are the last, and each is in some work.
    """
    if not sizes:
        return [], 0
    first = 1 + max(place for own in places for place in own) - len(sizes)
    times = [[time for time, own in enumerate(places) if first + number in own] for number in range(len(sizes))]
    placed: dict[int, int] = {}
    for number in sorted(range(len(sizes)), key=lambda number: times[number][0]):
        begin, end = times[number][0], times[number][-1]
        taken = sorted(
            (offset, offset + aligned(sizes[other]))
            for other, offset in placed.items()
            if times[other][0] <= end and times[other][-1] >= begin
        )
        offset = 0
        for low, high in taken:
            if offset + sizes[number] <= low:
                break
            offset = max(offset, high)
        placed[number] = offset
    whole = max(offset + aligned(sizes[number]) for number, offset in placed.items())
    return [placed[number] for number in range(len(sizes))], whole


def _run(text: str, addresses: Sequence[int]) -> None:
    """Does a call's works, on all cores: where XLA would do several calls at once, they wait for each other."""
    global _scratch
    with _lock:
        if text not in _calls:
            _calls[text] = _prepared(text)
        call = _calls[text]
        if len(_scratch[0]) < call.memory:
            _scratch = scratch_memory(call.memory)
        memory = _scratch[1]
        arrays = [*addresses, *(memory + offset for offset in call.temporaries)]
        for place, number, count, size in call.rows:
            arrays[place] += size * min(max(c_int32.from_address(addresses[number]).value, 0), count - 1)
        for work, places in call.works:
            work([arrays[place] for place in places], memory + call.scratch)
