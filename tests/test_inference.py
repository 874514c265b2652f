"""Folded networks against the networks that they were."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inference import fold
from jaxnets.models.initialization import initial_variables

CASES = {
    "alexnet": (64, {"hidden_features": 16}),
    "googlenet": (64, {}),
    "googlenet_2014": (64, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {"stage_sizes": (2, 1, 1, 1)}),
    "resnext50_32x4d": (64, {"stage_sizes": (2, 1, 1, 1)}),
    "wide_resnet50_2": (64, {"stage_sizes": (1, 1, 1, 1)}),
    "plain20_cifar": (16, {}),
    "resnet1202_cifar": (16, {"stage_sizes": (4, 3, 3)}),
    "resnet1001_v2_cifar": (16, {"stage_sizes": (3, 3, 3)}),
}


def network(name: str, dtype: Any = jnp.float32) -> tuple[Any, dict[str, Any], jax.Array]:
    """With statistics as of a trained network: away from 0 and 1."""
    size, options = CASES[name]
    model = jaxnets.create_model(name, num_classes=7, dtype=dtype, **options)
    images = jax.random.normal(jax.random.key(1), (3, size, size, 3), dtype)
    variables = initial_variables(model, jax.random.key(0), size)
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        low, high = {"scale": (0.5, 1.0), "bias": (-0.2, 0.2), "mean": (-0.3, 0.3), "var": (0.5, 2.0)}.get(
            path[-1].key, (None, None)
        )
        return leaf if low is None else jnp.asarray(random.uniform(low, high, leaf.shape), leaf.dtype)

    return model, jax.tree.map_with_path(draw, variables), images


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_same(name: str) -> None:
    model, variables, images = network(name)
    folded, weights, _ = fold(model, variables)
    assert set(weights) == {"params"}
    assert not {"aux1", "aux2"} & set(weights["params"])
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(weights, images)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kinds = {path[-1].key for path, _ in jax.tree.leaves_with_path(weights)}
    assert ("scale" in kinds) == (name == "resnet1001_v2_cifar")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnet1001_v2_cifar"])
def test_only_rounding_differs(name: str) -> None:
    model, variables, images = network(name, jnp.float64)
    folded, weights, _ = fold(model, variables)
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(weights, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_weights_may_be_short() -> None:
    model, variables, images = network("resnet18")
    folded, weights, _ = fold(model, variables, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.jit(partial(folded.apply, train=False))(weights, images)
    assert logits.dtype == jnp.bfloat16
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits.astype(jnp.float32), expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_other_norms_are_refused() -> None:
    def group_norm(*, train: bool, axis_name: str | None, **options: Any) -> nn.Module:
        return nn.GroupNorm(num_groups=4, **options)

    model = jaxnets.create_model("resnet18", norm=group_norm)
    with pytest.raises(InputError, match="only BatchNorm can be folded"):
        fold(model, {"params": {}})


@pytest.mark.parametrize(("leaf", "value"), [("kernel", np.inf), ("var", np.nan), ("var", -1.0)])
def test_what_is_not_finite_is_refused(leaf: str, value: float) -> None:
    model, variables, _ = network("resnet18")
    layer = variables["batch_stats"]["bn1"] if leaf == "var" else variables["params"]["conv1"]
    layer[leaf] = layer[leaf].at[..., 3].set(value)
    with pytest.raises(InputError, match=r"conv1/(kernel|bias) has values that are not finite"):
        fold(model, variables)
