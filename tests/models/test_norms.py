"""Whose statistics norms use in training, for jaxnets' and Flax's BatchNorm, against numpy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.models.layers import BatchNorm
from jaxnets.models.norms import check_norms, with_norms
from jaxnets.training.batch_norm import with_batch_norm
from tests.tiers import slow_except

REPLICAS, IMAGES = 2, 4


class Normed(nn.Module):
    """Two norms in a row, of jaxnets or of Flax: [N, H, W, 3] -> [N, 3]."""

    flax: bool
    axis_name: str | None = None
    num_classes: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        make: Any = partial(BatchNorm, train=train)
        if self.flax:
            make = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = make(axis_name=self.axis_name, name="first")(images)
        return make(axis_name=self.axis_name, name="second")(x + x**2).mean(axis=(1, 2))


class WithoutAxis(nn.Module):
    """Dropout alone, in a network that knows of no replicas."""

    num_classes: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.Dropout(0.5, deterministic=not train)(images)


def batches() -> np.ndarray:
    return np.random.default_rng(0).normal(2, 3, (REPLICAS, IMAGES, 2, 2, 3)).astype(np.float32)


def variables_of(model: Any) -> Any:
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), batches()[0])
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype), shapes)


def means(model: Any, variables: Any) -> np.ndarray:
    """The running means of the first norm after a step of each replica, without their earlier values."""

    def step(images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]["first"]["mean"]

    before = np.asarray(variables["batch_stats"]["first"]["mean"])
    return (np.asarray(jax.vmap(step, axis_name="replicas")(batches())) - 0.9 * before) / 0.1


@pytest.mark.parametrize("flax", slow_except([False], [False, True]))
def test_each_replica_or_all_of_them(flax: bool) -> None:
    variables = variables_of(Normed(flax))
    local = means(with_batch_norm(Normed(flax), "local", "replicas"), variables)
    np.testing.assert_allclose(local, batches().mean((1, 2, 3)), rtol=1e-5)
    of_all = means(with_batch_norm(Normed(flax), "synchronised", "replicas"), variables)
    np.testing.assert_allclose(of_all, np.tile(batches().mean((0, 1, 2, 3)), (REPLICAS, 1)), rtol=1e-5)


@pytest.mark.parametrize("flax", [False, True])
def test_frozen_modules_keep_their_statistics_and_use_them(flax: bool) -> None:
    model, images = Normed(flax), batches()[0]
    variables = variables_of(model)
    apply = {"train": True, "mutable": ["batch_stats"]}
    outputs, updates = with_norms(model, frozen=None).apply(variables, images, **apply)
    np.testing.assert_allclose(outputs, model.apply(variables, images, train=False), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    _, updates = with_norms(model, frozen=frozenset({"first"})).apply(variables, images, **apply)
    after, before = updates["batch_stats"], variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, after["first"], before["first"])
    assert (after["second"]["mean"] != before["second"]["mean"]).all()
    # Also together with the statistics of each replica.
    both = with_norms(with_batch_norm(model, "local", "replicas"), frozen=frozenset({"first"}))
    np.testing.assert_allclose(means(both, variables), np.tile(before["first"]["mean"], (2, 1)), rtol=1e-5)


@pytest.mark.parametrize("flax", [False, True])
def test_moments_are_those_of_the_batch(flax: bool) -> None:
    model, images = with_norms(Normed(flax), moments=True), batches()[0]
    _, updates = model.apply(variables_of(Normed(flax)), images, train=True, mutable=["batch_stats"])
    moments = updates["batch_stats"]["first"]
    np.testing.assert_allclose(moments["mean"], images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(moments["var"], images.var((0, 1, 2)), rtol=1e-4)


def test_replicas_that_a_network_does_not_know_drop_apart() -> None:
    model = with_batch_norm(WithoutAxis(), "local", "replicas")

    def step(images: jax.Array) -> Any:
        return model.apply({}, images, train=True, rngs={"dropout": jax.random.key(0)})

    dropped = np.asarray(jax.vmap(step, axis_name="replicas")(batches())) == 0
    assert dropped.any()
    assert (dropped[0] != dropped[1]).any()


def test_what_is_no_batch_norm_is_refused() -> None:
    class Own(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, train: bool) -> jax.Array:
            return images - self.variable("batch_stats", "mean", jnp.zeros, (3,)).value

    with pytest.raises(InputError, match="mine has no batch normalisation"):
        check_norms(WithoutAxis(), {}, "mine")
    model = Own()
    with pytest.raises(InputError, match=r"is a Own; --batch-norm"):
        check_norms(model, {"mean": jnp.zeros(3)}, "mine")
    with pytest.raises(InputError, match="WithoutAxis has no field axis_name"):
        with_batch_norm(WithoutAxis(), "synchronised", None)
