"""Filters and feature maps, against the variables and `jaxnets.features`; and the pictures of both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inspection import coloured, feature_maps, filter_pictures, first_filters, grid, overlay, resize_maps
from tests.examples.plain import PlainNetwork
from tests.examples.resnet_d import resnet18d
from tests.training.networks import NETWORKS
from tests.training.tiny import Tiny


def shapes_filled(model: Any, side: int) -> Any:
    """Variables of random numbers, without the initialisation."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(images.shape), train=False))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.uniform(0.01, 0.1, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("model", "path", "shape"),
    [
        (jaxnets.create_model("alexnet_2012", num_classes=3, hidden_features=4), ("conv1",), (96, 11, 11, 3)),
        (jaxnets.create_model("googlenet", num_classes=3), ("conv1", "conv"), (64, 7, 7, 3)),
        (jaxnets.create_model("resnext29_8x64d_cifar", num_classes=3), ("conv1",), (64, 3, 3, 3)),
        (jaxnets.create_model("resnet164_v2_cifar", num_classes=3), ("conv1",), (16, 3, 3, 3)),
        (resnet18d(3, jnp.float32, num_filters=8), ("stem", "conv1"), (4, 3, 3, 3)),
        (PlainNetwork(num_classes=3), ("Conv_0",), (8, 3, 3, 3)),
        (Tiny(), ("conv1",), (4, 3, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, jax.Array | object) else None,
)
def test_first_filters_are_the_kernel_that_reads_the_image(model: Any, path: Any, shape: Any) -> None:
    variables = shapes_filled(model, 64)
    filters = first_filters(model, variables)
    kernel = variables["params"]
    for name in (*path, "kernel"):
        kernel = kernel[name]
    assert filters.shape == shape
    for number in range(len(filters)):
        assert (filters[number] == kernel[..., number]).all()


def test_feature_maps_are_the_features() -> None:
    model = NETWORKS["small_resnet"](num_classes=3)
    variables = shapes_filled(model, 8)
    images = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype(np.float32)
    stages = ["conv1", "layer2", "pool"]
    maps = feature_maps(model, variables, images, stages, batch_size=2)
    expected = jaxnets.features(model, variables, images, stages)
    assert list(maps) == stages
    for stage in stages:
        np.testing.assert_allclose(maps[stage], expected[stage], rtol=1e-5, atol=1e-6)


def test_branches_of_inception_come_one_by_one() -> None:
    model = NETWORKS["tiny_googlenet"](num_classes=3)
    variables = shapes_filled(model, 16)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    maps = feature_maps(model, variables, images, "inception3a")
    names = ["branch1", "branch2_1", "branch3_1", "branch4_1"]
    assert list(maps) == ["inception3a", *(f"inception3a/{name}" for name in names)]
    # Table 1 of the paper.
    assert [maps[f"inception3a/{name}"].shape[-1] for name in names] == [64, 128, 32, 32]
    joined = np.concatenate([maps[f"inception3a/{name}"] for name in names], axis=-1)
    np.testing.assert_array_equal(joined, maps["inception3a"])


def test_an_unknown_stage_is_refused() -> None:
    model = PlainNetwork(num_classes=3)
    with pytest.raises(InputError, match="has no stage 'conv7'"):
        feature_maps(model, {}, np.zeros((1, 8, 8, 3)), "conv7")


def test_pictures() -> None:
    filters = np.zeros((3, 2, 2, 3))
    filters[1, 0, 0] = (1, -1, 0.5)
    pictures = filter_pictures(filters)
    assert (pictures[0] == 128).all()
    assert list(pictures[1, 0, 0]) == [255, 0, 191]
    assert filter_pictures(np.ones((1, 2, 2, 1)))[0].tolist() == np.full((2, 2, 3), 255).tolist()
    sheet = grid(pictures, 2)
    assert sheet.shape == (5, 5, 3)
    assert (sheet[:2, 3:] == pictures[1]).all()
    assert (sheet[3:, :2] == pictures[2]).all()
    assert (sheet[2] == 255).all()
    assert (sheet[3:, 3:] == 255).all()


def test_an_overlay_is_bright_where_the_map_is() -> None:
    pixels = np.full((16, 16, 3), 100, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    picture = overlay(pixels, heat).astype(int).sum(axis=-1)
    assert np.unravel_index(picture.argmax(), picture.shape) in {(0, 15), (0, 14), (1, 15), (1, 14)}
    assert picture[15, 0] < 150
    assert (overlay(pixels, np.zeros((4, 4))) == overlay(pixels, np.zeros((4, 4)))[0, 0]).all()
    with pytest.raises(InputError, match=r"pixels are float64 \[4, 4\]; expected uint8 \[H, W, 3\]"):
        overlay(np.zeros((4, 4)), heat)


def test_colours_become_lighter_with_the_value() -> None:
    lightness = coloured(np.linspace(0, 1, 64)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert (coloured(-np.ones(3)) == coloured(np.zeros(3))).all()


def test_maps_are_resized_bilinearly() -> None:
    ramp = np.broadcast_to(np.arange(4.0), (2, 4, 4))
    resized = resize_maps(ramp, 8, 8)
    assert resized.shape == (2, 8, 8)
    # Pixel centres lie at (i + 0.5) / 2 - 0.5; the border is repeated.
    np.testing.assert_allclose(resized[1, 3], np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3), atol=1e-6)
