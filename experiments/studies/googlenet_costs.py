"""What GoogLeNet saves: its parameters and multiply-adds, and those of networks without its savings."""

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod

import numpy as np

from experiments.studies.study import Table
from jaxnets.models.registry import create_model
from jaxnets.summary import summarize

# The reductions, and the convolutions that read their outputs.
REDUCTIONS = {"branch2_0": "branch2_1", "branch3_0": "branch3_1"}


@cache
def counts(image_size: int) -> dict[str, list[int]]:
    """Parameters and multiply-adds of the paper's network, of two networks without its savings, and of dense layers.

    "unreduced": the 3x3 and 5x5 convolutions read the input of the block. "flattened": the classifier reads the last
    map. "classifier" and "alexnet": the dense layers of this network, and of that of Krizhevsky et al. 2012.
    """
    summary = summarize(create_model("googlenet_2014", aux_logits=False), image_size)
    layers = {layer.name: layer for layer in summary.layers}
    total = np.array([summary.total().parameters, summary.total().multiply_adds])
    unreduced = total.copy()
    for name, reduction in layers.items():
        block, _, place = name.partition("/")
        if (branch := place.removesuffix("/conv")) in REDUCTIONS:
            reader = layers[f"{block}/{REDUCTIONS[branch]}/conv"]
            more = reader.window**2 * (reduction.inputs[2] - reader.inputs[2]) * reader.outputs[2]
            unreduced += (more, more * prod(reader.outputs[:2]))
            unreduced -= (reduction.parameters, reduction.multiply_adds)
    classifier, (height, width, _) = layers["fc"], summary.stage_outputs["inception5b"]
    more = (height * width - 1) * prod((*classifier.inputs, *classifier.outputs))
    alexnet = summarize(create_model("alexnet_2012"), 224)
    dense = [layer for layer in alexnet.layers if layer.kind == "Dense"]
    return {
        "googlenet": total.tolist(),
        "unreduced": unreduced.tolist(),
        "flattened": (total + more).tolist(),
        "classifier": [classifier.parameters, classifier.multiply_adds],
        "alexnet": [sum(layer.parameters for layer in dense), sum(layer.multiply_adds for layer in dense)],
    }


def cost_table(counts: Mapping[str, Sequence[int]]) -> Table:
    """The table of `counts`."""
    names = {
        "googlenet": "GoogLeNet (2014)",
        "unreduced": "without 1x1 reductions",
        "flattened": "with a classifier on the flattened last map",
        "classifier": "GoogLeNet's classifier alone",
        "alexnet": "AlexNet's dense layers alone",
    }
    return Table(
        "costs",
        "Costs for an image of 224 pixels, without auxiliary classifiers. One dense layer, the classifier, remains.",
        ("network", "parameters", "multiply-adds"),
        [[text, *counts[name]] for name, text in names.items()],
    )
