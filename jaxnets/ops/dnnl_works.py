"""What oneDNN is asked to compute: convolutions, batch normalisation, max-pooling, and gradients.

Each is described by numbers alone, so that a program can carry it as text, and gives the call that computes it, whose
arrays are the operands, then the results, in the order that is told.
"""

import math
from collections.abc import Sequence
from ctypes import c_char, c_float, c_int64, c_uint, c_void_p
from dataclasses import dataclass
from enum import StrEnum

from jaxnets.ops.dnnl_library import (
    DESTINATION,
    SCRATCH,
    SOURCE,
    Call,
    PrimitiveStep,
    Step,
    attributes,
    bytes_of,
    check,
    chosen,
    described,
    engine,
    exact_bytes_of,
    libraries,
    made,
    numbers,
    primitive_call,
    reorder,
)

_FORWARD_TRAINING, _BACKWARD, _DIRECT, _MAX = 64, 128, 1, 0x1FF
_USE_SCALE_AND_SHIFT, _FUSE_RELU = 2 | 4, 8
# A 1x1 convolution of fewer pixels is a matrix product: it would spend its time on reordering the kernel.
_PRODUCT_PIXELS = 512
# Of dnnl_query_t.
_WEIGHTS, _WEIGHT_GRADIENT, _WORKSPACE_OF, _SCRATCHPAD = 131, 132, 135, 136
# Of DNNL_ARG_*.
_KERNEL, _MEAN, _VARIANCE, _SCALE, _SHIFT, _WORKSPACE = 33, 49, 50, 51, 52, 64
_SOURCE_GRADIENT, _DESTINATION_GRADIENT, _KERNEL_GRADIENT = 129, 145, 161
_SCALE_GRADIENT, _SHIFT_GRADIENT = 255, 256

Images = Sequence[int]


class Direction(StrEnum):
    """Which of a convolution's three arrays is computed from the other two."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"


@dataclass(frozen=True)
class Convolution:
    """Maps [N, H, W, C] with a kernel [kh, kw, C / groups, F] into [N, H', W', F], or one of the gradients."""

    direction: Direction
    images: Images
    kernel: Sequence[int]
    outputs: Images
    stride: int
    padding: int
    groups: int

    def call(self) -> Call:
        """Operands as the direction has them: images and kernel; outputs' gradient and kernel; images and that."""
        pixels, whole_pixels = math.prod(self.outputs[:3]), (*self.kernel[:2], self.stride, self.padding, self.groups)
        if whole_pixels == (1, 1, 1, 0, 1) and pixels < _PRODUCT_PIXELS:
            return self._product(pixels)
        images, outputs = _images(self.images), _images(self.outputs)
        kernel, free_kernel = _kernels(self.kernel, self.groups)
        window = [numbers(number, number) for number in (self.stride, 0, self.padding, self.padding)]
        forward = made(
            "dnnl_convolution_forward_primitive_desc_create",
            *(engine(), _FORWARD_TRAINING, _DIRECT, images, free_kernel, None, outputs, *window, attributes()),
        )
        first, second, result, own_kernel, scratch = range(5)
        if self.direction == Direction.FORWARD:
            primitive = forward
            operands = [(SOURCE, images, first), (DESTINATION, outputs, result)]
        elif self.direction == Direction.INPUT_GRADIENT:
            primitive = made(
                "dnnl_convolution_backward_data_primitive_desc_create",
                *(engine(), _DIRECT, images, free_kernel, outputs, *window, forward, attributes()),
            )
            operands = [(_DESTINATION_GRADIENT, outputs, first), (_SOURCE_GRADIENT, images, result)]
        else:
            primitive = made(
                "dnnl_convolution_backward_weights_primitive_desc_create",
                *(engine(), _DIRECT, images, free_kernel, None, outputs, *window, forward, attributes()),
            )
            operands = [(SOURCE, images, first), (_DESTINATION_GRADIENT, outputs, second)]
        makes_kernel = self.direction == Direction.WEIGHT_GRADIENT
        layout = chosen(primitive, _WEIGHT_GRADIENT if makes_kernel else _WEIGHTS)
        needed = chosen(primitive, _SCRATCHPAD)
        operands.append((_KERNEL_GRADIENT if makes_kernel else _KERNEL, layout, own_kernel))
        operands.append((SCRATCH, needed, scratch))
        step = PrimitiveStep(primitive, operands)
        sizes = (bytes_of(layout), bytes_of(needed))
        if makes_kernel:
            return Call([step, reorder(layout, own_kernel, kernel, result)], sizes)
        return Call([reorder(kernel, second, layout, own_kernel), step], sizes)

    def _product(self, pixels: int) -> Call:
        """Of pixels [N H W, C] and kernel [C, F]."""
        channels, features = self.kernel[2:]
        if self.direction == Direction.WEIGHT_GRADIENT:
            return Call([_transposed_product(channels, pixels, features)])
        forward = self.direction == Direction.FORWARD
        rows, kernel = (channels, features), (features, 1)
        if not forward:
            rows, kernel = rows[::-1], kernel[::-1]
        left, right = described((pixels, rows[0]), (rows[0], 1)), described(rows, kernel)
        result = described((pixels, rows[1]), (rows[1], 1))
        primitive = made("dnnl_matmul_primitive_desc_create", engine(), left, right, None, result, attributes())
        return primitive_call(primitive, [(SOURCE, left), (_KERNEL, right), (DESTINATION, result)])


