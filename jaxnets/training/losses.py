"""Losses."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def smoothed_targets(labels: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Target probabilities [N, K] of labels [N] (Szegedy et al. 2015, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy [N] of logits [N, K] with target probabilities [N, K], in float32 at least."""
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy(logits.astype(dtype), targets.astype(dtype))


def training_loss(
    logits: jax.Array, auxiliary_logits: Sequence[jax.Array], targets: jax.Array, *, aux_weight: float
) -> jax.Array:
    """Mean loss of a batch; any auxiliary heads count with `aux_weight` each (Szegedy et al. 2014, section 5: 0.3)."""
    loss = cross_entropy(logits, targets).mean()
    for head in auxiliary_logits:
        loss += aux_weight * cross_entropy(head, targets).mean()
    return loss
