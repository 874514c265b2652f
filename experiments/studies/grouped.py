"""Grouped convolutions and the forms of ResNeXt's block: what they cost, and whether they compute the same."""

from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.models.layers import BatchNorm, he_fan_out
from jaxnets.models.registry import create_model
from jaxnets.models.resnet import bind_layers
from jaxnets.models.resnext import EarlyConcatenationBlock, GroupedBlock, SplitTransformAddBlock
from jaxnets.ops import conv2d
from jaxnets.summary import summarize

# Table 2 of the paper: cardinality and width of a group.
TABLE = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))
FORMS = (GroupedBlock, EarlyConcatenationBlock, SplitTransformAddBlock)


@cache
def costs() -> list[dict[str, Any]]:
    """Parameters and multiply-adds of the networks of table 2, and how far their grouped convolutions are from having
    1 / groups of those of a dense one.
    """
    rows = []
    for groups, width in TABLE:
        summary = summarize(create_model(f"resnext50_{groups}x{width}d"), 224)
        total, deviation = summary.total(), 0.0
        for layer in summary.layers:
            if layer.window == 3 and layer.parameters:
                dense = layer.window**2 * layer.inputs[2] * layer.outputs[2]
                of_output = dense * prod(layer.outputs[:2])
                for own, of_dense in ((layer.parameters, dense), (layer.multiply_adds, of_output)):
                    deviation = max(deviation, abs(of_dense / own / groups - 1))
        name = f"{groups}x{width}d"
        rows.append(
            {
                "name": name,
                "parameters": total.parameters,
                "multiply_adds": total.multiply_adds,
                "deviation": deviation,
            }
        )
    return rows


def image_channels(source: Source, size: int, images: int = 2, channels: int = 16) -> np.ndarray:
    """Arrays [images, size, size, channels] from 0 to 1, of which each channel is another image of a data set."""
    pixels = Preprocessing(size, size).pixels
    planes = np.stack([pixels(source[index].image)[..., 0] for index in range(images * channels)]) / 255.0
    return planes.reshape(images, channels, size, size).transpose(0, 2, 3, 1)


def differences(inputs: np.ndarray, seed: int, groups: int = 4) -> dict[str, float]:
    """Largest differences in float64, relative to the largest value, between computations that should be equal."""
    random, channels = np.random.default_rng(seed), inputs.shape[-1]
    with jax.enable_x64(True):
        depthwise = random.normal(size=(3, 3, 1, channels))
        by_channel = conv2d(jnp.asarray(inputs), jnp.asarray(depthwise), stride=1, padding=1, groups=channels)
        grouped = random.normal(size=(3, 3, channels // groups, 2 * channels))
        by_group = conv2d(jnp.asarray(inputs), jnp.asarray(grouped), stride=1, padding=1, groups=groups)
        dense = conv2d(jnp.asarray(inputs), jnp.asarray(as_dense(grouped, groups)), stride=1, padding=1, groups=1)
        shapes = jax.eval_shape(_block(GroupedBlock).init, jax.random.key(0), inputs)
        variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) / prod(leaf.shape[:-1]) ** 0.5, shapes)
        first, *others = (jax.tree.leaves(_gradients(form)(variables, inputs)) for form in FORMS)
    return {
        "depthwise": largest(by_channel, one_channel_at_a_time(inputs, depthwise)),
        "block_diagonal": largest(by_group, dense),
        "forms": max(largest(*pair) for other in others for pair in zip(first, other, strict=True)),
    }


def largest(ours: Any, theirs: Any) -> float:
    """The largest difference between two arrays, relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def one_channel_at_a_time(inputs: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Each channel of [N, H, W, C] convolved with its own kernel of [3, 3, 1, C], with zeros around the image."""
    height, width = inputs.shape[1:3]
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    outputs = np.zeros_like(inputs)
    for channel in range(inputs.shape[3]):
        for row in range(3):
            for column in range(3):
                seen = padded[:, row : row + height, column : column + width, channel]
                outputs[..., channel] += seen * kernels[row, column, 0, channel]
    return outputs


def as_dense(kernel: np.ndarray, groups: int) -> np.ndarray:
    """A grouped convolution's kernel [..., C / groups, F] as a dense one [..., C, F], with zeros between groups."""
    *window, inputs, outputs = kernel.shape
    dense = np.zeros((*window, inputs * groups, outputs), kernel.dtype)
    for group in range(groups):
        columns = slice(group * outputs // groups, (group + 1) * outputs // groups)
        dense[..., group * inputs : (group + 1) * inputs, columns] = kernel[..., columns]
    return dense


def _block(form: type[GroupedBlock]) -> GroupedBlock:
    conv, norm = bind_layers(BatchNorm, True, None, he_fan_out, jnp.float64)
    return form(
        filters=16,
        stride=2,
        groups=4,
        width_per_group=16,
        shortcut="B",
        zero_init_residual=False,
        activation=jax.nn.relu,
        conv=conv,
        norm=norm,
    )


@cache
def _gradients(form: type[GroupedBlock]) -> Any:
    """A function of a form's variables and inputs: a loss, the outputs, and the loss's gradients by both."""

    def loss(params: Any, inputs: jax.Array, statistics: Any) -> tuple[jax.Array, jax.Array]:
        outputs, _ = _block(form).apply({"params": params, **statistics}, inputs, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(outputs)), outputs

    @jax.jit
    def run(variables: Any, inputs: jax.Array) -> Any:
        statistics = {"batch_stats": variables["batch_stats"]}
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], inputs, statistics)

    return run
