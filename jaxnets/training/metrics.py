"""Metrics as sums over images, which add up exactly over batches, devices and processes; means are taken last."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError
from jaxnets.training.losses import cross_entropy, smoothed_targets

# A metric: logits [N, K] and labels [N] -> values [N], or [N, ...] for several numbers an image. It is traced by JAX.
Metric = Callable[[jax.Array, jax.Array], jax.Array]
Metrics = Mapping[str, Metric]
Sums = dict[str, jax.Array]

TOP5 = "top5_accuracy"
# The names that metrics.jsonl uses for other things.
_TAKEN = (
    "loss", "accuracy", "count", "skipped", "skipped_in_a_row", "learning_rate", "images_per_second", "seconds",
    "split", "step", "epoch", "images", "per_class", "macro_precision", "macro_recall", "macro_f1", "balanced_accuracy",
    "expected_calibration_error", "gradient_norms", TOP5,
)  # fmt: skip


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the `k` classes with the highest logits [N, K]; labels [N] -> [N].

    Of equal logits the higher class index comes first, as in scikit-learn's `top_k_accuracy_score`.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ahead = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[-1]) > labels[:, None]))
    return (ahead.sum(-1) < k) & ~jnp.isnan(own[:, 0])


def top_k_accuracy(k: int) -> Metric:
    """The metric `in_top_k`; with at most `k` classes it is 1 for each image."""
    return partial(in_top_k, k=k)


def all_metrics(metrics: Metrics | None) -> dict[str, Metric]:
    """The metrics of every run, and those of the user. Raises InputError for a name that is taken."""
    metrics = dict(metrics or {})
    for name in metrics:
        if not isinstance(name, str) or not name or name in _TAKEN:
            raise InputError(f"metric {name!r}: choose another name than {', '.join(_TAKEN)}")
    return {TOP5: top_k_accuracy(5), **metrics}


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, metrics: Metrics | None = None
) -> Sums:
    """Sums of loss, accuracy and `metrics` over a batch of logits [N, K] and labels [N], and the count of images.

    Only images with a true `mask` [N] count. Raises InputError for a metric that does not return [N, ...].
    """
    mask = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    functions: dict[str, Metric] = {
        "loss": lambda logits, labels: cross_entropy(logits, smoothed_targets(labels, logits.shape[-1])),
        "accuracy": lambda logits, labels: logits.argmax(-1) == labels,
        **(metrics or {}),
    }
    sums = {"count": mask.sum(dtype=jnp.float32)}
    for name, function in functions.items():
        values = jnp.asarray(function(logits, labels))
        if values.shape[:1] != labels.shape:
            raise InputError(f"metric {name!r} returned {list(values.shape)}; expected [{len(labels)}, ...]")
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        # A product with the mask would turn the infinity of an empty slot into NaN.
        sums[name] = jnp.where(mask.reshape(-1, *[1] * (values.ndim - 1)), values, 0).sum(0)
    return sums


@dataclass
class Totals:
    """Running totals of metric sums on the host, in float64. `skipped` counts steps that were left out.

    `sums` holds numbers, or nested lists of them, as JSON does.
    """

    sums: dict[str, Any] = field(default_factory=dict)
    count: float = 0.0
    skipped: int = 0

    def add(self, sums: Mapping[str, Any]) -> None:
        """Adds the sums of one batch."""
        self.count += float(sums["count"])
        self.skipped += int(float(sums.get("skipped", 0)))
        for name, value in sums.items():
            if name not in ("count", "skipped", "skipped_in_a_row"):
                total = np.asarray(self.sums.get(name, 0.0)) + np.asarray(value, np.float64)
                self.sums[name] = total.tolist()

    def means(self) -> dict[str, Any]:
        """The mean of each metric, the count of images, and the count of skipped steps if there were any.

        Without images there are no means.
        """
        means = {name: (np.asarray(sum) / max(self.count, 1)).tolist() for name, sum in self.sums.items()}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return (means if self.count else {}) | {"count": self.count} | skipped
