"""Class activation maps, against finite differences in float64 and the definition for linear heads."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inspection import class_maps, grad_cam
from jaxnets.inspection.class_maps import _step, map_stage
from jaxnets.models.features import with_features
from tests.examples.plain import PlainNetwork
from tests.examples.resnet_d import resnet18d
from tests.tiers import slow_except
from tests.training.networks import NETWORKS, SIDES

CLASSES = 5
# A stage in the middle, so that convolutions and poolings follow it.
STAGES = {
    "tiny_alexnet": "conv4",
    "tiny_googlenet": "inception4e",
    "small_resnet": "layer1",
    "small_resnext": "layer1",
}


def build(name: str, dtype: Any = jnp.float32, **options: Any) -> tuple[Any, Any, np.ndarray]:
    """A network, its variables with statistics unlike those of a new one, and two images."""
    model = NETWORKS[name](num_classes=CLASSES, dtype=dtype, **options)
    side = SIDES.get(name, 8)
    variables = jaxnets.initial_variables(model, jax.random.key(1), image_size=side)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: leaf + generator.uniform(0, 0.3, leaf.shape).astype(leaf.dtype) if leaf.ndim == 1 else leaf,
        variables,
    )
    return model, variables, generator.normal(size=(2, side, side, 3)).astype(dtype)


def channel_gradients(model: Any, variables: Any, images: Any, stage: str, classes: np.ndarray) -> np.ndarray:
    """The derivatives [N, C] of logits by a shift of a channel of the stage's output, by central differences."""
    step = 1e-5
    shape = jax.eval_shape(lambda: with_features(model, variables, images, [stage])[1][stage]).shape

    @jax.jit
    def logits(variables: Any, channel: Any, amount: Any) -> Any:
        shift = jnp.zeros(shape).at[..., channel].add(amount)
        return with_features(model, variables, images, [stage], {stage: shift})[0]

    rows = np.arange(len(images))
    differences = [
        (logits(variables, channel, step) - logits(variables, channel, -step))[rows, classes] / (2 * step)
        for channel in range(shape[-1])
    ]
    return np.stack(differences, axis=-1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", slow_except(["tiny_alexnet", "small_resnet"], STAGES))
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    # Smooth, as a maximum of equal values, such as the zeros of a ReLU, has no derivative.
    model, variables, images = build(name, jnp.float64, activation=jax.nn.silu)
    block = map_stage(model, variables, images.shape[1:3], STAGES[name])
    classes = np.array([3, 1])
    activations = np.asarray(jaxnets.features(model, variables, images, [block])[block])
    sums = channel_gradients(model, variables, images, block, classes)
    pixels = activations.shape[1] * activations.shape[2]
    expected = np.maximum(np.einsum("nhwc,nc->nhw", activations, sums / pixels), 0)
    maps = grad_cam(model, variables, images, classes, STAGES[name])
    assert maps.dtype == np.float64
    assert expected.max() > 0
    np.testing.assert_allclose(maps, expected, rtol=1e-6, atol=1e-8 * expected.max())


@pytest.mark.usefixtures("float64")
def test_the_gradient_in_a_network_from_outside_is_that_by_a_bias() -> None:
    model = PlainNetwork(num_classes=CLASSES, dtype=jnp.float64)
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(jax.random.key(0), images, train=False))
    classes, step = np.array([0, 4, 2]), 1e-6
    # The bias of the normalisation shifts a channel of its output, and nothing is added to any output.
    logits = jax.jit(partial(model.apply, train=False))
    name = "BatchNorm_1"
    bias, sums = variables["params"][name]["bias"], []
    for channel in range(len(bias)):
        sides = []
        for sign in (1, -1):
            shifted = {**variables["params"][name], "bias": bias.at[channel].add(sign * step)}
            sides.append(logits({**variables, "params": {**variables["params"], name: shifted}}, images))
        sums.append((sides[0] - sides[1])[np.arange(3), classes] / (2 * step))
    activations = np.asarray(jaxnets.features(model, variables, images, [name])[name])
    pixels = activations.shape[1] * activations.shape[2]
    expected = np.maximum(np.einsum("nhwc,cn->nhw", activations, np.array(sums) / pixels), 0)
    assert expected.max() > 0
    maps = grad_cam(model, variables, images, classes, name)
    np.testing.assert_allclose(maps, expected, rtol=1e-6, atol=1e-6 * expected.max())


