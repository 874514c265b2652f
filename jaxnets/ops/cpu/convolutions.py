"""Convolutions by oneDNN, and their gradients.

An operation is described by numbers alone, so that a program can carry it as text. Its `call` computes it; the call's
arrays are the operands, then the results.
"""

import math
from collections.abc import Sequence
from ctypes import c_float, c_void_p
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from jaxnets.ops.cpu import grouped_convolution, grouped_gradient, winograd
from jaxnets.ops.cpu.kernel_layout import KernelLayout
from jaxnets.ops.cpu.library import (
    DESTINATION,
    DESTINATION_GRADIENT,
    FORWARD_INFERENCE,
    FORWARD_TRAINING,
    SCRATCH,
    SCRATCHPAD_OF,
    SOURCE,
    SOURCE_GRADIENT,
    WEIGHTS,
    Call,
    Images,
    PrimitiveStep,
    Step,
    attributes,
    bytes_of,
    check,
    create,
    create_attributes,
    describe,
    describe_images,
    engine,
    has_avx512,
    libraries,
    multiply,
    numbers,
    primitive_call,
    query,
)

_DIRECT = 1
# Matrix products compute 1x1 convolutions of fewer than `_PRODUCT_PIXELS` pixels, as they do not reorder the kernel.
# Without AVX-512 they compute all 1x1 convolutions and input gradients, and weight gradients of fewer than
# `_PRODUCT_PIXELS_OF_WEIGHTS` pixels.
_PRODUCT_PIXELS = 512
_PRODUCT_PIXELS_OF_WEIGHTS = 2048
# Of dnnl_query_t.
_WEIGHTS_OF, _WEIGHT_GRADIENT_OF = 131, 132
# Of DNNL_ARG_*.
_BIAS, _WEIGHT_GRADIENT, _ADDED, _AFTER = 41, 161, 2, 32768
_RELU, _ADD = 0x20, 0x1FFF0


class Direction(StrEnum):
    """The array of a convolution that is computed from the other two."""

    FORWARD = "forward"
    INPUT_GRADIENT = "input_gradient"
    WEIGHT_GRADIENT = "weight_gradient"


WINOGRAD = {
    Direction.FORWARD: winograd.convolution,
    Direction.INPUT_GRADIENT: winograd.input_gradient,
    Direction.WEIGHT_GRADIENT: winograd.weight_gradient,
}


