"""Options of networks as text and as JSON."""

import json
from dataclasses import fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxnets import InputError, create_model, register_model
from jaxnets.models import registry
from jaxnets.models.layers import BatchNorm, he_fan_in
from jaxnets.models.options import assignments, checked_options, model_with, options_of
from jaxnets.models.resnet import BasicBlock, Bottleneck
from jaxnets.ops import local_response_norm

# What is typed, what config.json holds, and the network's argument.
TYPED: dict[str, list[tuple[str, Any, Any]]] = {
    "resnet18": [
        ("activation=sigmoid", "sigmoid", nn.sigmoid),
        ("norm=none", "none", None),
        ("shortcut=C", "C", "C"),
        ("shortcut=none", "none", "none"),
        ("stem=cifar", "cifar", "cifar"),
        ("stage_sizes=1,2", [1, 2], (1, 2)),
        ("block=bottleneck", "bottleneck", Bottleneck),
        ("zero_init_residual=True", True, True),
        ("dropout_rate=0.25", 0.25, 0.25),
        ("kernel_init=he_fan_in", "he_fan_in", he_fan_in),
    ],
    "resnext29_8x64d_cifar": [
        ("groups=4", 4, 4),
        ("width_per_group=8", 8, 8),
        ("norm=batch_norm", "batch_norm", BatchNorm),
    ],
    "resnet164_v2_cifar": [("repeated_blocks=yes", True, True), ("activation=tanh", "tanh", nn.tanh)],
    "alexnet": [("lrn=local_response_norm", "local_response_norm", local_response_norm), ("hidden_features=8", 8, 8)],
    "alexnet_2012": [("lrn=none", "none", None), ("groups=1", 1, 1)],
    "googlenet": [
        ("aux_logits=false", False, False),
        ("transform_input=on", True, True),
        ("aux_pool_window=none", None, None),
        ("aux_pool_window=5", 5, 5),
        ("bias_init=torch", "torch", None),
    ],
    "googlenet_2014": [("lrn=none", "none", None)],
}  # fmt: skip


@pytest.mark.parametrize(("arch", "case"), [(arch, case) for arch, cases in TYPED.items() for case in cases])
def test_a_text_becomes_an_argument(arch: str, case: tuple[str, Any, Any]) -> None:
    text, stored, argument = case
    name = text.partition("=")[0]
    values = checked_options(arch, assignments([text]))
    assert values == {name: stored}
    assert type(values[name]) is type(stored)
    again = json.loads(json.dumps(values))
    assert checked_options(arch, again) == values
    assert model_with(arch, again, num_classes=5) == create_model(arch, num_classes=5, **{name: argument})


def test_batch_normalisation_of_googlenet_keeps_its_epsilon() -> None:
    model: Any = model_with("googlenet_2014", {"norm": "batch_norm"})
    assert model.norm.keywords == {"epsilon": 1e-3}


def test_every_field_of_a_network_is_an_option_or_follows_from_elsewhere() -> None:
    def choices(name: str) -> set[str]:
        model: Any = create_model(name)
        return {field.name for field in fields(model)} - {"parent", "name", "num_classes", "dtype", "axis_name"}

    for name in ("resnet18", "resnet164_v2_cifar", "alexnet", "alexnet_2012", "googlenet"):
        assert set(options_of(name)) == choices(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activation=sigmoit", ["activation=sigmoit; expected relu, ", "did you mean sigmoid?"]),
        ("grups=2", ["resnet18 has no option grups; it has stage_sizes, block, ", "did you mean groups?"]),
        ("groups=2.5", ["groups=2.5; expected a whole number"]),
        ("groups=many", ["groups=many; expected a whole number"]),
        ("stage_sizes=1,x", ["stage_sizes=1,x; expected whole numbers with commas between"]),
        ("zero_init_residual=2", ["zero_init_residual=2; expected true or false"]),
        ("shortcut=D", ["shortcut=D; expected A, B, C, none"]),
        ("num_classes=2", ["it follows from the data"]),
        ("dtype=bfloat16", ["it is given as --dtype"]),
        ("activation", ["--set activation; expected NAME=VALUE"]),
    ],
)
def test_what_is_no_option_or_no_value_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        checked_options("resnet18", assignments([text]))
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_option_that_is_given_twice_is_refused() -> None:
    assert assignments(["groups=2", "groups=2"]) == {"groups": "2"}
    with pytest.raises(InputError, match="--set groups is given as 2 and as 4"):
        assignments(["groups=2", "groups=4"])


class Own(nn.Module):
    num_classes: int
    depth: int = 2
    activation: str = "soft"
    pool: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


def own(num_classes: int, dtype: Any, factor: float = 1.0) -> Own:
    return Own(num_classes, depth=round(2 * factor), dtype=dtype)


def test_networks_from_outside_have_their_fields_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", {name: dict(models) for name, models in registry._FAMILIES.items()})
    register_model("own", partial(own, factor=2))
    assert set(options_of("own")) == {"depth", "activation", "factor"}
    values = checked_options("own", {"factor": "3", "activation": "hard"})
    assert model_with("own", values) == Own(1000, 6, "hard")


def test_the_forms_of_a_block_are_of_networks_that_take_them() -> None:
    assert options_of("resnet18")["block"].named["basic"] is BasicBlock
    with pytest.raises(InputError, match="expected basic, bottleneck"):
        checked_options("resnet18", {"block": "other"})
