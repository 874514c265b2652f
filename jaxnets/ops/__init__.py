"""Convolution, pooling and normalisation; a random key for each image.

These modules define what is computed, and the portable forms. On the CPU the engine in `cpu` computes most of it.
"""

from jaxnets.ops.conv import conv2d, dense, plain_conv2d
from jaxnets.ops.conv_bias import conv2d_bias, pack_kernels
from jaxnets.ops.cpu import compile, keep_memory
from jaxnets.ops.keys import image_keys
from jaxnets.ops.lrn import local_response_norm
from jaxnets.ops.norm import batch_norm
from jaxnets.ops.pool import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "compile",
    "conv2d",
    "conv2d_bias",
    "dense",
    "image_keys",
    "keep_memory",
    "local_response_norm",
    "max_pool",
    "pack_kernels",
    "plain_conv2d",
]
