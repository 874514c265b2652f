"""Folded networks against the networks that they were."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inference import fold
from jaxnets.models.initialization import initial_variables
from jaxnets.models.layers import BatchNorm, Conv, Dense, convolved
from jaxnets.models.resnet import Block
from jaxnets.ops import conv2d
from tests.tiers import slow_except

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
    """A network, variables as if it were trained, and images."""
    size, options = CASES[name]
    model = jaxnets.create_model(name, num_classes=7, dtype=dtype, **options)
    images = jax.random.normal(jax.random.key(1), (3, size, size, 3), dtype)
    variables = initial_variables(model, jax.random.key(0), size)
    return model, trained_like(variables), images


def trained_like(variables: Any) -> dict[str, Any]:
    """With statistics as of a trained network: away from 0 and 1."""
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        low, high = {"scale": (0.5, 1.0), "bias": (-0.2, 0.2), "mean": (-0.3, 0.3), "var": (0.5, 2.0)}.get(
            path[-1].key, (None, None)
        )
        return leaf if low is None else jnp.asarray(random.uniform(low, high, leaf.shape), leaf.dtype)

    drawn: dict[str, Any] = jax.tree.map_with_path(draw, variables)
    return drawn


@pytest.mark.parametrize("name", slow_except(("plain20_cifar",), CASES))
def test_logits_are_the_same(name: str) -> None:
    model, variables, images = network(name)
    folded, weights, unfolded = fold(model, variables)
    assert not {"aux1", "aux2"} & set(weights["params"])
    # A norm before a block's first convolution, or after the last block, has no convolution to go into.
    blocks = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in (0, "rest")]
    remaining = {"bn1", *(f"{block}/bn1" for block in blocks)} if name == "resnet1001_v2_cifar" else set()
    assert set(unfolded) == remaining
    assert ("batch_stats" in weights) == bool(unfolded)
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(weights, images)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", slow_except(["resnext50_32x4d"], ["resnext50_32x4d", "resnet1001_v2_cifar"]))
@pytest.mark.slow
def test_only_rounding_differs(name: str) -> None:
    model, variables, images = network(name, jnp.float64)
    folded, weights, _ = fold(model, variables)
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(weights, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
def test_weights_may_be_short() -> None:
    model, variables, images = network("resnet18")
    folded, weights, _ = fold(model, variables, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.jit(partial(folded.apply, train=False))(weights, images)
    assert logits.dtype == jnp.bfloat16
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(logits.astype(jnp.float32), expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_other_norms_remain() -> None:
    def group_norm(*, train: bool, axis_name: str | None, **options: Any) -> nn.Module:
        return nn.GroupNorm(num_groups=4, **options)

    model: Any = jaxnets.create_model("resnet20_cifar", num_filters=4, stage_sizes=(1,), norm=group_norm)
    variables = initial_variables(model, jax.random.key(0), 8)
    folded, weights, _ = fold(model, variables)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_array_equal(jax.jit(partial(folded.apply, train=False))(weights, images), expected)


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        ("var", -1.0),
        pytest.param("kernel", np.inf, marks=pytest.mark.slow),
        pytest.param("var", np.nan, marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_is_refused(leaf: str, value: float) -> None:
    model, variables, _ = network("resnet18")
    layer = variables["batch_stats"]["bn1"] if leaf == "var" else variables["params"]["conv1"]
    layer[leaf] = layer[leaf].at[..., 3].set(value)
    with pytest.raises(InputError, match=r"conv1/(kernel|bias) has values that are not finite"):
        fold(model, variables)


class Wired(nn.Module):
    """A network of one block, whose layers are called and wired as a test says, with all pairs declared."""

    wiring: str
    num_classes: int = 3
    dtype: Any = jnp.float32
    conv_norm_pairs: ClassVar = (("conv1", "bn1"), ("conv_a", "bn_a"), ("conv_b", "bn_b"))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = partial(Conv, 4, 3, padding=1)
        norm = partial(BatchNorm, train)
        x = conv(name="conv1")(images)
        match self.wiring:
            case "pre-activation":  # declared as a pair, but the norm comes first
                x = Conv(3, 3, padding=1, name="conv_a")(images)
                x = conv(name="conv_b")(nn.relu(norm(name="bn_b")(x)))
            case "unlike names":
                x = convolved(conv(name="conv_a"), norm(name="bn_a"), x, nn.relu)
            case "read twice":
                y = conv(name="conv_a")(x)
                x = y + norm(name="bn_a")(y)
            case "activation between":
                x = norm(name="bn_a")(conv(name="conv_a")(x, nn.relu))
            case "sum between":
                x = norm(name="bn_a")(conv(name="conv_a")(x) + x)
            case "shared convolution":
                shared = conv(name="conv_a")
                x = norm(name="bn_a")(shared(shared(x)))
            case "shared norm":
                shared = norm(name="bn_a")
                x = shared(shared(conv(name="conv_a")(x)))
            case "another operation":
                x = norm(name="bn_a")(conv(op=_standardised, name="conv_a")(x))
        return Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


def _standardised(inputs: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    return conv2d(inputs, kernel / jnp.sqrt((kernel**2).sum(axis=(0, 1, 2))), **options)


def folds(model: Any, side: int = 8) -> tuple[str, ...]:
    """Asserts that a folded network computes the same, and returns the norms that remain."""
    variables = trained_like(initial_variables(model, jax.random.key(0), side))
    images = jax.random.normal(jax.random.key(1), (3, side, side, 3))
    folded, weights, unfolded = fold(model, variables)
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(weights, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return unfolded


@pytest.mark.parametrize(
    ("wiring", "unfolded"),
    {
        "unlike names": (),
        "pre-activation": ("bn_b",),
        "read twice": ("bn_a",),
        "activation between": ("bn_a",),
        "sum between": ("bn_a",),
        "shared convolution": ("bn_a",),
        "shared norm": ("bn_a",),
        "another operation": ("bn_a",),
    }.items(),
)
def test_a_wrong_declaration_is_never_folded(wiring: str, unfolded: tuple[str, ...]) -> None:
    assert folds(Wired(wiring)) == unfolded


class Undeclared(Block):
    """A block with layers of other names, which declares no pairs."""

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        conv = self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv_a")
        return convolved(conv, self.norm(name="bn_a"), inputs, self.activation, self.added(inputs))


class PreActivation(Block):
    """A pre-activation block whose layers have the names of a ResNet's."""

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        x = self.activation(self.norm(name="bn1")(inputs))
        return self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv1")(x)


@pytest.mark.fast
@pytest.mark.parametrize(("block", "name"), [(Undeclared, "bn_a"), (PreActivation, "bn1")])
def test_what_a_block_does_not_declare_is_left_and_named(block: Any, name: str) -> None:
    model = jaxnets.create_model("resnet20_cifar", num_classes=3, num_filters=4, stage_sizes=(1, 1), block=block)
    assert folds(model) == (f"layer1_0/{name}", f"layer2_0/{name}")


@pytest.mark.parametrize(
    ("module", "unfolded"),
    [
        ("se_resnet:se_resnet20", 0),
        pytest.param("resnet_d:resnet18d", 0, marks=pytest.mark.slow),
        ("plain:PlainNetwork", 3),
    ],
)
def test_networks_from_outside(module: str, unfolded: int) -> None:
    options = {} if "Plain" in module else {"num_filters": 8}
    model = jaxnets.create_model(f"tests.examples.{module}", num_classes=5, **options)
    assert len(folds(model, 32)) == unfolded
