"""Layout: [N, C, H, W], as in PyTorch, and [N, H, W, C], as in JAX, describe the same network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.studies.data import arrays
from experiments.studies.drawing import new_figure
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study
from jaxnets.models.registry import create_model
from jaxnets.report.figures import COLOURS

_CHANNELS, _SIDE = "RGB", 2


@dataclass(frozen=True)
class Settings:
    """The images that both networks classify."""

    images: int = 4
    image_size: int = 224


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """The largest difference between the logits of AlexNet in either layout, in float64, on real images."""
    pixels = arrays(lab.dataset.train)[0][: settings.images]
    pixels = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=3)
    with jax.enable_x64(True):
        shape = (len(pixels), settings.image_size, settings.image_size, 3)
        images = jax.image.resize(jnp.asarray(pixels / 255.0), shape, "bilinear")
        model = create_model("alexnet", dtype=jnp.float64)
        variables = jax.jit(model.init, static_argnames="train")(jax.random.key(lab.seed), images[:1], train=False)
        logits = np.asarray(jax.jit(model.apply, static_argnames="train")(variables, images, train=False))
        tensors = channels_first(variables["params"])
        forward = jax.jit(alexnet_channels_first)
        other = np.asarray(forward(tensors, images.transpose(0, 3, 1, 2)))
        # The same numbers read in the wrong order.
        mistaken = np.asarray(forward(tensors, images.reshape(len(images), 3, *images.shape[1:3])))
    scale = np.abs(logits).max()
    return {
        "difference": float(np.abs(logits - other).max() / scale),
        "mistaken": float(np.abs(logits - mistaken).max() / scale),
    }


def channels_first(params: Mapping[str, Any]) -> dict[str, Any]:
    """AlexNet's parameters as PyTorch has them: kernels [out, in, h, w] and [out, in]."""
    tensors = {}
    for name, layer in params.items():
        kernel = layer["kernel"]
        if name == "fc1":  # reads the last maps, flattened: [h, w, c] here, [c, h, w] there
            kernel = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        tensors[name] = {"weight": kernel.transpose(order), "bias": layer["bias"]}
    return tensors


def alexnet_channels_first(tensors: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """torchvision's AlexNet, written for images [N, 3, H, W]; logits [N, K]."""

    def conv(x: jax.Array, name: str, stride: int = 1, padding: int = 1) -> jax.Array:
        weight, bias = tensors[name]["weight"], tensors[name]["bias"]
        x = lax.conv_general_dilated(
            x, weight, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return jax.nn.relu(x + bias[:, None, None])

    def pool(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "VALID")

    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ tensors[name]["weight"].T + tensors[name]["bias"]

    x = pool(conv(images, "conv1", stride=4, padding=2))
    x = pool(conv(x, "conv2", padding=2))
    x = pool(conv(conv(conv(x, "conv3"), "conv4"), "conv5"))
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(dense(x, "fc1"))
    return dense(jax.nn.relu(dense(x, "fc2")), "fc3")


def _draw(measured: Sequence[Measured]) -> list[Drawing]:
    figure, axes = new_figure(rows=2, height=0.9, width=5.2)
    image = np.array(
        [[[f"{channel}{row}{column}" for channel in _CHANNELS] for column in range(_SIDE)] for row in range(_SIDE)]
    )
    for axis, name, numbers in zip(
        axes, ("[N, C, H, W]", "[N, H, W, C]"), (image.transpose(2, 0, 1), image), strict=True
    ):
        for place, text in enumerate(numbers.reshape(-1)):
            colour = (COLOURS[1], COLOURS[2], COLOURS[0])[_CHANNELS.index(text[0])]
            axis.barh(0, 1, left=place, color=colour, alpha=0.35, edgecolor="black", linewidth=0.6)
            axis.text(place + 0.5, 0, f"{text[0]}\n{text[1]},{text[2]}", ha="center", va="center", fontsize=8)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_axis_off()
    return [
        Drawing(
            "memory",
            figure,
            "The twelve numbers of an image of 2 x 2 pixels in memory: with channels first all of red, then green, "
            "then blue; with channels last red, green and blue of each pixel",
            "An image of 2 x 2 pixels in memory: channel, and row and column, of each number.",
        )
    ]


STUDY = Study(
    name="layout",
    title="Layout: channels first or last",
    why="A layout only says in which order the numbers of an array lie in memory. Kernels [out, in, h, w] become [h, "
    "w, in, out], and where maps are flattened for a dense layer its inputs change their order too. With images, "
    "kernels and these inputs transposed, the networks compute the same; an array that is reshaped instead is read in "
    "the wrong order.",
    source="PyTorch's and JAX's conventions; the network of Krizhevsky 2014 (arXiv 1404.5997)",
    claims=(
        Claim(
            "same-network",
            "[N, C, H, W] (PyTorch) and [N, H, W, C] (JAX) describe the same network.",
            "largest difference of AlexNet's logits in float64, relative to the largest logit",
            lambda one: one["difference"],
            below=1e-10,
        ),
        Claim(
            "reshaping",
            "Reshaping in place of transposing gives other logits.",
            "largest difference of AlexNet's logits, relative to the largest logit",
            lambda one: one["mistaken"],
            above=1e-3,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(),
    full=Settings(),
    seconds=8,
    exact=True,
)
