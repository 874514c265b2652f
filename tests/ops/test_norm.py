"""Batch normalisation's written-out gradient against the automatic one of its definition."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.ops import batch_norm, norm
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")
EPSILON = 1e-3


def definition(inputs: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axes)
    var = jnp.square(inputs - mean).mean(axes)
    return (inputs - mean) / jnp.sqrt(var + EPSILON) * scale + bias, (mean, var)


def arguments(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    channels = shape[-1:]
    return 5 + 2 * random.standard_normal(shape), random.standard_normal(channels), random.standard_normal(channels)


def cotangents(outputs: Any) -> Any:
    """Of the outputs, and of the statistics too, which a loss may read."""
    return jax.tree.map(lambda leaf: jnp.sin(1 + jnp.arange(leaf.size)).reshape(leaf.shape), outputs)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7, 2), (1, 1, 1, 3)])
@pytest.mark.parametrize("relu", slow_except([True], [False, True]))
def test_values_and_gradients(shape: tuple[int, ...], relu: bool) -> None:
    def defined(*given: jax.Array) -> Any:
        outputs, moments = definition(*given)
        return jnp.maximum(outputs, 0) if relu else outputs, moments

    given = arguments(*shape)
    expected, pull = jax.vjp(defined, *given)
    actual, our_pull = jax.vjp(lambda *a: batch_norm(*a, EPSILON, None, jax.nn.relu if relu else None), *given)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), actual, expected)
    for ours, theirs in zip(our_pull(cotangents(actual)), pull(cotangents(expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
def test_forward_mode_and_second_derivatives(relu: bool) -> None:
    def defined(*given: jax.Array) -> Any:
        outputs, moments = definition(*given)
        return jnp.maximum(outputs, 0) if relu else outputs, moments

    def ours(*given: jax.Array) -> Any:
        return batch_norm(*given, EPSILON, None, jax.nn.relu if relu else None)

    def loss(normalise: Any) -> Any:
        return lambda *given: sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(normalise(*given)))

    primals = arguments(4, 3, 2, 5)
    tangents = tuple(np.random.RandomState(1).standard_normal(array.shape) for array in primals)
    expected, actual = (jax.jvp(function, primals, tangents) for function in (defined, ours))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), actual, expected)
    # Forward over reverse, and reverse over forward.
    gradients = partial(jax.grad, argnums=(0, 1, 2))
    expected, actual = (jax.jvp(gradients(loss(of)), primals, tangents)[1] for of in (defined, ours))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), actual, expected)
    slope = lambda *given: jax.jvp(loss(ours), given, tangents)[1]  # noqa: E731
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), gradients(slope)(*primals), expected)


def test_replicas_have_the_tangents_of_one_batch() -> None:
    inputs, scale, bias = arguments(8, 3, 3, 5)
    tangents = tuple(np.random.RandomState(1).standard_normal(array.shape) for array in (inputs, scale, bias))
    (expected, _) = jax.jvp(definition, (inputs, scale, bias), tangents)[1]

    def replica(share: jax.Array, share_dot: jax.Array) -> Any:
        function = lambda *given: batch_norm(*given, EPSILON, "replicas")[0]  # noqa: E731
        return jax.jvp(function, (share, scale, bias), (share_dot, *tangents[1:]))[1]

    shares = (array.reshape(4, 2, 3, 3, 5) for array in (inputs, tangents[0]))
    actual = jax.vmap(replica, axis_name="replicas")(*shares)
    np.testing.assert_allclose(actual.reshape(inputs.shape), expected, atol=1e-12)


def test_replicas_are_as_one() -> None:
    inputs, scale, bias = arguments(8, 3, 3, 5)
    expected, pull = jax.vjp(definition, inputs, scale, bias)
    outputs, _ = expected
    gradient = cotangents(outputs)

    def replica(share: jax.Array, share_gradient: jax.Array) -> Any:
        (found, _), pull = jax.vjp(lambda *a: batch_norm(*a, EPSILON, "replicas"), share, scale, bias)
        # The statistics, which all replicas share, are not pulled at.
        return found, pull((share_gradient, (jnp.zeros(5), jnp.zeros(5))))

    shares = [array.reshape(4, 2, *array.shape[1:]) for array in (inputs, gradient)]
    found, (by_inputs, by_scale, by_bias) = jax.vmap(replica, axis_name="replicas")(*shares)
    exact = pull((gradient, (jnp.zeros(5), jnp.zeros(5))))
    np.testing.assert_allclose(found.reshape(inputs.shape), outputs, atol=1e-12)
    np.testing.assert_allclose(by_inputs.reshape(inputs.shape), exact[0], atol=1e-12)
    for share, whole in ((by_scale, exact[1]), (by_bias, exact[2])):
        np.testing.assert_allclose(share.sum(axis=0), whole, atol=1e-12)


@pytest.mark.fast
@pytest.mark.parametrize(("outlier", "epsilons"), [(0.0, 8), (1e3, 256)])
def test_moments_keep_their_digits_where_the_mean_is_large(outlier: float, epsilons: int) -> None:
    """E[x^2] - E[x]^2 would lose them all."""
    inputs = np.random.RandomState(0).normal(1e3, 1, (8, 9, 9, 16)).astype(np.float32)
    inputs[0, 0, 0] += outlier
    ones = np.ones(16, np.float32)
    _, mean, var = norm._normalise(inputs, ones, ones, epsilon=0.0, relu=False)
    exact = inputs.astype(np.float64).reshape(-1, 16)
    epsilon = np.finfo(np.float32).eps
    assert (abs(mean - exact.mean(0)) <= 8 * epsilon * (abs(exact.mean(0)) + exact.std(0))).all()
    np.testing.assert_allclose(var, exact.var(0), rtol=epsilons * epsilon)


def test_variance_of_constants_is_not_negative() -> None:
    constants = np.random.RandomState(0).standard_normal(1024).astype(np.float32)
    inputs = np.broadcast_to(constants, (1, 33, 33, 1024))
    normalised = jax.jit(partial(norm._normalise, epsilon=0.0, relu=False))
    _, _, var = normalised(inputs, constants, constants)
    assert (var >= 0).all()
    assert (var < 1e-9).all()
