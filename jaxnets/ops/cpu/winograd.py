"""3x3 convolutions of stride 1 and padding 1 by Winograd's algorithm, with oneDNN's matrix products.

F(2x2, 3x3) needs 16 multiplications instead of 36, and more passes over memory. Its factors are 1 and 1/2, so its
rounding errors are at most three times those of the plain sum. Inference also uses F(4x4, 3x3), with 36 multiplications
instead of 144 and errors of at most six times those of the plain sum. Lavin and Gray 2016 (arXiv:1509.09308).
"""

import math
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_void_p
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from jaxnets.ops.cpu.availability import uses
from jaxnets.ops.cpu.library import (
    DESTINATION,
    FLOAT32,
    SCRATCH,
    SCRATCHPAD_OF,
    SOURCE,
    WEIGHTS,
    Call,
    Images,
    PrimitiveStep,
    Step,
    aligned,
    attributes,
    bytes_of,
    check,
    computes_by_eight,
    create,
    create_attributes,
    describe,
    engine,
    libraries,
    multiply,
    query,
)
from jaxnets.ops.cpu.winograd_tiles import F2, F4, VECTOR, Finish, Tiles, TileStep, Way

# It is faster if inputs and outputs both have `_FEWEST_CHANNELS`, one of them has `_SIDE_CHANNELS`, and each tap of the
# kernel has `_FEWEST_PRODUCTS` multiplications.
_FEWEST_CHANNELS, _SIDE_CHANNELS = 32, 64
_FEWEST_PRODUCTS = 6 * 2**20

# Reading a plane of the kernel takes as long as multiplying it by this many tiles.
_TILES_A_KERNEL = 30

# Planes of images are computed and multiplied in parts of about this many bytes, which stay in the cache; in larger
# parts if the kernel's planes, which each part reads, are larger.
_PART = 4 * 2**20
_NUMBER = 4


def suits(images: Images, kernel: Sequence[int], stride: int, padding: int, groups: int) -> bool:
    """Whether Winograd's algorithm can compute a convolution and its gradients, and is faster."""
    channels, features = kernel[2:]
    if (*kernel[:2], stride, padding, groups) != (3, 3, 1, 1, 1) or channels % VECTOR or features % VECTOR:
        return False
    if min(channels, features) < _FEWEST_CHANNELS or max(channels, features) < _SIDE_CHANNELS:
        return False
    pixels, taps = math.prod(images[:3]), math.prod(kernel[:2])
    if pixels * channels * features < _FEWEST_PRODUCTS or _cost(F2, images) > taps * (pixels + _TILES_A_KERNEL):
        return False
    return computes_by_eight() and uses("winograd")


def tiles_of_inference(images: Images) -> Tiles:
    """The tiles that are fastest in inference. Training uses `F2`, whose rounding errors are smaller."""
    return min(F2, F4, key=lambda tiles: _cost(tiles, images))


def _cost(tiles: Tiles, images: Images) -> int:
    """The cost for a pair of channels, in products; reading the kernel counts as `_TILES_A_KERNEL` tiles."""
    rows, columns = tiles.grid(images)
    return tiles.planes * (rows * columns + _TILES_A_KERNEL)


def convolution(images: Images, kernel: Sequence[int]) -> Call:
    """Operands images [N, H, W, C] and kernel [3, 3, C, F]; result the outputs [N, H, W, F]."""
    channels, features = kernel[2:]
    return _convolution(F2, images[:3], channels, features, F2.kernel_sums, (features, 1))


def biased_convolution(images: Images, kernel: Sequence[int], *, adds: bool, relu: bool, packed: bool) -> Call:
    """`convolution` plus a bias [F]; with `adds` plus an array like the outputs; with `relu` then max(., 0).

    Operands images, kernel, which may be `packed`, bias and perhaps the array to add.
    """
    channels, features = kernel[2:]
    finish = Finish(bias=2, added=3 if adds else None, relu=relu)
    tiles = tiles_of_inference(images)
    return _convolution(tiles, images[:3], channels, features, tiles.kernel_sums, (features, 1), finish, packed=packed)


def packed_size(images: Images, kernel: Sequence[int]) -> int:
    """The bytes of a kernel that is packed for images of this shape."""
    return aligned(tiles_of_inference(images).planes * math.prod(kernel[2:]) * _NUMBER)


def packing(images: Images, kernel: Sequence[int]) -> Call:
    """Operand the kernel; result its planes, the packed kernel."""
    return Call([_KernelStep(tiles_of_inference(images).kernel_sums, math.prod(kernel[2:]), 0, 1)])


def input_gradient(images: Images, kernel: Sequence[int]) -> Call:
    """The gradient of `convolution` by images [N, H, W, C]; operands the outputs' gradient and the kernel.

    It is a convolution from features to channels, with the kernel rotated by 180 degrees.
    """
    channels, features = kernel[2:]
    return _convolution(F2, images[:3], features, channels, F2.kernel_sums[:, ::-1], (1, features))


