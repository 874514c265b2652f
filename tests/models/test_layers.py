"""Dropout: what it drops, how often, and that it does not depend on how a batch is spread over devices."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxnets
from jaxnets.models.layers import Dropout
from tests.tiers import slow_except

KEY = jax.random.key(7)
REPLICAS = "replicas"


def drop(inputs: jax.Array, seed: int = 0, **options: Any) -> jax.Array:
    module = Dropout(**{"train": True, **options})
    return module.apply({}, inputs, rngs={"dropout": jax.random.key(seed)})


def dropouts(name: str, **options: Any) -> list[tuple[str, Dropout]]:
    """The dropouts that training goes through, with their places, in order; found without computing."""
    model = jaxnets.create_model(name, num_classes=5, **options)
    seen = []

    def record(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            seen.append(("/".join(context.module.path), context.module.clone(parent=None)))
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda: model.init({"params": KEY, "dropout": KEY}, jnp.zeros((2, 64, 64, 3)), train=True),
        )
    return seen


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.8])
def test_as_much_is_dropped_as_asked_and_the_rest_scaled(rate: float, whole: bool) -> None:
    inputs = jax.random.uniform(KEY, (2000, 2, 3, 5), minval=1, maxval=2)
    outputs = np.asarray(drop(inputs, rate=rate, whole_images=whole))
    kept = outputs != 0
    np.testing.assert_allclose(outputs, np.where(kept, inputs / (1 - rate), 0), rtol=1e-6)
    fates = kept.reshape(2000, -1)
    if whole:
        np.testing.assert_array_equal(fates, np.broadcast_to(fates[:, :1], fates.shape))
        fates = fates[:, :1]
    # Over all, and of each unit over the images, by 5 standard deviations.
    spread = (rate * (1 - rate)) ** 0.5
    assert abs(fates.mean() - (1 - rate)) < 5 * spread / fates.size**0.5
    assert np.abs(fates.mean(0) - (1 - rate)).max() < 5 * spread / 2000**0.5
    if not whole:
        # Neither images nor units share a fate.
        assert np.abs(np.corrcoef(fates, rowvar=False) - np.eye(30)).max() < 0.15
        assert len(np.unique(fates, axis=0)) > 100


def test_the_expected_value_is_the_input() -> None:
    inputs = jnp.arange(1.0, 4.0)[None, :]
    outputs = jax.jit(jax.vmap(lambda seed: drop(inputs, seed, rate=0.6)[0]))(jnp.arange(5000))
    np.testing.assert_allclose(outputs.mean(0), inputs[0], rtol=5 * 1.5**0.5 / 5000**0.5)


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate": 0.5, "train": False}])
@pytest.mark.parametrize("whole", [False, True])
def test_without_a_rate_or_training_nothing_is_drawn(options: dict[str, Any], whole: bool) -> None:
    inputs = jnp.ones((2, 3))
    module = Dropout(**{"train": True, "axis_name": REPLICAS, "whole_images": whole, **options})
    # Neither a key nor an axis.
    assert module.apply({}, inputs) is inputs


def test_all_can_be_dropped() -> None:
    total, gradient = jax.value_and_grad(lambda x: drop(x, rate=1.0).sum())(jnp.ones((2, 3), jnp.bfloat16))
    assert (total, gradient.dtype) == (0, jnp.bfloat16)
    assert not gradient.any()


def test_the_gradient_is_dropped_alike() -> None:
    inputs = jax.random.normal(KEY, (8, 20)).astype(jnp.bfloat16)
    outputs, pull = jax.vjp(lambda x: drop(x, rate=0.5), inputs)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pull(jnp.ones_like(outputs))[0], 2.0 * (outputs != 0))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(jaxnets.InputError, match=f"dropout rate of {rate}"):
        drop(jnp.ones((1, 2)), rate=rate)


@pytest.mark.parametrize("whole", slow_except([True], [False, True]))
def test_an_image_fares_the_same_on_any_number_of_devices(whole: bool) -> None:
    inputs = jnp.ones((24, 20))
    module = partial(drop, rate=0.5, whole_images=whole)
    expected = module(inputs)
    assert len(np.unique(expected, axis=0)) == (2 if whole else 24)
    for replicas in (4, 24):
        shards = jax.vmap(partial(module, axis_name=REPLICAS), axis_name=REPLICAS)(inputs.reshape(replicas, -1, 20))
        np.testing.assert_array_equal(shards.reshape(24, 20), expected)
    # And when the batch grows.
    np.testing.assert_array_equal(module(inputs[:5]), expected[:5])
    assert not np.array_equal(module(inputs, seed=1), expected)


def test_a_network_does_the_same_on_four_devices() -> None:
    images = jax.random.normal(KEY, (8, 4, 4, 3))
    options = {"num_filters": 4, "stage_sizes": (1,), "stochastic_depth_rate": 0.8, "dropout_rate": 0.5}
    several = jaxnets.create_model("resnet20_cifar", num_classes=5, axis_name=REPLICAS, **options)
    # Outside of the axis, in training too.
    shapes = jax.eval_shape(lambda: several.init({"params": KEY, "dropout": KEY}, images[:2], train=True))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32), shapes)

    def logits(images: jax.Array, model: nn.Module) -> jax.Array:
        return model.apply(variables, images, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])[0]

    whole, parts = jax.jit(
        lambda: (
            logits(images, several.clone(axis_name=None)),
            jax.vmap(partial(logits, model=several), axis_name=REPLICAS)(images.reshape(4, 2, 4, 4, 3)),
        )
    )()
    np.testing.assert_allclose(parts.reshape(8, 5), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_every_dropout_of_a_network_knows_the_axis() -> None:
    for name, places in {
        "alexnet": ["Dropout_0", "Dropout_1"],
        "alexnet_2012": ["Dropout_0", "Dropout_1"],
        "googlenet": ["aux1/Dropout_0", "aux2/Dropout_0", "Dropout_0"],
    }.items():
        seen = dropouts(name, axis_name=REPLICAS)
        assert [place for place, _ in seen] == places
        assert all(module.axis_name == REPLICAS and module.train and module.rate > 0 for _, module in seen)


@pytest.mark.parametrize("name", ["resnet18", "resnet164_v2_cifar"])
def test_residual_networks_drop_before_their_last_layer(name: str) -> None:
    *blocks, (place, module) = dropouts(name, axis_name=REPLICAS, dropout_rate=0.3, stage_sizes=(1, 1))
    assert (place, module.rate, module.whole_images, module.train) == ("Dropout_0", 0.3, False, True)
    assert all(block.rate == 0 for _, block in blocks)
    assert {module.axis_name for _, module in [*blocks, (place, module)]} == {REPLICAS}
    # All of the last layer's inputs, in training alone.
    model = jaxnets.create_model(name, num_classes=5, stage_sizes=(1,), num_filters=4, dropout_rate=1.0)
    images = jax.random.normal(KEY, (2, 4, 4, 3))
    shapes = jax.eval_shape(lambda: model.init(KEY, images, train=False))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)

    @jax.jit
    def logits() -> list[jax.Array]:
        return [model.apply(variables, images, train=train, mutable=["batch_stats"])[0] for train in (True, False)]

    dropped, still = logits()
    np.testing.assert_array_equal(dropped, np.ones((2, 5)))
    assert (np.asarray(still) != 1).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20_cifar", {"stochastic_depth_rate": 0.5, "dropout_rate": 0.5}),
        ("resnet164_v2_cifar", {"stochastic_depth_rate": 0.5, "dropout_rate": 0.5}),
        ("alexnet", {"dropout_rate": 0.1, "axis_name": REPLICAS}),
    ],
)
def test_what_is_dropped_changes_no_parameters(name: str, options: dict[str, Any]) -> None:
    def shapes(**options: Any) -> Any:
        sizes = {} if name == "alexnet" else {"stage_sizes": (1, 1)}
        model = jaxnets.create_model(name, num_classes=5, **sizes, **options)
        return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))

    assert flatten_dict(shapes()) == flatten_dict(shapes(**options))


@pytest.mark.parametrize("name", ["resnet18", "resnet164_v2_cifar", "resnext50_32x4d"])
def test_residual_networks_need_no_key_unless_they_drop(name: str) -> None:
    model = jaxnets.create_model(name, num_classes=5, stage_sizes=(1,))

    def apply(model: nn.Module) -> None:
        variables = model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)
        model.apply(variables, jnp.zeros((2, 32, 32, 3)), train=True, mutable=["batch_stats"])

    jax.eval_shape(partial(apply, model))
    for option in ("stochastic_depth_rate", "dropout_rate"):
        with pytest.raises(Exception, match="dropout"):
            jax.eval_shape(partial(apply, model.clone(**{option: 0.5})))
