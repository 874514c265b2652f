"""oneDNN by its C interface (dnnl.h of oneDNN 3): descriptions of arrays, and primitives that run on addresses.

The package onednn-cpu-gomp has the library, which generates machine code for the processor when a primitive is created.
"""

import ctypes
import importlib.metadata
import math
import os
from collections.abc import Callable, Sequence
from ctypes import byref, c_char, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import numpy as np

from jaxnets.ops.cpu.availability import uses

_PACKAGE, _FILE, _VERSION = "onednn-cpu-gomp", "libdnnl.so.3", 3
_CPU, _ANY_LAYOUT = 1, 1
_USER_SCRATCHPAD = 1
_MAX_DIMENSIONS = 12
# Of dnnl_cpu_isa_t.
_AVX2, _AVX512 = 0x4, 0x20
_ALIGNMENT = 64

FLOAT32 = 3
FORWARD_TRAINING, FORWARD_INFERENCE = 64, 96
# Of DNNL_ARG_*.
SOURCE, DESTINATION, WEIGHTS, WORKSPACE, SCRATCH, SOURCE_GRADIENT, DESTINATION_GRADIENT = 1, 17, 33, 64, 80, 129, 145
# Of dnnl_query_t.
WORKSPACE_OF, SCRATCHPAD_OF = 135, 136

Images = Sequence[int]
Step = Callable[[Sequence[int]], None]


class _Argument(ctypes.Structure):
    _fields_ = [("argument", c_int), ("memory", c_void_p)]


