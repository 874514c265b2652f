"""Variables that are drawn by size against those of the network's own `init`."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.models import initialization
from jaxnets.models.initialization import Scaled, declaration, initial_variables, parameter
from jaxnets.models.layers import Conv, Dense, he_fan_in
from tests.tiers import slow_except

KEY = jax.random.key(5)
CASES = {
    "alexnet": (63, {"hidden_features": 8}),
    "alexnet_2012": (63, {"hidden_features": 8}),
    "googlenet": (32, {}),
    "googlenet_2014": (32, {}),
    "resnet18": (32, {"stage_sizes": (1, 1), "zero_init_residual": True}),
    "resnext50_32x4d": (32, {"stage_sizes": (1, 1)}),
    "resnet164_v2_cifar": (8, {"stage_sizes": (1, 2)}),
    "resnet1202_cifar": (8, {"stage_sizes": (3, 2, 2)}),
}


@pytest.mark.parametrize(
    "name",
    slow_except(("resnet18",), CASES, exhaustive=("googlenet", "googlenet_2014", "alexnet")),
)
def test_the_draws_are_those_of_init(name: str) -> None:
    size, options = CASES[name]
    model = jaxnets.create_model(name, num_classes=7, **options)
    expected = jax.jit(partial(model.init, train=False))(KEY, jnp.zeros((1, size, size, 3)))
    actual = initial_variables(model, KEY, size)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


class Wide(nn.Module):
    """Parameters of several of the program's calls, of parts of one, and of both distributions, in turns."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        outputs = images.mean(axis=(1, 2))
        for features in (900, 3000, 5):
            outputs = Dense(features, kernel_init=he_fan_in)(outputs)
        return outputs


@pytest.mark.slow
def test_large_parameters_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = jax.jit(partial(Wide().init, train=False))(KEY, jnp.zeros((1, 8, 8, 3)))
    declared = declaration(Wide(), 8)
    monkeypatch.setattr(Wide, "init", lambda *_, **__: pytest.fail("a program of its own"))
    actual = initial_variables(Wide(), KEY, 8, declared)
    assert jax.tree.map(jnp.shape, declared.shapes) == jax.tree.map(jnp.shape, expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("partitionable", slow_except([False], [True, False]))
def test_other_keys_draw_as_theirs_do(partitionable: bool) -> None:
    with jax.threefry_partitionable(partitionable):
        key = jax.random.key(3, impl="rbg" if partitionable else None)
        expected = jax.jit(partial(Wide().init, train=False))(key, jnp.zeros((1, 8, 8, 3)))
        for ours, theirs in zip(
            jax.tree.leaves(initial_variables(Wide(), key, 8)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_parameters_of_another_shape_are_refused() -> None:
    model = jaxnets.create_model("resnet20_cifar", num_classes=3, stage_sizes=(1,))
    variables = initial_variables(jaxnets.create_model("resnet20_cifar", num_classes=4, stage_sizes=(1,)), KEY, 8)
    with pytest.raises(jaxnets.InputError, match=r"fc/kernel is \(16, 4\) in the variables, but \(16, 3\)"):
        model.apply(variables, jnp.zeros((1, 8, 8, 3)), train=False)


@pytest.mark.usefixtures("float64")
def test_doubles_are_drawn_as_doubles() -> None:
    model = jaxnets.create_model("resnet20_cifar", num_classes=3, stage_sizes=(1,), num_filters=4, dtype=jnp.float64)
    expected = jax.jit(partial(model.init, train=False))(KEY, jnp.zeros((1, 8, 8, 3)))
    for ours, theirs in zip(jax.tree.leaves(initial_variables(model, KEY, 8)), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_networks_with_variables_of_their_own_are_initialised_as_well() -> None:
    class Custom(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, train: bool) -> jax.Array:
            scale = self.param("scale", nn.initializers.normal(1.0), (3,))
            count = self.variable("counts", "seen", jnp.zeros, ())
            return (images * scale).mean(axis=(1, 2)) + count.value

    model = Custom()
    expected = model.init(KEY, jnp.zeros((1, 8, 8, 3)), train=False)
    jax.tree.map(np.testing.assert_array_equal, initial_variables(model, KEY, 8), expected)


class Mixed(nn.Module):
    """Layers of jaxnets and of Flax, and a parameter of its own; with `both`, in one module with jaxnets' function."""

    both: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        gain = self.param("gain", nn.initializers.normal(1.0), (3,))
        if self.both:
            gain += parameter(self, "offset", he_fan_in, (3, 3), jnp.float32)[0]
        outputs = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(images * gain))
        return Dense(5)(Conv(6, 3, name="conv")(outputs).mean(axis=(1, 2)))


@pytest.mark.parametrize("both", slow_except([True], [False, True]))
def test_a_mixed_network_draws_what_init_draws(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixed(both)
    expected = jax.jit(partial(model.init, train=False))(KEY, jnp.zeros((1, 8, 8, 3)))
    drawn: list[str] = []
    draw = initialization._draw

    def recorded(parameters: Any, *arguments: Any) -> Any:
        drawn.extend("/".join(each.path) for each in parameters)
        return draw(parameters, *arguments)

    monkeypatch.setattr(initialization, "_draw", recorded)
    actual = initial_variables(model, KEY, 8)
    assert sorted(drawn) == ([] if both else ["Dense_0/bias", "Dense_0/kernel", "conv/kernel"])
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), actual, expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Scaled("normal", variance=2.0, fan="out"), nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
        (Scaled("normal", variance=2.0), nn.initializers.variance_scaling(2.0, "fan_in", "normal")),
        (Scaled("uniform", variance=1 / 3), nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
        (Scaled("normal", factor=0.01), nn.initializers.normal(0.01)),
    ],
)
@pytest.mark.parametrize("shape", [(3, 5, 8, 6), (7, 9)])
def test_initialisers_are_those_of_jax(
    ours: Scaled, theirs: nn.initializers.Initializer, shape: tuple[int, ...]
) -> None:
    np.testing.assert_allclose(ours(KEY, shape, jnp.float32), theirs(KEY, shape, jnp.float32), rtol=1e-6)
