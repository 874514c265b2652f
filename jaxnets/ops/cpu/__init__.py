"""The CPU engine: convolution, batch normalisation and max-pooling by oneDNN and by code compiled for the processor.

XLA's own convolutions reach a quarter to a half of what an x86 processor can do, and grouped ones a hundredth. The
engine replaces them by custom calls, in float32 on Linux and x86-64. It tests itself before its first use; if a test
fails, or if oneDNN cannot do an operation, a warning says so, and the portable forms of `jaxnets.ops` are used.

The rest of jaxnets uses this module alone. An operation raises `Unsupported` for operands that the engine does not
take.
"""

from jaxnets.ops.cpu.availability import Unsupported, available, disable
from jaxnets.ops.cpu.compilation import compile
from jaxnets.ops.cpu.memory import keep_memory
from jaxnets.ops.cpu.operations import (
    batch_norm,
    batch_norm_gradients,
    batch_norm_residual,
    biased_convolution,
    convolution,
    convolution_gradients,
    convolution_input_gradient,
    convolution_weight_gradient,
    max_pool,
    max_pool_gradient,
    pack_kernel,
    packed_convolution,
)

__all__ = [
    "Unsupported",
    "available",
    "batch_norm",
    "batch_norm_gradients",
    "batch_norm_residual",
    "biased_convolution",
    "compile",
    "convolution",
    "convolution_gradients",
    "convolution_input_gradient",
    "convolution_weight_gradient",
    "disable",
    "keep_memory",
    "max_pool",
    "max_pool_gradient",
    "pack_kernel",
    "packed_convolution",
]