@cache
def libraries() -> tuple[ctypes.CDLL, ctypes.PyDLL]:
    """The library's functions: for calls that release Python's lock meanwhile, and for short ones that do not.

    Raises RuntimeError if the library is missing, cannot be loaded, or has another version.
    """
    try:
        files = importlib.metadata.files(_PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    path = next((str(file.locate()) for file in files if file.name == _FILE), None)
    if path is None:
        raise RuntimeError(f"oneDNN is missing: pip install {_PACKAGE}")
    # XLA's threads need the cores between two calls. By default OpenMP's threads keep them for milliseconds, waiting
    # for more to do; asleep at once, they take long to wake up.
    if uses("waiting_threads") and "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "active"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        library = ctypes.CDLL(path), ctypes.PyDLL(path)
    except OSError as error:
        raise RuntimeError(
            f"oneDNN cannot be loaded: {error}; it needs GCC's OpenMP library (Debian: apt install libgomp1)"
        ) from None
    short = library[1]
    short.dnnl_version.restype = ctypes.POINTER(c_int)
    version = short.dnnl_version()[0]
    if version != _VERSION:
        raise RuntimeError(f"oneDNN {version} is installed; expected version {_VERSION}: pip install {_PACKAGE}")
    short.dnnl_primitive_desc_query_md.restype = c_void_p
    short.dnnl_memory_desc_get_size.restype = c_size_t
    return library


def create(function: str, *arguments: object) -> c_void_p:
    """The object that a function of the library creates, which is its first argument; it is never freed."""
    result = c_void_p()
    check(libraries()[1][function](byref(result), *arguments), function)
    return result


def check(status: int, function: str) -> None:
    """Raises RuntimeError if a function of the library returned an error."""
    if status:
        raise RuntimeError(f"oneDNN's {function} failed with status {status}")


@cache
def engine() -> c_void_p:
    """The processor, as oneDNN's engine."""
    return create("dnnl_engine_create", _CPU, c_size_t(0))


@cache
def attributes() -> c_void_p:
    """The attributes of most primitives."""
    return create_attributes()


def create_attributes() -> c_void_p:
    """New attributes of a primitive, which gets its scratch memory as an operand."""
    result = create("dnnl_primitive_attr_create")
    function = "dnnl_primitive_attr_set_scratchpad_mode"
    check(libraries()[1][function](result, _USER_SCRATCHPAD), function)
    return result


@cache
def has_avx512() -> bool:
    """Whether the processor has AVX-512: vectors of 16 numbers."""
    return bool(libraries()[1].dnnl_get_effective_cpu_isa() & _AVX512)


@cache
def computes_by_eight() -> bool:
    """Whether the processor multiplies vectors of 8 numbers at once, not of 16.

    It has AVX2 without AVX-512, or is a Zen 4, which computes each instruction of AVX-512 in two halves.
    """
    from llvmlite import binding

    if has_avx512():
        return bool(binding.get_host_cpu_name() == "znver4")
    return bool(libraries()[1].dnnl_get_effective_cpu_isa() & _AVX2)


def numbers(*values: int) -> "ctypes.Array[c_int64]":
    """Sizes or strides as the library takes them."""
    return (c_int64 * _MAX_DIMENSIONS)(*values)


def describe(sizes: Sequence[int], strides: Sequence[int] | None) -> c_void_p:
    """A description of a float32 array; without strides the primitive chooses the layout."""
    shape = len(sizes), numbers(*sizes), FLOAT32
    if strides is None:
        return create("dnnl_memory_desc_create_with_tag", *shape, _ANY_LAYOUT)
    return create("dnnl_memory_desc_create_with_strides", *shape, numbers(*strides))


def describe_images(shape: Images) -> c_void_p:
    """A description of float32 [N, H, W, C]; oneDNN orders the axes as N, C, H, W."""
    count, height, width, channels = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return describe((count, channels, height, width), strides)


def query(primitive: c_void_p, what: int) -> c_void_p:
    """One of the array descriptions (dnnl_query_t) of a primitive."""
    return c_void_p(libraries()[1].dnnl_primitive_desc_query_md(primitive, what, 0))


def exact_bytes_of(description: c_void_p) -> int:
    """The bytes of an array."""
    size: int = libraries()[1].dnnl_memory_desc_get_size(description)
    return size


def bytes_of(description: c_void_p) -> int:
    """The bytes of an array, rounded up to whole cache lines."""
    return aligned(exact_bytes_of(description))


def aligned(size: int) -> int:
    """A number of bytes, or an address, rounded up to whole cache lines."""
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


class PrimitiveStep:
    """One primitive on some of a call's arrays."""

    def __init__(self, description: c_void_p, operands: Sequence[tuple[int, c_void_p, int]]) -> None:
        """Each operand is its DNNL_ARG, its description and its index among the call's arrays."""
        waiting, short = libraries()
        self._execute = waiting.dnnl_primitive_execute
        self._set_address = short.dnnl_memory_set_data_handle
        self._primitive = create("dnnl_primitive_create", description)
        self._stream = create("dnnl_stream_create", engine(), 1)
        self._memories = [(create("dnnl_memory_create", array, engine(), None), index) for _, array, index in operands]
        pairs = zip(operands, self._memories, strict=True)
        self._arguments = (_Argument * len(operands))(*(_Argument(o[0], memory) for o, (memory, _) in pairs))

    def __call__(self, addresses: Sequence[int]) -> None:
        for memory, index in self._memories:
            self._set_address(memory, c_void_p(addresses[index]))
        status = self._execute(self._primitive, self._stream, len(self._arguments), self._arguments)
        check(status, "dnnl_primitive_execute")


class Call:
    """Steps on arrays, given by their addresses; one thread at a time may run them."""

    def __init__(self, steps: Sequence[Step], scratch: Sequence[int] = ()) -> None:
        """The arrays are the operands, the results, and scratch arrays, whose bytes are `scratch`."""
        self._steps = steps
        self._offsets = [sum(scratch[:i]) for i in range(len(scratch))]
        self.scratch_size = sum(scratch)

    def __call__(self, addresses: Sequence[int], scratch: int) -> None:
        """Runs the steps, with `scratch_size` bytes of scratch memory at the address `scratch`."""
        arrays = [*addresses, *(scratch + offset for offset in self._offsets)]
        for step in self._steps:
            step(arrays)


def reorder(source: c_void_p, source_index: int, destination: c_void_p, destination_index: int) -> PrimitiveStep:
    """A step that copies an array to another layout."""
    description = create("dnnl_reorder_primitive_desc_create", source, engine(), destination, engine(), None)
    return PrimitiveStep(description, [(SOURCE, source, source_index), (DESTINATION, destination, destination_index)])


def multiply(sizes: Sequence[int], left: int, right: int, result: int, *, transposed: bool = False) -> None:
    """Multiplies [rows, inner] by [inner, columns] at addresses; `sizes` are rows, columns and inner.

    If `transposed`, left lies in memory as [inner, rows]. This is the older of the library's two interfaces.
    """
    rows, columns, inner = (c_int64(size) for size in sizes)
    flags = c_char(b"T" if transposed else b"N"), c_char(b"N")
    first = c_void_p(left), rows if transposed else inner
    others = c_void_p(right), columns, c_float(0), c_void_p(result), columns
    check(libraries()[0].dnnl_sgemm(*flags, rows, columns, inner, c_float(1), *first, *others), "dnnl_sgemm")


def array_at(address: int, shape: Sequence[int], kind: Any = c_float) -> np.ndarray:
    """The array of a ctypes type at an address."""
    return np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address)).reshape(shape)


def primitive_call(description: c_void_p, operands: Sequence[tuple[int, c_void_p]], *more: Step) -> Call:
    """A call of one primitive, then of `more` steps.

    `operands` are the DNNL_ARG and the description of each array, in the call's order.
    """
    scratch = query(description, SCRATCHPAD_OF)
    indexed = [(argument, array, index) for index, (argument, array) in enumerate([*operands, (SCRATCH, scratch)])]
    return Call([PrimitiveStep(description, indexed), *more], [bytes_of(scratch)])


def scratch_memory(size: int) -> tuple["ctypes.Array[c_char]", int]:
    """Memory of at least `size` bytes, and an aligned address in it."""
    memory = (c_char * (size + _ALIGNMENT))()
    return memory, aligned(ctypes.addressof(memory))
