"""Convolution, pooling and normalisation, in forms that suit the platform; a random key an image."""

from jaxnets.ops.conv import conv2d, dense, plain_conv2d
from jaxnets.ops.conv_bias import conv2d_bias
from jaxnets.ops.keys import image_keys
from jaxnets.ops.lrn import local_response_norm
from jaxnets.ops.norm import batch_norm
from jaxnets.ops.pool import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "conv2d",
    "conv2d_bias",
    "dense",
    "image_keys",
    "local_response_norm",
    "max_pool",
    "plain_conv2d",
]
