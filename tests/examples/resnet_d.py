"""ResNet-D-18 (He et al. 2019, "Bag of Tricks"): a stem and a shortcut of one's own in jaxnets' ResNet."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxnets.models.layers import convolved
from jaxnets.models.resnet import BasicBlock, ResNet
from jaxnets.ops import avg_pool, max_pool


class DeepStem(nn.Module):
    """Three 3x3 convolutions in the place of the 7x7: [N, H, W, 3] -> [N, H / 4, W / 4, features]."""

    features: int
    activation: Any
    conv: Any
    norm: Any
    conv_norm_pairs: ClassVar = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for i, (features, stride) in enumerate(
            ((self.features // 2, 2), (self.features // 2, 1), (self.features, 1)), 1
        ):
            conv = self.conv(features, 3, stride=stride, padding=1, name=f"conv{i}")
            x = convolved(conv, self.norm(name=f"bn{i}"), x, self.activation)
        return max_pool(x, 3, stride=2, padding=1)


class PooledShortcut(nn.Module):
    """Averages pixels before a 1x1 convolution without stride: [N, H, W, C] -> [N, H', W', features]."""

    features: int
    stride: int
    conv: Any
    norm: Any
    conv_norm_pairs: ClassVar = (("conv", "bn"),)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.stride > 1:
            inputs = avg_pool(inputs, self.stride, stride=self.stride)
        return convolved(self.conv(self.features, 1, name="conv"), self.norm(name="bn"), inputs)


def resnet18d(num_classes: int, dtype: Any, num_filters: int = 64) -> ResNet:
    """The network for images of at least 32 px."""
    return ResNet(
        stage_sizes=(2, 2, 2, 2),
        block=BasicBlock,
        num_classes=num_classes,
        num_filters=num_filters,
        stem=DeepStem,
        shortcut=PooledShortcut,
        dtype=dtype,
    )
