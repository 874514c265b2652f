"""What a network is called with or built from wrongly is refused in one line, before anything is computed."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxnets

# Small networks of all families: their options, and an image side.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet": ("resnet20_cifar", {"stage_sizes": (1,)}, 8),
    "resnet_imagenet": ("resnet18", {"stage_sizes": (1,), "num_filters": 8}, 16),
    "resnext": ("resnext29_8x64d_cifar", {"stage_sizes": (1,)}, 8),
    "resnet_v2": ("resnet164_v2_cifar", {"stage_sizes": (1,)}, 8),
    "alexnet": ("alexnet", {"hidden_features": 8}, 64),
    "alexnet_2012": ("alexnet_2012", {"hidden_features": 8}, 64),
    "googlenet": ("googlenet", {}, 32),
    "googlenet_2014": ("googlenet_2014", {}, 32),
}


@cache
def network(name: str, classes: int = 3) -> tuple[Any, Any]:
    """A network, and its variables as shapes."""
    arch, options, side = NETWORKS[name]
    model: Any = jaxnets.create_model(arch, num_classes=classes, **options)
    return model, jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, side, side, 3)))


def refused(call: Callable[[], Any]) -> str:
    """The one line of a call that is refused."""
    with pytest.raises(jaxnets.InputError) as raised:
        call()
    (line,) = str(raised.value).splitlines()
    return line


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_calls_are_named(name: str) -> None:
    model, variables = network(name)
    side = NETWORKS[name][2]

    def calls(images: Any, **options: Any) -> list[str]:
        """The lines of init and apply."""
        init: Any = lambda: jax.eval_shape(lambda: model.init(jax.random.key(0), images, **options))  # noqa: E731
        apply: Any = lambda: jax.eval_shape(lambda v: model.apply(v, images, **options), variables)  # noqa: E731
        return [refused(init), refused(apply)]

    images = jnp.zeros((2, side, side, 3))
    for line in calls(images.transpose(0, 3, 1, 2), train=False):
        assert f"shape (2, 3, {side}, {side})" in line
        assert "[N, C, H, W]; expected [N, H, W, C]: images.transpose(0, 2, 3, 1)" in line
    assert all("train was not given; give train=True or train=False" in line for line in calls(images))
    assert all("train is 'no'" in line for line in calls(images, train="no"))
    assert all("type uint8; expected floating-point" in line for line in calls(images.astype(jnp.uint8), train=False))
    assert all("add an axis: images[None]" in line for line in calls(images[0], train=False))
    assert all("type list; expected an array" in line for line in calls([[0.5]], train=False))
    smallest = model.smallest_image
    small = jnp.zeros((2, smallest - 1, smallest, 3))
    assert all(f"the smallest that it can take is {smallest}x{smallest}" in line for line in calls(small, train=False))


@pytest.mark.parametrize("name", NETWORKS)
def test_images_and_variables_that_do_not_fit_are_named(name: str) -> None:
    model, variables = network(name)
    side = NETWORKS[name][2]

    def apply(model: Any, channels: int) -> str:
        images = jnp.zeros((2, side, side, channels))
        return refused(lambda: jax.eval_shape(partial(model.apply, train=False), variables, images))

    assert "reads 3 channels, but its inputs have 1; repeat grey images: jnp.repeat(images, 3, axis=-1)" in apply(
        model, 1
    )
    assert "reads 3 channels, but its inputs have 4; give the images" in apply(model, 4)
    other, _ = network(name, 5)
    assert "kernel is " in apply(other, 3)


def test_what_training_needs_is_named() -> None:
    model, variables = network("googlenet")
    images = jnp.zeros((2, 32, 32, 3))
    key = {"dropout": jax.random.key(0)}

    def apply(**options: Any) -> str:
        return refused(lambda: jax.eval_shape(lambda v: model.apply(v, images, train=True, **options), variables))

    assert 'mutable=["batch_stats"]' in apply(rngs=key)
    assert 'rngs={"dropout": key}' in apply(mutable=["batch_stats", "aux_logits"])
    traced = refused(lambda: jax.jit(lambda train: model.apply(variables, images, train=train))(True))
    assert "a constant where it is compiled" in traced


WRONG_OPTIONS = [
    ("resnet18", {"stages": None}, "has no option stages"),
    *[
        (arch, {"stage_sizes": sizes}, f"stage_sizes={sizes!r}; expected the number of blocks of each stage")
        for arch in ("resnet18", "resnet164_v2_cifar")
        for sizes in (None, 3, (), (2, 0), (-1, 2), (2.0, 2.0), "22")
    ],
    *[("resnext50_32x4d", {"groups": groups}, f"groups={groups}; expected a whole") for groups in (0, -2, 1.5)],
    ("resnext50_32x4d", {"num_filters": 8}, "8 filters with width_per_group=4 leaves no channel for each of its 32"),
    ("resnext50_32x4d", {"width_per_group": 0}, "width_per_group=0; expected a whole number of at least 1"),
    ("resnet50", {"num_filters": None}, "num_filters=None; expected a whole number of at least 1"),
    ("alexnet_2012", {"groups": 0}, "groups=0; expected a whole number of at least 1"),
    ("alexnet_2012", {"groups": 5}, "groups=5 must divide the 96 input"),
    ("alexnet", {"hidden_features": 0}, "hidden_features=0; expected a whole number"),
    ("alexnet", {"num_filters": 0}, "num_filters=0; expected a whole number"),
    ("alexnet_2012", {"num_filters": 3}, "groups=2 must divide the 3 input"),
    ("alexnet", {"lrn": "lrn"}, "lrn='lrn'; expected a function or a class"),
    ("googlenet", {"branch3_window": 4}, "branch3_window=4; expected an odd number"),
    *[
        (arch, {"activation": "relu"}, "activation='relu'; expected a function or a class")
        for arch in ("resnet18", "resnet164_v2_cifar", "alexnet", "alexnet_2012", "googlenet")
    ],
    ("resnet18", {"norm": "batch_norm"}, "norm='batch_norm'; expected a function or a class"),
    ("resnet18", {"block": None}, "block=None; expected a function or a class"),
    ("resnet18", {"dropout_rate": "half"}, "a dropout rate of 'half'; expected one from 0 to 1"),
    *[("resnet18", {"num_classes": count}, f"num_classes={count!r}; a network needs") for count in (0, "3", 2.5)],
]


@pytest.mark.parametrize(("arch", "options", "words"), WRONG_OPTIONS)
def test_wrong_options_are_named(arch: str, options: dict[str, Any], words: str) -> None:
    images = jnp.zeros((1, 64, 64, 3))
    line = refused(
        lambda: jax.eval_shape(lambda: jaxnets.create_model(arch, **options).init(jax.random.key(0), images, False))
    )
    assert words in line


def test_a_network_for_other_channels_can_be_built() -> None:
    model: Any = jaxnets.create_model("resnet20_cifar", stage_sizes=(1,))
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert shapes["params"]["conv1"]["kernel"].shape == (3, 3, 1, 16)
