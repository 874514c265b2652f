"""Metrics as sums over images, so that batches of any size add up; means are taken last, never of means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import SupportsFloat

import jax
import jax.numpy as jnp

from jaxnets.training.losses import cross_entropy, smoothed_targets

Sums = dict[str, jax.Array]


def metric_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Sums:
    """Sums over a batch of logits [N, K] and labels [N]: loss, correct answers, images counted (those in the mask)."""
    weights = jnp.ones(labels.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    return {
        "loss": jnp.sum(weights * cross_entropy(logits, smoothed_targets(labels, logits.shape[-1]))),
        "correct": jnp.sum(weights * (logits.argmax(-1) == labels)),
        "count": weights.sum(),
    }


@dataclass
class Totals:
    """Running totals of metric sums, on the host; `skipped` counts steps that were left out."""

    loss: float = 0.0
    correct: float = 0.0
    count: float = 0.0
    skipped: int = 0

    def add(self, sums: Mapping[str, SupportsFloat]) -> None:
        """Adds a batch's sums."""
        self.loss += float(sums["loss"])
        self.correct += float(sums["correct"])
        self.count += float(sums["count"])
        self.skipped += int(float(sums.get("skipped", 0)))

    def means(self) -> dict[str, float]:
        """Loss and accuracy an image, the count of images behind them, and steps that were left out, where any were.

        Of no images there are no means.
        """
        means = {"loss": self.loss / self.count, "accuracy": self.correct / self.count} if self.count else {}
        return means | {"count": self.count} | ({"skipped": self.skipped} if self.skipped else {})
