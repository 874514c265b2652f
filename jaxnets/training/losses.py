"""Losses."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy [N] of logits [N, K] with labels [N], in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def training_loss(
    logits: jax.Array,
    auxiliary_logits: Sequence[jax.Array],
    labels: jax.Array,
    *,
    label_smoothing: float,
    aux_weight: float,
) -> jax.Array:
    """Mean loss of a batch; any auxiliary heads count with `aux_weight` each (Szegedy et al. 2014, section 5: 0.3)."""
    loss = cross_entropy(logits, labels, label_smoothing).mean()
    for head in auxiliary_logits:
        loss += aux_weight * cross_entropy(head, labels, label_smoothing).mean()
    return loss
