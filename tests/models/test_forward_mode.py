"""Forward-mode derivatives of whole networks in training, against finite differences and reverse mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from tests.tiers import slow_except

NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (63, {"hidden_features": 8, "dropout_rate": 0.0}),
    "resnet18": (16, {"num_filters": 4, "stage_sizes": (1,)}),
    "resnext50_32x4d": (16, {"num_filters": 32, "groups": 8, "stage_sizes": (1,)}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", slow_except(["resnet18"], NETWORKS))
def test_hessian_vector_products(name: str) -> None:
    """A derivative along a direction, and the derivative of the gradient along it, in float64."""
    side, options = NETWORKS[name]
    model = jaxnets.create_model(name, num_classes=3, dtype=jnp.float64, **options)
    images = jax.random.normal(jax.random.key(0), (2, side, side, 3), jnp.float64)
    variables = jaxnets.initial_variables(model, jax.random.key(1), image_size=side)
    variables, params = dict(variables), variables["params"]
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(direction)))
    direction = jax.tree.map(lambda leaf: leaf / norm, direction)

    @jax.jit
    def loss(params: Any) -> jax.Array:
        options = {"train": True, "mutable": ["batch_stats", "aux_logits"], "rngs": {"dropout": jax.random.key(2)}}
        logits, _ = model.apply({**variables, "params": params}, images, **options)
        return -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.arange(2)].mean()

    value, slope = jax.jit(lambda p: jax.jvp(loss, (p,), (direction,)))(params)
    gradient = jax.jit(jax.grad(loss))
    product = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (direction,))[1])(params)
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))  # noqa: E731
    step = 1e-6
    before, after = (jax.tree.map(lambda p, d, by=by: p + by * d, params, direction) for by in (-step, step))
    np.testing.assert_allclose(slope, dot(gradient(params), direction), rtol=1e-9)
    np.testing.assert_allclose(slope, (loss(after) - loss(before)) / (2 * step), rtol=1e-5)
    curvature = (dot(gradient(after), direction) - dot(gradient(before), direction)) / (2 * step)
    np.testing.assert_allclose(dot(product, direction), curvature, rtol=1e-4)
    assert np.isfinite(value)
