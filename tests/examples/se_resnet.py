"""SE-ResNet-20 (Hu et al. 2018) as a user of jaxnets writes it: a block of one's own in jaxnets' ResNet."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnets import register_model
from jaxnets.models.layers import Dense, convolved, he_fan_in
from jaxnets.models.resnet import Block, ResNet


class SqueezeExcitation(nn.Module):
    """Scales each channel by what two dense layers compute of all channels' means: [N, H, W, C] -> the same."""

    reduction: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        channels = inputs.shape[-1]
        x = nn.relu(Dense(channels // self.reduction, dtype=self.dtype, name="reduce")(inputs.mean(axis=(1, 2))))
        scale = nn.sigmoid(Dense(channels, dtype=self.dtype, name="expand")(x))
        return inputs * scale[:, None, None]


class SEBlock(Block):
    """A basic block whose residual is squeezed and excited before the shortcut is added."""

    conv_norm_pairs: ClassVar = (("conv1", "bn1"), ("conv2", "bn2"), ("downsample_conv", "downsample_bn"))

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        conv1 = self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv1")
        conv2 = self.conv(self.filters, 3, padding=1, name="conv2")
        x = convolved(conv1, self.norm(name="bn1"), inputs, self.activation)
        x = convolved(conv2, self.last_norm(name="bn2"), x)
        x = self.drop(drop_rate)(SqueezeExcitation(dtype=inputs.dtype, name="se")(x))
        added = self.added(inputs)
        return self.activation(x if added is None else x + added)


def se_resnet20(num_classes: int, dtype: Any, num_filters: int = 16) -> ResNet:
    """The network of three stages with three blocks each."""
    return ResNet(
        stage_sizes=(3, 3, 3),
        block=SEBlock,
        num_classes=num_classes,
        num_filters=num_filters,
        stem="cifar",
        kernel_init=he_fan_in,
        dtype=dtype,
    )


register_model("se_resnet20", se_resnet20, family="cifar")
