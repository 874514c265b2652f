"""What stages put out, against torchvision's own modules."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.models.features import head_inputs, head_of
from jaxnets.weights import from_torchvision, to_torchvision
from tests.references import recipe
from tests.tiers import slow_except


@cache
def references() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "references" / "transfer.npz") as file:
        return dict(file)


def build(arch: str, dtype: Any = jnp.float64, **options: Any) -> tuple[Any, Any]:
    """A network with the reference's random variables, in float64."""
    model = jaxnets.create_model(arch, num_classes=recipe.TRANSFER_CASE[2], dtype=dtype).clone(**options)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.bool_), like)
    shapes = {name: array.shape for name, array in to_torchvision(arch, empty).items()}
    return model, from_torchvision(arch, recipe.random_state_dict(shapes.items()), like)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arch", slow_except(["resnet18"], recipe.FEATURES))
def test_features_are_torchvisions(arch: str) -> None:
    pixels, count, _ = recipe.TRANSFER_CASE
    model, variables = build(arch)
    stages = list(recipe.FEATURES[arch].values())

    @jax.jit
    def run(variables: Any, images: Any) -> list[jax.Array]:
        outputs = jaxnets.features(model, variables, images, stages)
        assert list(outputs) == stages
        return list(outputs.values())

    for stage, array in zip(stages, run(variables, recipe.random_images(pixels, count)), strict=True):
        expected = references()[f"features/{arch}/{stage}"]
        assert np.abs(recipe.fingerprint(stage, array) - expected).max() <= 1e-9 * expected[0], stage


@pytest.mark.parametrize(
    "arch",
    slow_except(["googlenet"], ["alexnet", "alexnet_2012", "googlenet", "resnet50", "resnet164_v2_cifar"]),
)
def test_stages_hold_every_module_once_and_end_with_the_classifier(arch: str) -> None:
    model: Any = jaxnets.create_model(arch, num_classes=7)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    modules = [module for names in model.stages.values() for module in names]
    assert sorted(modules) == sorted(variables["params"])
    assert variables["params"][head_of(model)]["kernel"].shape[1] == 7
    outputs = jax.eval_shape(
        partial(jaxnets.features, model, stages=list(model.stages)), variables, jnp.zeros((2, 64, 64, 3))
    )
    assert set(outputs) == set(model.stages)
    inputs = outputs[head_inputs(model)]
    assert inputs.shape == (2, variables["params"][head_of(model)]["kernel"].shape[0])


def test_nothing_beyond_the_last_stage_is_computed() -> None:
    model = jaxnets.create_model("resnet18", num_classes=7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def flops(stage: str) -> float:
        function = jax.jit(partial(jaxnets.features, model, stages=[stage]))
        analysis: Any = function.lower(variables, images).compile().cost_analysis()
        return analysis["flops"]

    assert flops("layer1") < 0.5 * flops("fc")


def test_an_unknown_stage_is_refused() -> None:
    model = jaxnets.create_model("resnet18", num_classes=7)
    with pytest.raises(InputError, match=r"ResNet has no stage 'layer5'; it has conv1, layer1\.0, .*, pool, fc"):
        jaxnets.features(model, {}, jnp.zeros((1, 64, 64, 3)), ["layer5"])