@dataclass(frozen=True)
class Convolution:
    """[N, H, W, C] with a kernel [kh, kw, C / groups, F] into [N, H', W', F], or one of the gradients."""

    direction: Direction
    images: Images
    kernel: Sequence[int]
    outputs: Images
    stride: int
    padding: int
    groups: int

    def call(self) -> Call:
        """Operands: images and kernel, the outputs' gradient and kernel, or images and the outputs' gradient."""
        call = self._generated_call()
        if call is not None:
            return call
        if self._is_product():
            return self._product()
        images, outputs, free_kernel = describe_images(self.images), describe_images(self.outputs), self._layout.free
        window = self._window()
        forward = create(
            "dnnl_convolution_forward_primitive_desc_create",
            *(engine(), FORWARD_TRAINING, _DIRECT, images, free_kernel, None, outputs, *window, attributes()),
        )
        first, second, result, ordered_kernel, scratch, wide = range(6)
        if self.direction == Direction.FORWARD:
            primitive = forward
            operands = [(SOURCE, images, first), (DESTINATION, outputs, result)]
        elif self.direction == Direction.INPUT_GRADIENT:
            primitive = create(
                "dnnl_convolution_backward_data_primitive_desc_create",
                *(engine(), _DIRECT, images, free_kernel, outputs, *window, forward, attributes()),
            )
            operands = [(DESTINATION_GRADIENT, outputs, first), (SOURCE_GRADIENT, images, result)]
        else:
            primitive = create(
                "dnnl_convolution_backward_weights_primitive_desc_create",
                *(engine(), _DIRECT, images, free_kernel, None, outputs, *window, forward, attributes()),
            )
            operands = [(SOURCE, images, first), (DESTINATION_GRADIENT, outputs, second)]
        by_weights = self.direction == Direction.WEIGHT_GRADIENT
        layout = query(primitive, _WEIGHT_GRADIENT_OF if by_weights else _WEIGHTS_OF)
        needed = query(primitive, SCRATCHPAD_OF)
        operands.append((_WEIGHT_GRADIENT if by_weights else WEIGHTS, layout, ordered_kernel))
        operands.append((SCRATCH, needed, scratch))
        step = PrimitiveStep(primitive, operands)
        sizes = (bytes_of(layout), bytes_of(needed), self._layout.wide_size)
        if by_weights:
            return Call([step, *self._layout.write(layout, ordered_kernel, result, wide)], sizes)
        return Call([*self._layout.read(second, layout, ordered_kernel, wide), step], sizes)

    @cached_property
    def _layout(self) -> KernelLayout:
        return KernelLayout(self.kernel, self.groups)

    def _generated_call(self) -> Call | None:
        """The call of generated code, where that is faster than a primitive."""
        shapes = self.images, self.kernel, self.outputs
        if self._suits_winograd():
            return WINOGRAD[self.direction](self.images, self.kernel)
        if self.direction == Direction.WEIGHT_GRADIENT:
            if grouped_gradient.suits(self.kernel, self.outputs, self.padding, self.groups):
                return grouped_gradient.weight_gradient(*shapes, self.stride)
        elif grouped_convolution.suits(self.kernel, self.outputs, self.padding, self.groups):
            if self.direction == Direction.FORWARD:
                return grouped_convolution.convolution(*shapes, self.stride)
            if self.stride == 1:
                return grouped_convolution.input_gradient(self.images, self.kernel)
        return None

    def _suits_winograd(self) -> bool:
        return winograd.suits(self.images, self.kernel, self.stride, self.padding, self.groups)

    def _is_product(self) -> bool:
        """Whether it is computed as a matrix product."""
        if (*self.kernel[:2], self.stride, self.padding, self.groups) != (1, 1, 1, 0, 1):
            return False
        if not has_avx512() and self.direction != Direction.WEIGHT_GRADIENT:
            return True
        return math.prod(self.outputs[:3]) < (_PRODUCT_PIXELS if has_avx512() else _PRODUCT_PIXELS_OF_WEIGHTS)

    def _window(self) -> list[object]:
        return [numbers(number, number) for number in (self.stride, 0, self.padding, self.padding)]

    def _product(self) -> Call:
        """The product of pixels [N H W, C] and kernel [C, F]."""
        pixels = math.prod(self.outputs[:3])
        channels, features = self.kernel[2:]
        if self.direction == Direction.WEIGHT_GRADIENT:
            return Call([_transposed_product(channels, pixels, features)])
        forward = self.direction == Direction.FORWARD
        rows, kernel = (channels, features), (features, 1)
        if not forward:
            rows, kernel = rows[::-1], kernel[::-1]
        left, right = describe((pixels, rows[0]), (rows[0], 1)), describe(rows, kernel)
        result = describe((pixels, rows[1]), (rows[1], 1))
        primitive = create("dnnl_matmul_primitive_desc_create", engine(), left, right, None, result, attributes())
        return primitive_call(primitive, [(SOURCE, left), (WEIGHTS, right), (DESTINATION, result)])


