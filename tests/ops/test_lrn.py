"""Response normalisation against the sum in the paper."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnets.ops import local_response_norm
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("channels", slow_except([3, 96], [1, 3, 8, 96]))
@pytest.mark.parametrize("size", [5, 4])
def test_equals_the_papers_formula(channels: int, size: int) -> None:
    inputs = 20 * np.random.RandomState(0).standard_normal((2, 3, 3, channels))
    k, alpha, beta = 2.0, 1e-4, 0.75
    expected = np.zeros_like(inputs)
    for i in range(channels):
        first, last = max(0, i - size // 2), min(channels - 1, i + (size - 1) // 2)
        total = sum(inputs[..., j] ** 2 for j in range(first, last + 1))
        expected[..., i] = inputs[..., i] / (k + alpha * total) ** beta
    np.testing.assert_allclose(local_response_norm(jnp.asarray(inputs), size=size), expected, rtol=1e-12)


def test_gradient_is_that_of_finite_differences() -> None:
    check_grads(lambda x: local_response_norm(x, alpha=0.1), (jnp.linspace(-3, 3, 24).reshape(1, 2, 2, 6),), order=1)
