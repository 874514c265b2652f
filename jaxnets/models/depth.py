"""Stages of residual blocks, as one module a block, or with one module that is repeated.

With a module a block, a program grows with the depth: a thousand layers take XLA minutes to compile. A repeated module
(`flax.linen.scan`) is compiled once, and the variables of its blocks are stacked: [blocks, ...]. Its blocks compute
their values again for the gradient, which would otherwise take gigabytes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnets.models.checks import check_stage_sizes
from jaxnets.models.layers import Stages


def run_stages(
    block: Callable[..., nn.Module],
    inputs: jax.Array,
    *,
    stage_sizes: Sequence[int],
    num_filters: int,
    drop_rates: Iterator[float],
    repeated: bool,
    keep: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    """Runs the stages "layer1", "layer2" and so on, each with half the pixels a side and twice the filters."""
    for stage, size in enumerate(stage_sizes):
        inputs = _run_stage(
            partial(block, filters=num_filters * 2**stage),
            inputs,
            stage=f"layer{stage + 1}",
            stride=2 if stage > 0 else 1,
            drop_rates=list(islice(drop_rates, size)),
            repeated=repeated,
            # The last stage has the smallest share of the memory, and takes as long as the others.
            recomputed=stage < len(stage_sizes) - 1,
            keep=keep,
        )
    return inputs


def _run_stage(
    block: Callable[..., nn.Module],
    inputs: jax.Array,
    *,
    stage: str,
    stride: int,
    drop_rates: Sequence[float],
    repeated: bool,
    recomputed: bool,
    keep: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    """Runs a block for each of `drop_rates`, the first with `stride`; calls `keep(name, outputs)` for each.

    The blocks' modules are "layer1_0", "layer1_1" and so on, for the stage "layer1". If `repeated`, all blocks after
    the first, which are equal, are one module, "layer1_rest". If also `recomputed`, the backward pass keeps only the
    inputs of each of these blocks.
    """
    outputs = keep(f"{stage}.0", block(stride=stride, name=f"{stage}_0")(inputs, drop_rates[0]))
    rest = drop_rates[1:]
    if not repeated or not rest:
        for i, rate in enumerate(rest, 1):
            outputs = keep(f"{stage}.{i}", block(stride=1, name=f"{stage}_{i}")(outputs, rate))
        return outputs

    def one(module: Any, outputs: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return module(outputs, 0.0 if rate is None else rate), None

    run = nn.scan(
        nn.remat(one, prevent_cse=False) if recomputed else one,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        length=len(rest),
    )
    rates = jnp.asarray(rest, jnp.float32) if any(rest) else None
    outputs, _ = run(block(stride=1, name=f"{stage}_rest"), outputs, rates)
    return keep(f"{stage}.rest", outputs)


def block_stages(stage_sizes: Sequence[int], repeated: bool) -> Stages:
    """One stage a block, "layer1.0" for the module "layer1_0"; repeated blocks are one stage."""
    check_stage_sizes(stage_sizes)
    names = [
        (f"layer{number}", i)
        for number, size in enumerate(stage_sizes, 1)
        for i in ([0, *(["rest"] if size > 1 else [])] if repeated else range(size))
    ]
    return {f"{layer}.{i}": (f"{layer}_{i}",) for layer, i in names}
