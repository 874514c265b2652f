"""Metrics against scikit-learn, and their sums over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from jaxnets.errors import InputError
from jaxnets.training.metrics import Totals, all_metrics, in_top_k, metric_sums, top_k_accuracy

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_top_k_is_that_of_scikit_learn(k: int, levels: int) -> None:
    # With three levels nearly every image has ties.
    logits = RANDOM.integers(0, levels, (300, 7)).astype(np.float32)
    labels = RANDOM.integers(0, 7, 300)
    hits = np.asarray(in_top_k(jnp.asarray(logits), jnp.asarray(labels), k))
    expected = top_k_accuracy_score(labels, logits, k=k, labels=range(7), normalize=False)
    assert 0 < expected < 300
    assert hits.sum() == expected


def test_top_k_of_fewer_classes_is_always_right_but_for_nan() -> None:
    logits = jnp.array([[1.0, 2.0], [3.0, 1.0], [jnp.nan, jnp.nan]])
    np.testing.assert_array_equal(top_k_accuracy(5)(logits, jnp.array([0, 1, 0])), [True, True, False])


def test_metrics_add_up_over_batches_without_masked_images() -> None:
    logits, labels = RANDOM.normal(size=(10, 6)).astype(np.float32), RANDOM.integers(0, 6, 10)
    mask = np.arange(10) % 4 != 3
    # One number an image, several, and one that is infinite where there is no image.
    functions = all_metrics(
        {
            "margin": lambda logits, labels: logits.max(-1) - logits.min(-1),
            "by_class": lambda logits, labels: jax.nn.one_hot(labels, 6),
            "risky": lambda logits, labels: 1 / jnp.asarray(mask, jnp.float32),
        }
    )
    whole = metric_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), functions)
    assert whole["risky"] == mask.sum()
    with pytest.raises(InputError, match=r"metric 'mean' returned \[\]; expected \[10, \.\.\.\]"):
        metric_sums(jnp.asarray(logits), jnp.asarray(labels), None, {"mean": lambda logits, labels: logits.mean()})
    totals = Totals()
    del functions["risky"]
    for part in (slice(0, 4), slice(4, 10)):
        totals.add(metric_sums(*(jnp.asarray(array[part]) for array in (logits, labels, mask)), functions))
    means = totals.means()
    assert means["count"] == mask.sum()
    np.testing.assert_allclose(means["margin"], np.ptp(logits, axis=1)[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(means["by_class"], np.eye(6)[labels][mask].mean(0), rtol=1e-12)
    hits = top_k_accuracy_score(labels[mask], logits[mask], k=5, labels=range(6))
    np.testing.assert_allclose(means["top5_accuracy"], hits, rtol=1e-12)
    # As JSON holds it, in a checkpoint.
    assert Totals(**vars(totals)).means() == means


@pytest.mark.parametrize("name", ["loss", "accuracy", "count", "top5_accuracy", "seconds", ""])
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="choose another name than loss, accuracy"):
        all_metrics({name: lambda logits, labels: labels})
