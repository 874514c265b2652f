"""Losses."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

LOSSES = ("cross_entropy", "binary_cross_entropy")


def smoothed_targets(labels: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Target probabilities [N, K] of labels [N] (Szegedy et al. 2015, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy [N] of logits [N, K] with target probabilities [N, K], in float32 or wider."""
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy(logits.astype(dtype), targets.astype(dtype))


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, threshold: float = 0.0) -> jax.Array:
    """Binary cross entropy [N] of logits and targets [N, K], as the mean over the classes.

    With a `threshold`, targets above it count as 1 and the others as 0 (Wightman et al. 2021, section 2).
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    if threshold:
        targets = targets > threshold
    return optax.sigmoid_binary_cross_entropy(logits.astype(dtype), targets.astype(dtype)).mean(axis=-1)


def training_loss(
    logits: jax.Array,
    auxiliary_logits: Sequence[jax.Array],
    targets: jax.Array,
    *,
    loss: str = "cross_entropy",
    target_threshold: float = 0.0,
    aux_weight: float,
) -> jax.Array:
    """Mean loss of a batch, plus `aux_weight` times that of each auxiliary head (Szegedy et al. 2014: 0.3)."""

    def mean_loss(logits: jax.Array) -> jax.Array:
        if loss == "binary_cross_entropy":
            return binary_cross_entropy(logits, targets, target_threshold).mean()
        return cross_entropy(logits, targets).mean()

    total = mean_loss(logits)
    for head in auxiliary_logits:
        total += aux_weight * mean_loss(head)
    return total