@dataclass(frozen=True)
class Normalisation:
    """Batch normalisation of [N, H, W, C], over all axes but the last, in training.

    With `signs` then max(., 0), of whose arguments the signs are kept in so many bytes. How many that are is the
    processor's affair: see `signs_needed`.
    """

    images: Images
    epsilon: float
    signs: int

    def call(self) -> Call:
        """Operands inputs, scale and bias; results outputs, mean, variance and, if there are any, signs."""
        images, channels, primitive = *self._arrays(), self._primitive()
        vectors = [(argument, channels) for argument in (_SCALE, _SHIFT)]
        moments = [(argument, channels) for argument in (_MEAN, _VARIANCE)]
        operands = [(SOURCE, images), *vectors, (DESTINATION, images), *moments, *self._signs(primitive)]
        return primitive_call(primitive, operands)

    def signs_needed(self) -> int:
        """Bytes that signs take on this processor."""
        return exact_bytes_of(chosen(self._primitive(), _WORKSPACE_OF))

    def _signs(self, forward: c_void_p) -> list[tuple[int, c_void_p]]:
        if not self.signs:
            return []
        if self.signs_needed() != self.signs:
            raise RuntimeError("the program was made for another kind of processor; compile it anew")
        return [(_WORKSPACE, chosen(forward, _WORKSPACE_OF))]

    def _arrays(self) -> tuple[c_void_p, c_void_p]:
        return _images(self.images), described(self.images[3:], (1,))

    def _options(self) -> tuple[c_float, c_uint]:
        return c_float(self.epsilon), c_uint(_USE_SCALE_AND_SHIFT | (_FUSE_RELU if self.signs else 0))

    def _primitive(self) -> c_void_p:
        images, _ = self._arrays()
        return made(
            "dnnl_batch_normalization_forward_primitive_desc_create",
            *(engine(), _FORWARD_TRAINING, images, images, *self._options(), attributes()),
        )


@dataclass(frozen=True)
class NormalisationGradient(Normalisation):
    """The gradients of `Normalisation`."""

    def call(self) -> Call:
        """Operands inputs, outputs' gradient, mean, variance, scale, any signs; results by inputs, scale and bias."""
        images, channels = self._arrays()
        forward = self._primitive()
        primitive = made(
            "dnnl_batch_normalization_backward_primitive_desc_create",
            *(engine(), _BACKWARD, images, images, images, *self._options(), forward, attributes()),
        )
        given = [(argument, channels) for argument in (_MEAN, _VARIANCE, _SCALE)]
        found = [(argument, channels) for argument in (_SCALE_GRADIENT, _SHIFT_GRADIENT)]
        operands = [(SOURCE, images), (_DESTINATION_GRADIENT, images), *given, *self._signs(forward)]
        return primitive_call(primitive, [*operands, (_SOURCE_GRADIENT, images), *found])


@dataclass(frozen=True)
class MaxPoolGradient:
    """The gradient of max-pooling [N, H, W, C] into `outputs` [N, H', W', C]; `high` padding is that after the maps."""

    images: Images
    outputs: Images
    window: int
    stride: int
    low: Sequence[int]
    high: Sequence[int]

    def call(self) -> Call:
        """Operands the outputs' gradient and the tap of the window that each came from; result the images' gradient."""
        forward = self._forward()
        images, outputs = _images(self.images), _images(self.outputs)
        primitive = made(
            "dnnl_pooling_backward_primitive_desc_create",
            *(engine(), _MAX, images, outputs, *self._geometry(), forward, attributes()),
        )
        winners = chosen(forward, _WORKSPACE_OF)
        return primitive_call(
            primitive, [(_DESTINATION_GRADIENT, outputs), (_WORKSPACE, winners), (_SOURCE_GRADIENT, images)]
        )

    def winners_needed(self) -> int:
        """Bytes that the taps take: one each, if they are few and their layout is the outputs'."""
        return exact_bytes_of(chosen(self._forward(), _WORKSPACE_OF))

    def _forward(self) -> c_void_p:
        images, outputs = _images(self.images), _images(self.outputs)
        return made(
            "dnnl_pooling_forward_primitive_desc_create",
            *(engine(), _FORWARD_TRAINING, _MAX, images, outputs, *self._geometry(), attributes()),
        )

    def _geometry(self) -> list[object]:
        steps = (numbers(number, number) for number in (self.stride, self.window, 0))
        return [*steps, numbers(*self.low), numbers(*self.high)]


Work = Convolution | MaxPoolGradient | Normalisation | NormalisationGradient


def _images(shape: Images) -> c_void_p:
    """[N, H, W, C] in memory; oneDNN counts axes as N, C, H, W."""
    count, height, width, channels = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return described((count, channels, height, width), strides)


def _kernels(shape: Sequence[int], groups: int) -> tuple[c_void_p, c_void_p]:
    """[kh, kw, C / groups, F] in memory, and in the primitive's own layout."""
    height, width, inputs, features = shape
    sizes = [features // groups, inputs, height, width]
    strides = [1, features, width * inputs * features, inputs * features]
    if groups > 1:
        sizes, strides = [groups, *sizes], [features // groups, *strides]
    return described(sizes, strides), described(sizes, None)


def _transposed_product(rows: int, inner: int, columns: int) -> Step:
    """[rows, inner] @ [inner, columns], where the left one lies in memory as [inner, rows].

    By the older of the library's two ways, which is the faster one here: 4.5 against 10.6 ms for [9216, 16] @
    [16, 4096]; but 14 against 9 ms for the product forward.
    """
    multiply = libraries()[0].dnnl_sgemm
    sizes = c_int64(rows), c_int64(columns), c_int64(inner)

    def step(arrays: Sequence[int]) -> None:
        left, right, result = (c_void_p(address) for address in arrays)
        given = c_char(b"T"), c_char(b"N"), *sizes, c_float(1), left, sizes[0], right, sizes[1]
        check(multiply(*given, c_float(0), result, sizes[1]), "dnnl_sgemm")

    return step
