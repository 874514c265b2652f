"""A network in plain linen: Flax's layers, a parameter of its own, and nothing from jaxnets."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class PlainNetwork(nn.Module):
    """Three convolutions with Flax's BatchNorm: [N, H, W, 3] -> logits [N, num_classes]."""

    num_classes: int = 10
    dtype: Any = jnp.float32
    features: int = 8

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images + self.param("shift", nn.initializers.normal(0.1), (3,)).astype(images.dtype)
        for stride in (1, 2, 2):
            x = nn.Conv(self.features, (3, 3), stride, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
