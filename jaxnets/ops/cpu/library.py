"""oneDNN by its C interface: descriptions of arrays, primitives, and their execution on arrays in memory.

The library is that of the package onednn-cpu-gomp. It writes machine code for the processor at hand when a primitive is
made; PyTorch's convolutions are the same library's. Its C interface is stable (dnnl.h of oneDNN 3).
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
    """What a function of the library made: an object, which it hands out by its first argument. It is never freed."""
    found = c_void_p()
    check(libraries()[1][function](byref(found), *arguments), function)
    return found


def check(status: int, function: str) -> None:
    """Raises RuntimeError unless the library's function went well."""
    if status:
        raise RuntimeError(f"oneDNN's {function} failed with status {status}")


@cache
def engine() -> c_void_p:
    """The processor."""
    return create("dnnl_engine_create", _CPU, c_size_t(0))


@cache
def attributes() -> c_void_p:
    """What most primitives are made with."""
    return create_attributes()


def create_attributes() -> c_void_p:
    """What a primitive is made with: scratch memory is given to it."""
    found = create("dnnl_primitive_attr_create")
    function = "dnnl_primitive_attr_set_scratchpad_mode"
    check(libraries()[1][function](found, _USER_SCRATCHPAD), function)
    return found


@cache
def has_avx512() -> bool:
    """Whether the processor computes on vectors of 16 numbers, or only of 8."""
    return bool(libraries()[1].dnnl_get_effective_cpu_isa() & _AVX512)


@cache
def has_only_avx2() -> bool:
    """Whether it computes on vectors of 8 numbers, and multiplies and adds them at once."""
    return bool(libraries()[1].dnnl_get_effective_cpu_isa() & _AVX2) and not has_avx512()


def numbers(*values: int) -> "ctypes.Array[c_int64]":
    """Sizes, strides or the like as the library takes them."""
    return (c_int64 * _MAX_DIMENSIONS)(*values)


def describe(sizes: Sequence[int], strides: Sequence[int] | None) -> c_void_p:
    """A description of a float32 array; without strides, of a layout that the primitive is to choose."""
    shape = len(sizes), numbers(*sizes), FLOAT32
    if strides is None:
        return create("dnnl_memory_desc_create_with_tag", *shape, _ANY_LAYOUT)
    return create("dnnl_memory_desc_create_with_strides", *shape, numbers(*strides))


def describe_images(shape: Images) -> c_void_p:
    """A description of float32 [N, H, W, C]; oneDNN counts the axes as N, C, H, W."""
    count, height, width, channels = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return describe((count, channels, height, width), strides)


def query(primitive: c_void_p, what: int) -> c_void_p:
    """One of the array descriptions (dnnl_query_t) that a primitive settled on."""
    return c_void_p(libraries()[1].dnnl_primitive_desc_query_md(primitive, what, 0))


def exact_bytes_of(description: c_void_p) -> int:
    """Memory that an array takes."""
    size: int = libraries()[1].dnnl_memory_desc_get_size(description)
    return size


def bytes_of(description: c_void_p) -> int:
    """Memory that an array takes, rounded up to whole cache lines."""
    return aligned(exact_bytes_of(description))


def aligned(size: int) -> int:
    """The number of bytes, or the address, rounded up to whole cache lines."""
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


class PrimitiveStep:
    """One primitive, and which of a call's arrays are its operands."""

    def __init__(self, description: c_void_p, operands: Sequence[tuple[int, c_void_p, int]]) -> None:
        """Each operand is its DNNL_ARG, its description and its place among the call's arrays."""
        waiting, short = libraries()
        self._execute = waiting.dnnl_primitive_execute
        self._set_address = short.dnnl_memory_set_data_handle
        self._primitive = create("dnnl_primitive_create", description)
        self._stream = create("dnnl_stream_create", engine(), 1)
        self._memories = [(create("dnnl_memory_create", array, engine(), None), place) for _, array, place in operands]
        pairs = zip(operands, self._memories, strict=True)
        self._arguments = (_Argument * len(operands))(*(_Argument(o[0], memory) for o, (memory, _) in pairs))

    def __call__(self, addresses: Sequence[int]) -> None:
        for memory, place in self._memories:
            self._set_address(memory, c_void_p(addresses[place]))
        status = self._execute(self._primitive, self._stream, len(self._arguments), self._arguments)
        check(status, "dnnl_primitive_execute")


class Call:
    """A computation ready to run, by one thread at a time, on arrays given by their addresses."""

    def __init__(self, steps: Sequence[Step], scratch: Sequence[int] = ()) -> None:
        """The arrays are the operands, then the results, then `scratch` ones of so many bytes."""
        self._steps = steps
        self._offsets = [sum(scratch[:i]) for i in range(len(scratch))]
        self.scratch_size = sum(scratch)

    def __call__(self, addresses: Sequence[int], scratch: int) -> None:
        """Computes, with `scratch_size` bytes of memory at `scratch` to write on, of `scratch_memory`."""
        arrays = [*addresses, *(scratch + offset for offset in self._offsets)]
        for step in self._steps:
            step(arrays)


def reorder(source: c_void_p, source_place: int, destination: c_void_p, destination_place: int) -> PrimitiveStep:
    """Writes an array in another layout."""
    description = create("dnnl_reorder_primitive_desc_create", source, engine(), destination, engine(), None)
    return PrimitiveStep(description, [(SOURCE, source, source_place), (DESTINATION, destination, destination_place)])


def multiply(sizes: Sequence[int], left: int, right: int, result: int, *, transposed: bool = False) -> None:
    """[rows, inner] @ [inner, columns] of `sizes` rows, columns, inner, at addresses; or left lies as [inner, rows].

    It is the older of the library's two ways.
    """
    rows, columns, inner = (c_int64(size) for size in sizes)
    flags = c_char(b"T" if transposed else b"N"), c_char(b"N")
    first = c_void_p(left), rows if transposed else inner
    others = c_void_p(right), columns, c_float(0), c_void_p(result), columns
    check(libraries()[0].dnnl_sgemm(*flags, rows, columns, inner, c_float(1), *first, *others), "dnnl_sgemm")


def array_at(address: int, shape: Sequence[int], kind: Any = c_float) -> np.ndarray:
    """Memory as an array, of a ctypes type."""
    return np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address)).reshape(shape)


def primitive_call(description: c_void_p, operands: Sequence[tuple[int, c_void_p]], *more: Step) -> Call:
    """A call of one primitive, and of what is to follow it.

    Its arrays are in the order of `operands`: DNNL_ARG and description of each.
    """
    scratch = query(description, SCRATCHPAD_OF)
    placed = [(argument, array, place) for place, (argument, array) in enumerate([*operands, (SCRATCH, scratch)])]
    return Call([PrimitiveStep(description, placed), *more], [bytes_of(scratch)])


def scratch_memory(size: int) -> tuple["ctypes.Array[c_char]", int]:
    """Memory of at least `size` bytes, and the aligned address in it."""
    memory = (c_char * (size + _ALIGNMENT))()
    return memory, aligned(ctypes.addressof(memory))
