"""Batch normalisation against numpy and against Flax's own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.models.layers import BatchNorm
from jaxnets.models.norms import with_norms


def data(*shape: int) -> np.ndarray:
    return 3 + 2 * np.random.RandomState(0).standard_normal(shape)


@pytest.mark.fast
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


@pytest.mark.fast
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


@pytest.mark.fast
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


def random_like(shapes: Any) -> Any:
    """Positive numbers in the shapes of variables."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 1, leaf.shape), leaf.dtype), shapes)


def assert_same_bytes(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("axis_name", [None, "replicas"])
def test_frozen_statistics_are_used_and_left_as_they_are(axis_name: str | None) -> None:
    inputs = jnp.asarray(data(8, 3, 3, 6), jnp.float32)
    # Only the axis tells that nothing is averaged over it.
    norm, still = BatchNorm(train=True, axis_name=axis_name), BatchNorm(train=False)
    frozen = with_norms(norm, frozen=None)
    shapes = jax.eval_shape(lambda: norm.init(jax.random.key(0), inputs))
    assert shapes == jax.eval_shape(lambda: still.init(jax.random.key(0), inputs))
    variables = random_like(shapes)
    outputs, updates = frozen.apply(variables, inputs, mutable=["batch_stats"])
    assert_same_bytes(updates["batch_stats"], variables["batch_stats"])
    assert_same_bytes(outputs, still.apply(variables, inputs))

    def gradients(module: Any) -> Any:
        def loss(params: Any, inputs: jax.Array) -> jax.Array:
            return jnp.sin(module.apply({**variables, "params": params}, inputs)).sum()

        return jax.grad(loss, argnums=(0, 1))(variables["params"], inputs)

    assert_same_bytes(gradients(frozen), gradients(still))
    assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(gradients(frozen)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("googlenet", {"aux_logits": False, "dropout_rate": 0.0}, marks=pytest.mark.slow),
        ("resnet18", {"stage_sizes": (1, 1)}),
        ("resnet164_v2_cifar", {"stage_sizes": (1, 1)}),
    ],
)
def test_any_network_can_be_frozen(name: str, options: dict[str, Any]) -> None:
    model: Any = jaxnets.create_model(name, num_classes=3, **options)
    frozen = with_norms(model, frozen=None)
    images = jnp.asarray(data(2, 16, 16, 3), jnp.float32)
    variables = random_like(jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)))

    @jax.jit
    def run(variables: Any) -> Any:
        return model.apply(variables, images, train=False), frozen.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )

    expected, (logits, updates) = run(variables)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert_same_bytes(updates["batch_stats"], variables["batch_stats"])