def weight_gradient(images: Images, kernel: Sequence[int]) -> Call:
    """The gradient of `convolution` by its kernel [3, 3, C, F]; operands images and outputs' gradient."""
    channels, features = kernel[2:]
    outputs = (*images[:3], features)
    kernels = describe((F2.planes, channels, features), (channels * features, features, 1))
    source, gradient, result, planes, gradient_planes, kernel_planes, scratch = range(7)
    parts, counts = _parts(F2, images, channels, features)
    products = {}
    steps: list[Step] = []
    for (first, rows), count in zip(parts, counts, strict=True):
        adds = first > 0
        if (count, adds) not in products:
            left = describe((F2.planes, channels, count), (count * channels, 1, channels))
            right = describe((F2.planes, count, features), (count * features, features, 1))
            products[count, adds] = _Product(left, right, kernels, adds=adds)
        steps += [
            TileStep(Way.FROM_INPUTS, F2, images, first, rows, source, planes),
            TileStep(Way.FROM_OUTPUTS, F2, outputs, first, rows, gradient, gradient_planes),
            products[count, adds].step(planes, gradient_planes, kernel_planes, scratch),
        ]
    steps.append(_KernelStep(F2.kernel_sums.T, channels * features, kernel_planes, result))
    return Call(steps, [*_plane_sizes(F2, max(counts), channels, features), _scratch(products)])


def _convolution(
    tiles: Tiles,
    pixels: Sequence[int],
    channels: int,
    features: int,
    kernel_sums: np.ndarray,
    strides: Sequence[int],
    finish: Finish | None = None,
    *,
    packed: bool = False,
) -> Call:
    """A convolution of images [*pixels, channels]; `strides` are those of the kernel's planes [channels, features]."""
    images, outputs = (*pixels, channels), (*pixels, features)
    kernels = describe((tiles.planes, channels, features), (channels * features, *strides))
    source, kernel = range(2)
    result = 2 if finish is None else 3 if finish.added is None else 4
    planes, output_planes, scratch, kernel_planes = range(result + 1, result + 5)
    parts, counts = _parts(tiles, images, channels, features)
    products = {}
    steps: list[Step] = []
    if packed:
        kernel_planes = kernel
    else:
        steps.append(_KernelStep(kernel_sums, channels * features, kernel, kernel_planes))
    for (first, rows), count in zip(parts, counts, strict=True):
        if count not in products:
            left, right = (
                describe((tiles.planes, count, size), (count * size, size, 1)) for size in (channels, features)
            )
            products[count] = _Product(left, kernels, right, adds=False)
        steps += [
            TileStep(Way.FROM_INPUTS, tiles, images, first, rows, source, planes),
            products[count].step(planes, kernel_planes, output_planes, scratch),
            TileStep(Way.TO_OUTPUTS, tiles, outputs, first, rows, result, output_planes, finish),
        ]
    inputs_size, outputs_size, kernel_size = _plane_sizes(tiles, max(counts), channels, features)
    return Call(steps, [inputs_size, outputs_size, _scratch(products), *([] if packed else [kernel_size])])


def _parts(tiles: Tiles, images: Images, channels: int, features: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The first row of tiles and the number of rows of each part; the number of tiles of each."""
    rows, columns = tiles.grid(images)
    plane = tiles.planes * _NUMBER
    part = max(_PART, plane * channels * features)
    count = min(rows, math.ceil(plane * rows * columns * max(channels, features) / part))
    bounds = [rows * i // count for i in range(count + 1)]
    parts = [(begin, end - begin) for begin, end in pairwise(bounds)]
    return parts, [rows * columns for _, rows in parts]


def _plane_sizes(tiles: Tiles, count: int, channels: int, features: int) -> list[int]:
    """The bytes of the planes of the two sides' tiles, and of the kernel."""
    return [
        aligned(tiles.planes * size * _NUMBER) for size in (count * channels, count * features, channels * features)
    ]


class _Product:
    """Matrix products of 16 planes, [16, rows, inner] @ [16, inner, columns]; with `adds` added to the result."""

    def __init__(self, left: c_void_p, right: c_void_p, result: c_void_p, *, adds: bool) -> None:
        self._arrays = left, right, result
        self._description = create(
            "dnnl_matmul_primitive_desc_create",
            *(engine(), left, right, None, result, _adding() if adds else attributes()),
        )
        self._scratch = query(self._description, SCRATCHPAD_OF)
        self.scratch_size = bytes_of(self._scratch)

    def step(self, *indices: int) -> PrimitiveStep:
        """The products of a call's arrays; `indices` are those of left, right, result and scratch memory."""
        operands = zip((SOURCE, WEIGHTS, DESTINATION, SCRATCH), (*self._arrays, self._scratch), indices, strict=True)
        return PrimitiveStep(self._description, list(operands))


def _scratch(products: Mapping[Any, _Product]) -> int:
    return max(product.scratch_size for product in products.values())


@cache
def _adding() -> c_void_p:
    result, after, short = create_attributes(), create("dnnl_post_ops_create"), libraries()[1]
    check(short.dnnl_post_ops_append_sum(after, c_float(1), 0, FLOAT32), "dnnl_post_ops_append_sum")
    check(short.dnnl_primitive_attr_set_post_ops(result, after), "dnnl_primitive_attr_set_post_ops")
    return result


class _KernelStep:
    """Computes a kernel's 16 planes from its 9 taps, or back: `sums` @ [inner, numbers]."""

    def __init__(self, sums: np.ndarray, numbers: int, index: int, result_index: int) -> None:
        self._sums = np.ascontiguousarray(sums, np.float32)
        self._sizes = len(sums), numbers, sums.shape[1]
        self._indices = index, result_index

    def __call__(self, addresses: Sequence[int]) -> None:
        operand, result = (addresses[index] for index in self._indices)
        multiply(self._sizes, self._sums.ctypes.data, operand, result)
