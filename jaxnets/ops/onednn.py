"""Convolution and matrix product by oneDNN, which XLA carries for x86 CPUs and rarely calls by itself.

jaxlib's wheels for Linux on x86-64 hold oneDNN (the library behind PyTorch's convolutions) and run it for the targets
"__onednn$convolution" and "__onednn$matmul"; they lack only the pass that would choose them. Here they are called by
name. How their arguments are written is XLA's own affair (xla/service/cpu/onednn_config.proto), so they are used in
releases where they were tried only, and elsewhere the forms of conv_cpu.py that need none of this. Programs with such
calls can't be exported.
"""

import json
import os
import platform
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax.typing import DTypeLike

# The releases of jaxlib in which both calls were compared with XLA's own forms.
_FIRST_RELEASE, _LAST_RELEASE = (0, 10, 0), (0, 12, 0)
SWITCH = "JAXNETS_ONEDNN"

# For programs that call oneDNN. XLA's default order of a program's parts is for running several at once, each on one
# core; oneDNN then finds the pool of threads taken, and runs on one core as well: ResNet-50's forward pass took 0.54 s
# in the default order and 0.28 s in this one.
_COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@cache
def _in_this_jaxlib() -> bool:
    release = tuple(int(part) for part in re.findall(r"\d+", jaxlib.__version__)[:3])
    here = platform.system() == "Linux" and platform.machine() == "x86_64"
    return here and _FIRST_RELEASE <= release <= _LAST_RELEASE and os.environ.get(SWITCH, "1") != "0"


def available(dtype: DTypeLike) -> bool:
    """Whether the calls work here; JAXNETS_ONEDNN=0 in the environment turns them off."""
    return dtype == jnp.float32 and _in_this_jaxlib()


def compiler_options(platform: str) -> dict[str, str]:
    """What programs with convolutions should be compiled with for a platform."""
    return dict(_COMPILER_OPTIONS) if platform == "cpu" and _in_this_jaxlib() else {}


def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    groups: int = 1,
    transposed: bool = False,
) -> jax.Array:
    """Cross-correlates [N, H, W, C] with [kh, kw, C / groups, F], giving [N, H', W', F].

    `padding` is (low, high) of rows and columns. A `transposed` kernel, of one group, is [kh, kw, F, C].
    """
    features = kernel.shape[2 if transposed else 3]
    sizes = [
        (size + sum(pads) - window) // stride + 1
        for size, pads, window in zip(inputs.shape[1:3], padding, kernel.shape[:2], strict=True)
    ]
    images = {"dims": 4, "data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    axes = (3, 2) if transposed else (2, 3)
    config = {
        "dims": 4,
        "input": images,
        "kernel": {
            "dims": 4,
            "filter": {"input_feature_dim": axes[0], "output_feature_dim": axes[1], "spatial_dims": [0, 1]},
        },
        "output": images,
        "window": {
            "size": list(kernel.shape[:2]),
            "pad_left": [low for low, _ in padding],
            "pad_right": [high for _, high in padding],
            "strides": [stride, stride],
            "window_dilations": [1, 1],
        },
        "feature_groups": groups,
    }
    shape = (inputs.shape[0], *sizes, features)
    return _call("__onednn$convolution", {"onednn_conv_config": config}, shape, inputs, kernel)


def matmul(
    left: jax.Array, right: jax.Array, *, transpose_left: bool = False, transpose_right: bool = False
) -> jax.Array:
    """[..., M, K] @ [..., K, N]; of either one, the last two axes are given in the other order if so said.

    Leading axes are as long in both, or 1 in one.
    """
    rows = left.shape[-1] if transpose_left else left.shape[-2]
    columns = right.shape[-2] if transpose_right else right.shape[-1]
    leading = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    config = {"onednn_matmul_config": {"transpose_a": transpose_left, "transpose_b": transpose_right}}
    return _call("__onednn$matmul", config, (*leading, rows, columns), left, right)


def _call(target: str, config: dict[str, Any], shape: tuple[int, ...], *operands: jax.Array) -> jax.Array:
    call = jax.ffi.ffi_call(
        target,
        jax.ShapeDtypeStruct(shape, operands[0].dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(config),
    )
    return call(*operands)
