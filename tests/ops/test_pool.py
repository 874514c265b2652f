"""Pooling against loops that follow its definition."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.ops import adaptive_avg_pool, avg_pool, max_pool
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")


def windows(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> list[range]:
    """The real pixels under each window; ceil mode adds windows that start inside the image or its left padding."""
    found = []
    for start in itertools.count(-padding, stride):
        fits = start + window <= size + padding
        if not fits and (not ceil_mode or start >= size or start + window - stride >= size + padding):
            return found
        found.append(range(max(start, 0), min(start + window, size)))
    raise AssertionError


@pytest.mark.parametrize("size", slow_except([[5, 7]], [[4, 4], [5, 7], [6, 9], [15, 15]]))
@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 1)])
@pytest.mark.parametrize("ceil_mode", slow_except([True], [False, True]))
def test_max_pool_and_its_gradient(size: list[int], window: int, stride: int, padding: int, ceil_mode: bool) -> None:
    # Few distinct values, all below zero: ties are common, and zero padding would win.
    inputs = -1.0 - np.random.RandomState(0).randint(0, 3, (2, *size, 3)).astype(np.float64)
    rows, columns = (windows(pixels, window, stride, padding, ceil_mode) for pixels in size)
    expected, gradient = np.zeros((2, len(rows), len(columns), 3)), np.zeros_like(inputs)
    weights = np.random.RandomState(1).standard_normal(expected.shape)
    for n, (i, row), (j, column), c in itertools.product(range(2), enumerate(rows), enumerate(columns), range(3)):
        best = max(itertools.product(row, column), key=lambda at, n=n, c=c: inputs[n, *at, c])
        expected[n, i, j, c] = inputs[n, *best, c]
        gradient[n, *best, c] += weights[n, i, j, c]

    def pool(x: jax.Array) -> jax.Array:
        return max_pool(x, window, stride=stride, padding=padding, ceil_mode=ceil_mode)

    np.testing.assert_array_equal(pool(jnp.asarray(inputs)), expected)
    outputs, pull = jax.vjp(pool, jnp.asarray(inputs))
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], gradient, atol=1e-12)
    tangent = np.random.RandomState(2).standard_normal(inputs.shape)
    (_, forward) = jax.jvp(pool, (jnp.asarray(inputs),), (jnp.asarray(tangent),))
    assert (forward * weights).sum() == pytest.approx((gradient * tangent).sum(), abs=1e-12)
    # Second derivatives of a maximum are zero: only those of the function behind it are left.
    product = jax.jvp(jax.grad(lambda x: jnp.square(pool(x)).sum() / 2), (jnp.asarray(inputs),), (tangent,))[1]
    np.testing.assert_allclose(product, pull(forward)[0], atol=1e-12)


@pytest.mark.fast
def test_max_pool_passes_nan_on() -> None:
    inputs = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan).at[0, 3, 3, 0].set(5)
    expected = [[np.nan, 0], [0, 5]]
    pool = lambda x: max_pool(x, 2, stride=2)  # noqa: E731
    np.testing.assert_array_equal(pool(inputs)[0, :, :, 0], expected)
    np.testing.assert_array_equal(jax.vjp(pool, inputs)[0][0, :, :, 0], expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (6, 6), (7, 5), (13, 12), (14, 14)])
@pytest.mark.parametrize("target", [1, 4, 6])
def test_adaptive_avg_pool(size: tuple[int, int], target: int) -> None:
    inputs = np.random.RandomState(0).standard_normal((2, *size, 3))
    spans = [
        [slice(math.floor(i * pixels / target), math.ceil((i + 1) * pixels / target)) for i in range(target)]
        for pixels in size
    ]
    expected = [[inputs[:, row, column].mean(axis=(1, 2)) for column in spans[1]] for row in spans[0]]
    np.testing.assert_allclose(
        adaptive_avg_pool(jnp.asarray(inputs), target), np.transpose(expected, (2, 0, 1, 3)), atol=1e-12
    )


def test_adaptive_avg_pool_to_the_same_size_changes_nothing() -> None:
    inputs = jnp.asarray(np.random.RandomState(0).standard_normal((2, 6, 6, 3)), jnp.bfloat16)
    inputs = inputs.at[0, 0, 0, 0].set(jnp.inf)
    np.testing.assert_array_equal(adaptive_avg_pool(inputs, 6), inputs)
    assert adaptive_avg_pool(inputs[:, :5], 4).dtype == jnp.bfloat16


@pytest.mark.fast
def test_avg_pool() -> None:
    inputs = np.random.RandomState(0).standard_normal((2, 14, 11, 3))
    expected = [[inputs[:, i : i + 5, j : j + 5].mean(axis=(1, 2)) for j in (0, 3, 6)] for i in (0, 3, 6, 9)]
    np.testing.assert_allclose(
        avg_pool(jnp.asarray(inputs), 5, stride=3), np.transpose(expected, (2, 0, 1, 3)), atol=1e-12
    )


def test_windows_of_padding_alone_are_refused() -> None:
    with pytest.raises(InputError, match=r"padding of 2 px .* at most half"):
        max_pool(jnp.zeros((1, 4, 4, 1)), 3, stride=1, padding=2)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="3x3 window with stride 2 and padding 0 does not fit a map of 2 px"):
        max_pool(jnp.zeros((1, 2, 2, 1)), 3, stride=2)
    with pytest.raises(InputError, match="5x5 window"):
        avg_pool(jnp.zeros((1, 4, 8, 1)), 5, stride=3)
