"""The network of the sweep of weight files: a ResNet for small images with one block a stage."""

from typing import Any

import flax.linen as nn

from jaxnets.models.resnet import BasicBlock, ResNet


def resnet8(**options: Any) -> nn.Module:
    """The ResNet of section 4.2 (He et al. 2016) with 8 layers."""
    return ResNet(
        stage_sizes=(1, 1, 1),
        block=BasicBlock,
        num_filters=16,
        stem="cifar",
        shortcut="A",
        **options,
    )