@dataclass(frozen=True)
class BiasedConvolution(Convolution):
    """`Convolution` forward plus a bias [F]; with `adds` plus an array like the outputs; with `relu` then max(., 0).

    If `packed`, the kernel comes as `KernelPacking` writes it for the same numbers. `relu` of NaN may be 0.
    """

    adds: bool
    relu: bool
    packed: bool

    def call(self) -> Call:
        """Operands images, kernel, bias and perhaps the array to add; result the outputs."""
        if self._suits_winograd():
            return winograd.biased_convolution(
                self.images, self.kernel, adds=self.adds, relu=self.relu, packed=self.packed
            )
        if self._is_product() and not self.packed:
            return self._biased_product()
        images, outputs, bias = (
            describe_images(self.images),
            describe_images(self.outputs),
            describe(self.kernel[3:], (1,)),
        )
        primitive = self._biased()
        layout, needed = query(primitive, _WEIGHTS_OF), query(primitive, SCRATCHPAD_OF)
        result = 4 if self.adds else 3
        ordered_kernel, scratch = (1, result + 1) if self.packed else (result + 2, result + 1)
        operands = [(SOURCE, images, 0), (WEIGHTS, layout, ordered_kernel), (_BIAS, bias, 2)]
        operands += [(argument, array, 3) for argument, array in self._added(outputs)]
        operands += [(DESTINATION, outputs, result), (SCRATCH, needed, scratch)]
        step = PrimitiveStep(primitive, operands)
        if self.packed:
            return Call([step], [bytes_of(needed)])
        sizes = [bytes_of(needed), bytes_of(layout), self._layout.wide_size]
        return Call([*self._layout.read(1, layout, ordered_kernel, result + 3), step], sizes)

    def packed_size(self) -> int:
        """Bytes of the packed kernel."""
        if self._suits_winograd():
            return winograd.packed_size(self.images, self.kernel)
        return bytes_of(query(self._biased(), _WEIGHTS_OF))

    def _biased(self) -> c_void_p:
        images, outputs, bias = (
            describe_images(self.images),
            describe_images(self.outputs),
            describe(self.kernel[3:], (1,)),
        )
        return create(
            "dnnl_convolution_forward_primitive_desc_create",
            *(engine(), FORWARD_INFERENCE, _DIRECT, images, self._layout.free, bias, outputs, *self._window()),
            self._attributes(outputs),
        )

    def _biased_product(self) -> Call:
        pixels, features = math.prod(self.outputs[:3]), self.kernel[3]
        images, outputs = (describe((pixels, shape[3]), (shape[3], 1)) for shape in (self.images, self.outputs))
        kernel, bias = describe(self.kernel[2:], (features, 1)), describe((1, features), (features, 1))
        operands = [(SOURCE, images), (WEIGHTS, kernel), (_BIAS, bias), *self._added(outputs)]
        product = create(
            "dnnl_matmul_primitive_desc_create",
            *(engine(), images, kernel, bias, outputs, self._attributes(outputs)),
        )
        return primitive_call(product, [*operands, (DESTINATION, outputs)])

    def _added(self, outputs: c_void_p) -> list[tuple[int, c_void_p]]:
        return [(_AFTER | _ADDED, outputs)] if self.adds else []

    def _attributes(self, outputs: c_void_p) -> c_void_p:
        short, result, after = libraries()[1], create_attributes(), create("dnnl_post_ops_create")
        if self.adds:
            check(short.dnnl_post_ops_append_binary(after, _ADD, outputs), "dnnl_post_ops_append_binary")
        if self.relu:
            status = short.dnnl_post_ops_append_eltwise(after, _RELU, c_float(0), c_float(0))
            check(status, "dnnl_post_ops_append_eltwise")
        check(short.dnnl_primitive_attr_set_post_ops(result, after), "dnnl_primitive_attr_set_post_ops")
        return result


@dataclass(frozen=True)
class KernelPacking(BiasedConvolution):
    """Copies a kernel to the layout that `BiasedConvolution` uses."""

    def call(self) -> Call:
        """Operand the kernel; result the packed one, of `packed_size`."""
        if self._suits_winograd():
            return winograd.packing(self.images, self.kernel)
        return Call(self._layout.read(0, query(self._biased(), _WEIGHTS_OF), 1, 2), [self._layout.wide_size])


def _transposed_product(rows: int, inner: int, columns: int) -> Step:
    """[rows, inner] @ [inner, columns], with the left matrix in memory as [inner, rows].

    For this `multiply` is faster than the library's matrix product primitive.
    """
    return lambda arrays: multiply((rows, columns, inner), *arrays, transposed=True)
