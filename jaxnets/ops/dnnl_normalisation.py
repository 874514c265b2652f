"""Batch normalisation by oneDNN, and its gradient; works as those of dnnl_convolution.py."""

from collections.abc import Sequence
from ctypes import c_float, c_uint, c_void_p
from dataclasses import dataclass

import numpy as np

from jaxnets.ops.dnnl_library import (
    DESTINATION,
    DESTINATION_GRADIENT,
    FORWARD_TRAINING,
    SOURCE,
    SOURCE_GRADIENT,
    WORKSPACE,
    WORKSPACE_OF,
    Call,
    Images,
    array_at,
    attributes,
    chosen,
    described,
    engine,
    exact_bytes_of,
    images_of,
    made,
    primitive_call,
)

_BACKWARD = 128
_USE_SCALE_AND_SHIFT, _FUSE_RELU = 2 | 4, 8
# Of DNNL_ARG_*.
_MEAN, _VARIANCE, _SCALE, _SHIFT, _SCALE_GRADIENT, _SHIFT_GRADIENT = 49, 50, 51, 52, 255, 256


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
        return primitive_call(primitive, operands, *([self._pass_on_nan] if self.signs else []))

    def signs_needed(self) -> int:
        """Bytes that signs take on this processor."""
        return exact_bytes_of(chosen(self._primitive(), WORKSPACE_OF))

    def _pass_on_nan(self, arrays: Sequence[int]) -> None:
        """oneDNN's max(., 0) of NaN is 0, which would hide that a network diverges."""
        _, _, _, outputs, mean, var, *_ = arrays
        channels = self.images[3:]
        if not np.isfinite(array_at(var, channels)).all():
            lost = np.isnan(array_at(var, channels)) | ~np.isfinite(array_at(mean, channels))
            array_at(outputs, self.images)[..., lost] = np.nan

    def _signs(self, forward: c_void_p) -> list[tuple[int, c_void_p]]:
        if not self.signs:
            return []
        if self.signs_needed() != self.signs:
            raise RuntimeError("the program was made for another kind of processor; compile it anew")
        return [(WORKSPACE, chosen(forward, WORKSPACE_OF))]

    def _arrays(self) -> tuple[c_void_p, c_void_p]:
        return images_of(self.images), described(self.images[3:], (1,))

    def _options(self) -> tuple[c_float, c_uint]:
        return c_float(self.epsilon), c_uint(_USE_SCALE_AND_SHIFT | (_FUSE_RELU if self.signs else 0))

    def _primitive(self) -> c_void_p:
        images, _ = self._arrays()
        return made(
            "dnnl_batch_normalization_forward_primitive_desc_create",
            *(engine(), FORWARD_TRAINING, images, images, *self._options(), attributes()),
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
        operands = [(SOURCE, images), (DESTINATION_GRADIENT, images), *given, *self._signs(forward)]
        return primitive_call(primitive, [*operands, (SOURCE_GRADIENT, images), *found])
