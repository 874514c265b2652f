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
    squares: dict[str, Any] = dict.fromkeys(layers, 0.0)
    for path, leaf in flatten_dict(gradients).items():
        squares[_layer(path)] += (leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) ** 2).sum()
    return jnp.sqrt(jnp.stack([squares[layer] for layer in layers]))


def _layer(path: tuple[str, ...]) -> str:
    return "/".join(path[:-1])
