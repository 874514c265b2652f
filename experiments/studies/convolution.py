"""Convolution: shared local weights, channels, and the size formula, checked on every layer of every network."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from experiments.studies.drawing import new_figure, style
from experiments.studies.lab import Lab
from experiments.studies.study import Claim, Drawing, Measured, Study, Table
from jaxnets.models.initialization import declaration
from jaxnets.models.registry import create_model
from jaxnets.summary import Layer, summarize

# Billions of multiply-adds at 224 pixels, as torchvision 0.29.1 documents them.
PUBLISHED = {
    "alexnet": 0.714,
    "googlenet": 1.498,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnext50_32x4d": 4.230,
    "resnext101_32x8d": 16.414,
    "resnext101_64x4d": 15.460,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
}
_PAPERS = ("alexnet_2012", "googlenet_2014")
_POOLING = ("MaxPool", "AvgPool")


@dataclass(frozen=True)
class Settings:
    """The networks, and the side of their images [pixels]."""

    networks: tuple[str, ...] = (*PUBLISHED, *_PAPERS)
    image_size: int = 224


def measure(lab: Lab, settings: Settings) -> dict[str, Any]:
    """What the layers of all networks have in common, counted."""
    counts = dict.fromkeys(("layers", "wrong_channels", "wrong_sizes", "pooling", "bad_pooling", "window_is_stride"), 0)
    factors, deviations = {}, {}
    for network in settings.networks:
        lab.note(network)
        model = create_model(network)
        summary = summarize(model, settings.image_size)
        kernels = declaration(model, settings.image_size).shapes["params"]
        for layer in summary.layers:
            if not layer.window:
                continue
            counts["layers"] += 1
            counts["wrong_sizes"] += _size(layer) != layer.outputs[0]
            if layer.kind in _POOLING:
                counts["pooling"] += 1
                counts["bad_pooling"] += layer.parameters > 0 or layer.outputs[2] != layer.inputs[2]
                counts["window_is_stride"] += layer.window == layer.stride
            else:
                *_, channels, number = _kernel(kernels, layer.name).shape
                counts["wrong_channels"] += channels * layer.groups != layer.inputs[2] or number != layer.outputs[2]
                factors[f"{network}/{layer.name}"] = prod(layer.inputs) * prod(layer.outputs) / layer.parameters
        if network in PUBLISHED:
            deviations[network] = summary.total().multiply_adds / 1e9 / PUBLISHED[network] - 1
    smallest = min(factors, key=factors.__getitem__)
    first = summarize(create_model(settings.networks[0]), settings.image_size)
    return {
        **counts,
        "factors": sorted(factors.values()),
        "smallest": smallest,
        "deviations": deviations,
        "network": settings.networks[0],
        "rows": [_row(layer) for layer in first.layers],
    }


def _row(layer: Layer) -> list[str | int]:
    shape = " x ".join(map(str, layer.outputs))
    window = f"{layer.window} x {layer.window}" if layer.window else ""
    return [layer.name, window, shape, layer.formula, layer.parameters, layer.multiply_adds]


def _kernel(params: Any, name: str) -> Any:
    for part in name.split("/"):
        params = params[part]
    return params["kernel"]


def _size(layer: Layer) -> int:
    """N = (W - F + 2P) / S + 1, rounded down, or up where the network's pooling does so (torch's ceil_mode)."""
    before, after = layer.padding
    # Ceil mode shows as more padding after the image than before it.
    return (layer.inputs[0] - layer.window + before + after) // layer.stride + 1


def _draw(measured: Sequence[Measured]) -> list[Drawing | Table]:
    (one,) = measured
    factors = one["factors"]
    figure, axis = new_figure()
    axis.plot(range(1, len(factors) + 1), factors, **{**style(0), "marker": "", "linestyle": "-"})
    axis.set_yscale("log")
    axis.set_xlabel(f"{len(factors)} convolutions, sorted")
    axis.set_ylabel("parameters of a dense layer\nof the same shapes, times")
    return [
        Drawing(
            "parameters",
            figure,
            f"For {len(factors)} convolutions, sorted: a dense layer of the same input and output would need "
            f"{factors[0]:,.0f} to {factors[-1]:,.0f} times the parameters",
            f"How much larger a dense layer with the same input and output would be, for each convolution of "
            f"{len(PUBLISHED) + len(_PAPERS)} networks; the smallest factor is that of {one['smallest']}.",
        ),
        Table(
            "layers",
            f"The layers of {one['network']}, as jaxnets summary {one['network']} lists them.",
            ("layer", "window", "output", "N = (W - F + 2P) / S + 1", "parameters", "multiply-adds"),
            one["rows"],
        ),
    ]


STUDY = Study(
    name="convolution",
    title="Convolution: few weights, used everywhere",
    why="A convolution looks at a small window and uses the same weights at each position, so its parameters do not "
    "depend on the size of the image, whereas each output of a dense layer has a weight for each input. A kernel spans "
    "all channels of its input (with groups: of its group), and each kernel makes one channel of the output. A window "
    "of F pixels fits (W - F + 2P) / S + 1 times into W pixels; pooling slides a window too, but learns nothing.",
    source="Krizhevsky et al. 2012, sections 3.4 and 3.5; GMACs as documented by torchvision 0.29.1",
    claims=(
        Claim(
            "few-parameters",
            "Local, shared weights need far fewer parameters than a dense layer.",
            "smallest ratio of the parameters of a dense layer of the same shapes to those of the convolution",
            lambda one: one["factors"][0],
            above=10,
        ),
        Claim(
            "channels",
            "A kernel has the channels of its input (of its group), and there are as many kernels as output channels.",
            "convolutions for which this is not so",
            lambda one: one["wrong_channels"],
            below=1,
        ),
        Claim(
            "size-formula",
            "The output size of convolution and pooling is N = (W - F + 2P) / S + 1, rounded to whole pixels.",
            "layers of another size",
            lambda one: one["wrong_sizes"],
            below=1,
        ),
        Claim(
            "pooling",
            "Pooling has no parameters and keeps the channels.",
            "pooling layers for which this is not so",
            lambda one: one["bad_pooling"],
            below=1,
        ),
        Claim(
            "window-is-stride",
            "Usually the window and the stride of pooling are equal.",
            "share of the pooling layers whose window equals the stride",
            lambda one: one["window_is_stride"] / one["pooling"],
            above=0.5,
        ),
        Claim(
            "multiply-adds",
            "The layers add up to the published multiply-adds.",
            "largest relative deviation of the multiply-adds of twelve networks",
            lambda one: max(map(abs, one["deviations"].values())),
            below=0.01,
        ),
    ),
    measure=measure,
    draw=_draw,
    quick=Settings(),
    full=Settings(),
    seconds=27,
    exact=True,
)
