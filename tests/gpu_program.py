"""Compiles a network for an H100 without a GPU: python -m tests.gpu_program ARCH train|inference BATCH_SIZE.

Prints the optimised HLO for bfloat16 and images of 224 px. Needs the packages of jax[cuda12] or jax[cuda13].
"""

import os
import sys
from functools import partial
from typing import Any

os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the check needs a driver
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # autotuning needs a GPU

import jax
import jax.numpy as jnp
from jax._src import xla_bridge
from jax.experimental import topologies

from jaxnets.data.pipeline import Batch
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.inference import fold
from jaxnets.models.initialization import initial_variables
from jaxnets.models.registry import create_model
from jaxnets.training.recipe import Recipe
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step

SIZE = 224
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def program(arch: str, mode: str, batch_size: int) -> str:
    """The optimised HLO of a training step, or of folded inference."""
    model: Any = create_model(arch, num_classes=1000, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), jnp.bfloat16 if mode == "inference" else jnp.uint8)
    if mode == "inference":
        model, variables, _ = fold(model, initial_variables(model, jax.random.key(0), SIZE), dtype=jnp.bfloat16)
        return _compiled(partial(model.apply, train=False), variables, images)
    recipe = Recipe(
        image_size=SIZE, epochs=1, batch_size=batch_size, optimizer="momentum", learning_rate=0.1, weight_decay=1e-4
    )
    optimizer = recipe.make_optimizer(recipe.schedule_of(1, batch_size))
    step = partial(train_step, model=model, optimizer=optimizer, preprocessing=Preprocessing(SIZE, SIZE), recipe=recipe)
    state = jax.eval_shape(lambda: create_state(model, optimizer, 0, SIZE))
    labels, mask = (jax.ShapeDtypeStruct((batch_size,), dtype) for dtype in (jnp.int32, jnp.bool_))
    return _compiled(step, state, Batch(images, labels, mask))


def _compiled(function: Any, *arguments: Any) -> str:
    platform, backend = xla_bridge.canonicalize_platform, jax.default_backend
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else platform(name)
    topology = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology="1x1x1")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments)
    jax.default_backend = lambda: "gpu"
    try:
        text: str = jax.jit(function, out_shardings=sharding).lower(*arguments).compile().as_text()
    finally:
        jax.default_backend, xla_bridge.canonicalize_platform = backend, platform
    return text


if __name__ == "__main__":
    print(program(sys.argv[1], sys.argv[2], int(sys.argv[3])))