@cache
def small() -> tuple[Any, Any, np.ndarray]:
    model, variables, _ = build("small_resnet")
    return model, variables, np.random.default_rng(2).normal(size=(7, 8, 8, 3)).astype(np.float32)


def test_before_a_linear_head_the_map_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the outputs of the last stage, weighted by the head's kernel."""
    model, variables, images = small()
    found = class_maps(model, variables, images, top=3, batch_size=3)
    outputs = np.asarray(jaxnets.features(model, variables, images, ["layer2"])["layer2"])
    kernel = np.asarray(variables["params"]["fc"]["kernel"])
    logits = np.asarray(model.apply(variables, images, train=False))
    for image in range(len(images)):
        assert list(found.classes[image]) == list(np.argsort(-logits[image])[:3])
        for rank, label in enumerate(found.classes[image]):
            expected = np.maximum(outputs[image] @ kernel[:, label], 0) / outputs[image, ..., 0].size
            np.testing.assert_allclose(found.maps[image, rank], expected, rtol=1e-4, atol=1e-6)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        found.probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7
    )


def test_maps_depend_on_neither_batch_size_nor_other_classes() -> None:
    model, variables, images = small()
    counts: list[int] = []
    best = grad_cam(model, variables, images, batch_size=3, done=counts.append)
    assert best.shape == (7, 4, 4)
    assert counts == [3, 6, 7]
    classes = np.asarray(model.apply(variables, images, train=False)).argmax(axis=1)
    both = grad_cam(model, variables, images, np.column_stack([np.zeros(7, int), classes]), batch_size=7)
    np.testing.assert_allclose(both[:, 1], best, rtol=1e-4, atol=1e-7)


def test_only_what_follows_the_stage_is_differentiated() -> None:
    model, variables, images = small()

    def flops(function: Any) -> float:
        analysis: Any = jax.jit(function).lower(variables, (images,)).compile().cost_analysis()
        return analysis["flops"]

    forward = flops(lambda variables, batch: model.apply(variables, batch[0], train=False))
    maps = {
        stage: flops(partial(_step, model=model, stage=stage, method="grad_cam", top=1))
        for stage in ("layer2.0", "conv1")
    }
    assert maps["layer2.0"] < 1.2 * forward
    assert maps["conv1"] > 1.5 * forward


def test_networks_from_outside() -> None:
    for model, side, stage, shape in (
        (PlainNetwork(num_classes=CLASSES), 16, "BatchNorm_2", (2, 4, 4)),
        (resnet18d(CLASSES, jnp.float32, num_filters=4), 64, "layer4.1", (2, 2, 2)),
    ):
        images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
        variables = jaxnets.initial_variables(model, jax.random.key(0), image_size=side)
        assert map_stage(model, variables, (side, side)) == stage
        assert grad_cam(model, variables, images, [0, 1]).shape == shape


def test_what_has_no_map_is_refused() -> None:
    model, variables, images = small()
    for words, options in (
        (r"no stage 'layer9'; it has conv1", {"stage": "layer9"}),
        (r"stage pool outputs no map .*; the stages with maps are conv1, layer1\.0, layer2\.0", {"stage": "pool"}),
        (r"class 5; expected one from 0 to 4", {"classes": np.full(7, 5)}),
        (r"classes are int64 \[3\]; expected integers \[7\]", {"classes": np.zeros(3, np.int64)}),
        (r"top=6; expected 1 to 5 classes", {"top": 6}),
        (r"batch_size=0", {"batch_size": 0}),
    ):
        with pytest.raises(InputError, match=words):
            class_maps(model, variables, images, **options)
    with pytest.raises(InputError, match=r"images have shape \[8, 8, 3\]; expected"):
        grad_cam(model, variables, images[0])
    with pytest.raises(InputError, match="has no stage with a map of more than one pixel for images of 1x1 px"):
        grad_cam(model, variables, images[:, :1, :1])
    with pytest.raises(InputError, match="not finite"):
        grad_cam(model, jax.tree.map(lambda leaf: leaf * np.nan, variables), images)
