"""ResNeXt: Xie, Girshick, Dollar, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", 2017.

arXiv 1611.05431. A ResNeXt is a ResNet whose bottlenecks do their 3x3 convolution in `groups` (the cardinality) of
`width_per_group` channels. Figure 3 shows three equivalent forms of a block; here they are three classes with one
parameter tree: each can be passed as `block=` and run with the same variables.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnets.models.resnet import Bottleneck, ResNet
from jaxnets.ops import conv2d

# Figure 3c: one grouped convolution. This is the form to train with.
GroupedBlock = Bottleneck


def concatenated_paths(
    inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int, paths: int
) -> jax.Array:
    """`conv2d` as `paths` convolutions, each with its share of the features [N, H', W', F / paths].

    With `groups=1` each path reads all channels; otherwise `groups` must equal `paths`, and each reads its own share.
    """
    seen = jnp.split(inputs, groups, axis=-1) * (paths // groups)
    kernels = jnp.split(kernel, paths, axis=3)
    outputs = [conv2d(x, k, stride=stride, padding=padding) for x, k in zip(seen, kernels, strict=True)]
    return jnp.concatenate(outputs, axis=-1)


def added_paths(
    inputs: jax.Array, kernel: jax.Array, *, stride: int, padding: int, groups: int, paths: int
) -> jax.Array:
    """Dense `conv2d` as a sum of `paths` convolutions, each of all features from its own share of the channels."""
    channels, kernels = jnp.split(inputs, paths, axis=-1), jnp.split(kernel, paths, axis=2)
    outputs = [conv2d(x, k, stride=stride, padding=padding) for x, k in zip(channels, kernels, strict=True)]
    return jnp.sum(jnp.stack(outputs), axis=0)


class EarlyConcatenationBlock(Bottleneck):
    """Figure 3b: each path does its own 1x1 and 3x3; the paths are concatenated before one last 1x1.

    The normalisation between two convolutions acts on each channel by itself, so on each path by itself.
    """

    def convolutions(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return (*self._separate_paths(), self.conv(self.filters * self.expansion, 1, name="conv3"))

    def _separate_paths(self) -> tuple[nn.Module, nn.Module]:
        separate = partial(concatenated_paths, paths=self.groups)
        return (
            self.conv(self.width, 1, op=separate, name="conv1"),
            self.conv(self.width, 3, stride=self.stride, padding=1, groups=self.groups, op=separate, name="conv2"),
        )


class SplitTransformAddBlock(EarlyConcatenationBlock):
    """Figure 3a: each path does its own 1x1, 3x3 and 1x1; the paths are added."""

    def convolutions(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        add = partial(added_paths, paths=self.groups)
        return (*self._separate_paths(), self.conv(self.filters * self.expansion, 1, op=add, name="conv3"))


_resnext50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=GroupedBlock)
_resnext101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=GroupedBlock)
# Section 5.3: 3 stages of 3 bottlenecks after a 3x3 convolution of 64 filters.
_resnext29 = partial(ResNet, stage_sizes=(3, 3, 3), block=GroupedBlock, stem="cifar", width_per_group=64)

MODELS: dict[str, Callable[..., nn.Module]] = {
    # Table 2: cardinality against width at equal complexity.
    **{
        f"resnext50_{groups}x{width}d": partial(_resnext50, groups=groups, width_per_group=width)
        for groups, width in ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))
    },
    "resnext101_32x8d": partial(_resnext101, groups=32, width_per_group=8),
    "resnext101_64x4d": partial(_resnext101, groups=64, width_per_group=4),
}
CIFAR_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnext29_8x64d_cifar": partial(_resnext29, groups=8),
    "resnext29_16x64d_cifar": partial(_resnext29, groups=16),
}
