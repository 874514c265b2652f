"""Batch normalisation by oneDNN, and its gradient; operations as those of convolutions.py."""

from collections.abc import Sequence
from ctypes import c_float, c_uint, c_void_p
from dataclasses import dataclass

import numpy as np

from jaxnets.ops.cpu.library import (
    DESTINATION,
    DESTINATION_GRADIENT,
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
    array_at,
    attributes,
    bytes_of,
    create,
    describe,
    describe_images,
    engine,
    exact_bytes_of,
    query,
)

_BACKWARD = 128
_USE_SCALE_AND_SHIFT, _FUSE_RELU = 2 | 4, 8
# Of dnnl_alg_kind_t: max(., 0), whose gradient reads its outputs.
_RELU_BY_OUTPUTS = 0x100
# Of DNNL_ARG_*.
_MEAN, _VARIANCE, _SCALE, _SHIFT, _SCALE_GRADIENT, _SHIFT_GRADIENT = 49, 50, 51, 52, 255, 256


@dataclass(frozen=True)
class Normalisation:
    """Batch normalisation of [N, H, W, C] in training, over all axes but the last, with `relu` then max(., 0).

    With `signs` oneDNN's record of the outputs' signs, in that number of bytes, is a result.
    """

    images: Images
    epsilon: float
    relu: bool
    signs: int

    def call(self) -> Call:
        """Operands inputs, scale and bias; results outputs, mean, variance and perhaps signs."""
        images, channels = self._arrays()
        primitive = self._primitive(relu=self.relu)
        scratch = query(primitive, SCRATCHPAD_OF)
        operands = [(SOURCE, images, 0), (_SCALE, channels, 1), (_SHIFT, channels, 2), (DESTINATION, images, 3)]
        operands += [(_MEAN, channels, 4), (_VARIANCE, channels, 5)]
        if not self.relu:
            return Call([PrimitiveStep(primitive, [*operands, (SCRATCH, scratch, 6)])], [bytes_of(scratch)])
        # oneDNN writes the signs even if nobody reads them.
        signs = query(primitive, WORKSPACE_OF)
        step = PrimitiveStep(primitive, [*operands, (WORKSPACE, signs, 6), (SCRATCH, scratch, 7)])
        if self.signs:
            return Call([step, self._pass_on_nan], [bytes_of(scratch)])
        return Call([step, self._pass_on_nan], [bytes_of(signs), bytes_of(scratch)])

    def signs_needed(self) -> int:
        """The bytes in which oneDNN records signs on this processor."""
        return exact_bytes_of(query(self._primitive(relu=True), WORKSPACE_OF))

    def _pass_on_nan(self, arrays: Sequence[int]) -> None:
        """Writes NaN where oneDNN's max(NaN, 0) is 0, which would hide that a network diverges."""
        _, _, _, outputs, mean, var, *_ = arrays
        channels = self.images[3:]
        if not np.isfinite(array_at(var, channels)).all():
            lost = np.isnan(array_at(var, channels)) | ~np.isfinite(array_at(mean, channels))
            array_at(outputs, self.images)[..., lost] = np.nan

    def _arrays(self) -> tuple[c_void_p, c_void_p]:
        return describe_images(self.images), describe(self.images[3:], (1,))

    def _options(self, *, relu: bool) -> tuple[c_float, c_uint]:
        return c_float(self.epsilon), c_uint(_USE_SCALE_AND_SHIFT | (_FUSE_RELU if relu else 0))

    def _primitive(self, *, relu: bool) -> c_void_p:
        images, _ = self._arrays()
        return create(
            "dnnl_batch_normalization_forward_primitive_desc_create",
            *(engine(), FORWARD_TRAINING, images, images, *self._options(relu=relu), attributes()),
        )


@dataclass(frozen=True)
class NormalisationGradient(Normalisation):
    """The gradients of `Normalisation`."""

    def call(self) -> Call:
        """Operands inputs, outputs' gradient, mean, variance, scale, with relu signs or outputs; results the gradients.

        Without signs the gradient by the inputs first holds the gradient by what max(., 0) was taken of.
        """
        images, channels = self._arrays()
        first = 6 if self.relu else 5
        by_outputs = self.relu and not self.signs
        gradient = first if by_outputs else 1
        forward = self._primitive(relu=bool(self.signs))
        primitive = create(
            "dnnl_batch_normalization_backward_primitive_desc_create",
            *(
                engine(),
                _BACKWARD,
                images,
                images,
                images,
                *self._options(relu=bool(self.signs)),
                forward,
                attributes(),
            ),
        )
        scratch = query(primitive, SCRATCHPAD_OF)
        operands = [(SOURCE, images, 0), (DESTINATION_GRADIENT, images, gradient), (SOURCE_GRADIENT, images, first)]
        operands += [(_MEAN, channels, 2), (_VARIANCE, channels, 3), (_SCALE, channels, 4)]
        operands += [(_SCALE_GRADIENT, channels, first + 1), (_SHIFT_GRADIENT, channels, first + 2)]
        if self.signs:
            operands.append((WORKSPACE, query(forward, WORKSPACE_OF), 5))
        step = PrimitiveStep(primitive, [*operands, (SCRATCH, scratch, first + 3)])
        return Call([*([self._rectified()] if by_outputs else []), step], [bytes_of(scratch)])

    def _rectified(self) -> PrimitiveStep:
        """The gradient where the outputs are positive, and 0 elsewhere, written to the gradient by the inputs."""
        images, _ = self._arrays()
        forward = create(
            "dnnl_eltwise_forward_primitive_desc_create",
            *(engine(), FORWARD_TRAINING, _RELU_BY_OUTPUTS, images, images, c_float(0), c_float(0), attributes()),
        )
        backward = create(
            "dnnl_eltwise_backward_primitive_desc_create",
            *(engine(), _RELU_BY_OUTPUTS, images, images, images, c_float(0), c_float(0), forward, attributes()),
        )
        operands = [(DESTINATION, images, 5), (DESTINATION_GRADIENT, images, 1), (SOURCE_GRADIENT, images, 6)]
        return PrimitiveStep(backward, operands)
