"""Random keys that do not depend on how a batch is spread over devices."""

import jax
import jax.numpy as jnp


def image_keys(key: jax.Array, count: int, axis_name: str | None = None) -> jax.Array:
    """A key [N] for each image of a batch, by its place in the whole batch over all replicas of `axis_name`."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(first + jnp.arange(count))
