"""Figure 3 of the ResNeXt paper: three forms of a block, one function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.models.layers import BatchNorm, Conv
from jaxnets.models.resnext import EarlyConcatenationBlock, GroupedBlock, SplitTransformAddBlock
from tests.tiers import slow_except

pytestmark = pytest.mark.usefixtures("float64")
FORMS = (GroupedBlock, EarlyConcatenationBlock, SplitTransformAddBlock)


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance), actual, expected)


@pytest.mark.parametrize(("cardinality", "width", "stride"), slow_except([], [(8, 16, 1), (4, 40, 2), (1, 64, 1)]))
def test_forms_agree_forward_and_backward(cardinality: int, width: int, stride: int) -> None:
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 9, 32), jnp.float64)

    def run(form: type[GroupedBlock], variables: Any) -> Any:
        block = form(
            filters=16,
            stride=stride,
            groups=cardinality,
            width_per_group=width,
            shortcut="B",
            zero_init_residual=False,
            activation=jax.nn.relu,
            conv=partial(Conv, dtype=jnp.float64),
            norm=partial(BatchNorm, train=True, dtype=jnp.float64),
        )
        if variables is None:
            return block.init(jax.random.key(1), inputs)

        def loss(params: Any, x: jax.Array) -> Any:
            outputs, updates = block.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(outputs)), (outputs, updates)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], inputs)

    variables = run(GroupedBlock, None)
    expected = run(GroupedBlock, variables)
    for form in FORMS[1:]:
        assert jax.tree.map(jnp.shape, run(form, None)) == jax.tree.map(jnp.shape, variables)
        assert_trees_close(run(form, variables), expected, 1e-10)


@pytest.mark.slow
def test_forms_are_interchangeable_in_a_network() -> None:
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3), jnp.float64)
    networks = [
        jaxnets.create_model(
            "resnext29_8x64d_cifar", num_classes=3, dtype=jnp.float64, block=form, stage_sizes=(1, 1), num_filters=8
        )
        for form in FORMS
    ]
    variables = networks[0].init(jax.random.key(1), images, train=False)
    expected = networks[0].apply(variables, images, train=False)
    for network in networks[1:]:
        assert_trees_close(network.apply(variables, images, train=False), expected, 1e-10)
