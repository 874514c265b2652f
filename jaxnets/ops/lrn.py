"""Local response normalisation across channels."""

import jax
import jax.numpy as jnp


def local_response_norm(
    inputs: jax.Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> jax.Array:
    """b_i = a_i / (k + alpha * sum of a_j^2 over `size` neighbouring channels)^beta, for [..., C].

    Krizhevsky et al. 2012, section 3.3. `alpha` is not divided by `size`; torch and Caffe divide it.
    """
    before = size // 2
    squares = jnp.square(inputs)
    channels = inputs.shape[-1]
    pads = [(0, 0)] * (inputs.ndim - 1) + [(before, size - 1 - before)]
    padded = jnp.pad(squares, pads)
    total = sum(padded[..., i : i + channels] for i in range(1, size)) + padded[..., :channels]
    return inputs * (k + alpha * total) ** -beta
