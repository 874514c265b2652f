"""The norms of the gradients of a step, layer by layer."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

NORMS = "gradient_norms"


def layers_of(parameters: Iterable[tuple[str, ...]], frozen: Collection[str] = ()) -> tuple[str, ...]:
    """The paths of the modules that hold the parameters, such as layer1_0/conv1, without those in frozen modules."""
    return tuple(dict.fromkeys(_layer(path) for path in parameters if path[0] not in frozen))


def layer_norms(gradients: Any, layers: Sequence[str]) -> jax.Array:
    """The L2 norms [L] of the gradients of the layers; of a kernel and its bias together."""
    leaves: dict[str, list[jax.Array]] = {layer: [] for layer in layers}
    for path, leaf in flatten_dict(gradients).items():
        leaves[_layer(path)].append(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
    # The squares of small gradients would be 0 in float32, and those of large ones infinite.
    largest = [jnp.stack([jnp.abs(leaf).max() for leaf in leaves[layer]]).max() for layer in layers]
    scales = [jnp.where((value > 0) & jnp.isfinite(value), value, 1) for value in largest]
    squares = [
        sum(((leaf / scale) ** 2).sum() for leaf in leaves[layer]) for layer, scale in zip(layers, scales, strict=True)
    ]
    return jnp.sqrt(jnp.stack(squares)) * jnp.stack(scales)


def _layer(path: tuple[str, ...]) -> str:
    return "/".join(path[:-1])
