"""Max-pooling by oneDNN, and its gradient; operations as those of convolutions.py."""

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_char, c_float, c_int64, c_void_p
from dataclasses import dataclass
from itertools import product

import numpy as np

from jaxnets.ops.cpu import own_pooling
from jaxnets.ops.cpu.library import (
    DESTINATION,
    DESTINATION_GRADIENT,
    FORWARD_INFERENCE,
    FORWARD_TRAINING,
    SCRATCH,
    SCRATCHPAD_OF,
    SOURCE,
    SOURCE_GRADIENT,
    WORKSPACE,
    WORKSPACE_OF,
    Call,
    Images,
    PrimitiveStep,
    aligned,
    array_at,
    attributes,
    bytes_of,
    check,
    create,
    describe_images,
    engine,
    exact_bytes_of,
    libraries,
    numbers,
    primitive_call,
    query,
)

_MAX = 0x1FF
_HUGE = 1e37


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling of [N, H, W, C] into `outputs` [N, H', W', C]; `low` and `high` are the padding before and after.

    With `winners` it also writes the tap of the window that each output came from, as one byte.
    """

    images: Images
    outputs: Images
    window: int
    stride: int
    low: Sequence[int]
    high: Sequence[int]
    winners: bool

    def call(self) -> Call:
        """Operand the images; results the outputs and perhaps the winners.

        oneDNN skips NaN, and takes the lowest number for minus infinity. If a sum over a pixel's channels is NaN or
        huge, which may be due to either, NumPy computes all again.
        """
        if own_pooling.suits(self.images[3], self.window):
            shapes = self.images, self.outputs
            return own_pooling.max_pool(*shapes, self.window, self.stride, self.low, winners=self.winners)
        forward = self._forward()
        needed = query(forward, SCRATCHPAD_OF)
        images, outputs, winners, sums, scratch = (0, 1, 2, 3, 4) if self.winners else (0, 1, 1, 2, 3)
        operands = [
            (SOURCE, describe_images(self.images), images),
            (DESTINATION, describe_images(self.outputs), outputs),
        ]
        if self.winners:
            operands.append((WORKSPACE, query(forward, WORKSPACE_OF), winners))
        pool = PrimitiveStep(forward, [*operands, (SCRATCH, needed, scratch)])
        *sizes, channels = self.images
        pixels = math.prod(sizes)
        ones = (c_float * channels)(*[1.0] * channels)
        multiply = libraries()[0].dnnl_sgemm
        shape = c_int64(pixels), c_int64(1), c_int64(channels)

        def pass_on_what_is_not_finite(arrays: Sequence[int]) -> None:
            result = c_void_p(arrays[sums])
            operands = (
                c_char(b"N"),
                c_char(b"N"),
                *shape,
                c_float(1),
                c_void_p(arrays[images]),
                shape[2],
                ones,
                shape[1],
            )
            check(multiply(*operands, c_float(0), result, shape[1]), "dnnl_sgemm")
            if not (np.abs(array_at(arrays[sums], (pixels,))) < _HUGE).all():
                self._pool(*(arrays[index] for index in (images, outputs, winners)))

        return Call([pool, pass_on_what_is_not_finite], [aligned(4 * pixels), bytes_of(needed)])

    def winners_needed(self) -> int:
        """The bytes that oneDNN writes the winners in."""
        return exact_bytes_of(query(self._forward(), WORKSPACE_OF))

    def _pool(self, images: int, outputs: int, winners: int) -> None:
        """Max-pooling as `jaxnets.ops.pool` defines it."""
        padded = np.pad(
            array_at(images, self.images),
            ((0, 0), *zip(self.low, self.high, strict=True), (0, 0)),
            constant_values=-np.inf,
        )
        best = array_at(outputs, self.outputs)
        taps = array_at(winners, self.outputs, ctypes.c_uint8) if self.winners else np.zeros(self.outputs, np.uint8)
        _, height, width, _ = self.outputs
        for tap, (row, column) in enumerate(product(range(self.window), repeat=2)):
            values = padded[:, row :: self.stride, column :: self.stride][:, :height, :width]
            better = (values > best) | np.isnan(values) if tap else np.ones(self.outputs, bool)
            best[better], taps[better] = values[better], tap

    def _forward(self) -> c_void_p:
        images, outputs = describe_images(self.images), describe_images(self.outputs)
        kind = FORWARD_TRAINING if self.winners else FORWARD_INFERENCE
        return create(
            "dnnl_pooling_forward_primitive_desc_create",
            *(engine(), kind, _MAX, images, outputs, *self._geometry(), attributes()),
        )

    def _geometry(self) -> list[object]:
        steps = (numbers(number, number) for number in (self.stride, self.window, 0))
        return [*steps, numbers(*self.low), numbers(*self.high)]


@dataclass(frozen=True)
class MaxPoolGradient(MaxPool):
    """The gradient of `MaxPool`, with `winners`."""

    def call(self) -> Call:
        """Operands the outputs' gradient and the winners; result the images' gradient."""
        if own_pooling.suits(self.images[3], self.window):
            return own_pooling.max_pool_gradient(self.images, self.outputs, self.window, self.stride, self.low)
        forward = self._forward()
        images, outputs = describe_images(self.images), describe_images(self.outputs)
        primitive = create(
            "dnnl_pooling_backward_primitive_desc_create",
            *(engine(), _MAX, images, outputs, *self._geometry(), forward, attributes()),
        )
        winners = query(forward, WORKSPACE_OF)
        return primitive_call(
            primitive, [(DESTINATION_GRADIENT, outputs), (WORKSPACE, winners), (SOURCE_GRADIENT, images)]
        )
