"""Batch normalisation against numpy and against Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models.layers import BatchNorm


def data(*shape: int) -> np.ndarray:
    return 3 + 2 * np.random.RandomState(0).standard_normal(shape)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("unbiased", [False, True])
def test_training_and_evaluation_follow_the_definition(unbiased: bool) -> None:
    inputs = data(4, 3, 5, 6)
    norm = BatchNorm(train=True, momentum=0.7, epsilon=1e-3, unbiased_variance=unbiased, dtype=jnp.float64)
    variables = norm.init(jax.random.key(0), inputs)
    params = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}
    start = {"mean": jnp.full(6, 0.5), "var": jnp.full(6, 2.0)}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, {"params": params, "batch_stats": start})
    outputs, updates = norm.apply({"params": params, "batch_stats": start}, inputs, mutable=["batch_stats"])

    mean, var = inputs.mean(axis=(0, 1, 2)), inputs.var(axis=(0, 1, 2))
    expected = (inputs - mean) / np.sqrt(var + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    stored = inputs.var(axis=(0, 1, 2), ddof=1 if unbiased else 0)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.7 * 0.5 + 0.3 * mean, atol=1e-12)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.7 * 2.0 + 0.3 * stored, atol=1e-12)

    frozen = norm.clone(train=False).apply({"params": params, "batch_stats": start}, inputs)
    expected = (inputs - 0.5) / np.sqrt(2.0 + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(frozen, expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_equals_flax_when_the_running_variance_is_biased() -> None:
    inputs = data(4, 3, 3, 6)
    ours = BatchNorm(train=True, unbiased_variance=False, dtype=jnp.float64)
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, param_dtype=jnp.float64)
    variables = flax.init(jax.random.key(0), inputs)
    expected, actual = (norm.apply(variables, inputs, mutable=["batch_stats"]) for norm in (flax, ours))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12), actual, expected)


@pytest.mark.usefixtures("float64")
def test_replicas_share_their_statistics_over_an_axis() -> None:
    inputs = data(8, 3, 3, 6)
    alone = BatchNorm(train=True, dtype=jnp.float64)
    variables = alone.init(jax.random.key(0), inputs)
    expected = alone.apply(variables, inputs, mutable=["batch_stats"])

    def replica(share: jax.Array) -> object:
        return alone.clone(axis_name="replicas").apply(variables, share, mutable=["batch_stats"])

    outputs, updates = jax.vmap(replica, axis_name="replicas")(inputs.reshape(4, 2, 3, 3, 6))
    np.testing.assert_allclose(outputs.reshape(inputs.shape), expected[0], atol=1e-12)
    for replica_updates in (jax.tree.map(lambda leaf, i=i: leaf[i], updates) for i in range(4)):
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12), replica_updates, expected[1])


def test_a_large_mean_costs_no_precision() -> None:
    inputs = (1e4 + np.random.RandomState(0).standard_normal((64, 8, 8, 2))).astype(np.float32)
    norm = BatchNorm(train=True)
    outputs, _ = norm.init_with_output(jax.random.key(0), inputs)
    exact = inputs.astype(np.float64)
    expected = (exact - exact.mean(axis=(0, 1, 2))) / exact.std(axis=(0, 1, 2))
    # float32 holds numbers near 1e4 to 1e-3, and their mean to a little more; E[x^2] - E[x]^2 would be off by over 1.
    assert np.abs(outputs - expected).max() < 2e-2


def test_one_value_a_channel_is_survived() -> None:
    outputs, updates = BatchNorm(train=True).init_with_output(jax.random.key(0), jnp.ones((1, 1, 1, 3)))
    _, updates = BatchNorm(train=True).apply(updates, jnp.ones((1, 1, 1, 3)), mutable=["batch_stats"])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, updates)))


def test_statistics_stay_float32_in_bfloat16() -> None:
    inputs = jnp.asarray(data(8, 4, 4, 3), jnp.bfloat16)
    outputs, variables = BatchNorm(train=True, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), inputs)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
