"""Pre-activation ResNet: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016 (arXiv 1603.05027).

The CIFAR networks of 9n + 2 layers, as in the authors' code (resnet-1k-layers): normalisation and activation before
each convolution, the stride on a bottleneck's first 1x1, where the shape changes a bare 1x1 projection that starts
from the activated input, and initial weights scaled by the fan out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnets.models.checks import check_call, check_functions, check_stage_sizes, check_whole
from jaxnets.models.depth import block_stages, run_stages
from jaxnets.models.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Initializer,
    NormFactory,
    Pairs,
    Stages,
    activated,
    convolved,
    he_fan_out,
    sow_feature,
)
from jaxnets.models.resnet import ModuleFactory, bind_layers, linear_drop_rates


class PreActivationBottleneck(nn.Module):
    """Norm, activation, convolution three times (1x1, 3x3, 1x1), and an identity shortcut (figure 4e)."""

    filters: int
    stride: int
    activation: Activation
    conv: ModuleFactory
    norm: ModuleFactory
    drop: ModuleFactory = partial(Dropout, train=False)
    expansion: ClassVar[int] = 4
    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn2"), ("conv2", "bn3"))

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        features = self.filters * self.expansion
        x = activated(self.norm(name="bn1"), self.activation, inputs)
        shortcut = inputs
        if inputs.shape[-1] != features or self.stride != 1:
            shortcut = self.conv(features, 1, stride=self.stride, name="downsample_conv")(x)
        conv1 = self.conv(self.filters, 1, stride=self.stride, name="conv1")
        conv2 = self.conv(self.filters, 3, padding=1, name="conv2")
        conv3 = self.conv(features, 1, name="conv3")
        x = convolved(conv1, self.norm(name="bn2"), x, self.activation)
        x = convolved(conv2, self.norm(name="bn3"), x, self.activation)
        return convolved(conv3, None, x, added=shortcut, drop=self.drop(drop_rate))


class PreActivationResNet(nn.Module):
    """A pre-activation network for small images: [N, H, W, 3] -> logits [N, num_classes]. Any image size works.

    In training each image loses the residual of a block at random (stochastic depth), of the last block with
    probability `stochastic_depth_rate`, and values before the last layer with `dropout_rate`. With `repeated_blocks`
    equal blocks of a stage are compiled once, and their variables stacked (depth.py). Initialisation: convolutions as
    He et al. 2015 (fan out), the last layer by torch's default.
    """

    stage_sizes: Sequence[int]
    num_classes: int = 1000
    num_filters: int = 16
    stochastic_depth_rate: float = 0.0
    dropout_rate: float = 0.0
    repeated_blocks: bool = False
    activation: Activation = nn.relu
    norm: NormFactory | None = BatchNorm
    axis_name: str | None = None
    kernel_init: Initializer = he_fan_out
    dtype: DTypeLike = jnp.float32
    smallest_image: ClassVar[int] = 1

    @property
    def stages(self) -> Stages:
        """The stages in order, with the names of their modules; each block is one."""
        blocks = block_stages(self.stage_sizes, self.repeated_blocks)
        return {"conv1": ("conv1",), **blocks, "bn1": ("bn1",), "pool": (), "fc": ("fc",)}

    @property
    def head_dropout_rate(self) -> float:
        """The rate of the dropout before the head."""
        return self.dropout_rate

    @nn.compact
    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        train = check_call(type(self).__name__, images, train, self.smallest_image)
        check_whole(type(self).__name__, num_classes=self.num_classes, num_filters=self.num_filters)
        norms = {} if self.norm is None else {"norm": self.norm}
        check_functions(type(self).__name__, activation=self.activation, kernel_init=self.kernel_init, **norms)
        check_stage_sizes(self.stage_sizes)
        drop_rates = linear_drop_rates(self.stochastic_depth_rate, sum(self.stage_sizes))
        dropout = partial(Dropout, train=train, axis_name=self.axis_name)
        conv, norm = bind_layers(self.norm, train, self.axis_name, self.kernel_init, self.dtype)
        drop = partial(dropout, whole_images=True)
        block = partial(PreActivationBottleneck, activation=self.activation, conv=conv, norm=norm, drop=drop)
        keep = partial(sow_feature, self)
        x = keep("conv1", conv(self.num_filters, 3, padding=1, name="conv1")(images))
        x = run_stages(
            block,
            x,
            stage_sizes=self.stage_sizes,
            num_filters=self.num_filters,
            drop_rates=drop_rates,
            repeated=self.repeated_blocks,
            keep=keep,
        )
        x = keep("bn1", activated(norm(name="bn1"), self.activation, x))
        x = dropout(self.dropout_rate)(keep("pool", x.mean(axis=(1, 2))))
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


CIFAR_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet164_v2_cifar": partial(PreActivationResNet, stage_sizes=(18, 18, 18)),
    "resnet1001_v2_cifar": partial(PreActivationResNet, stage_sizes=(111, 111, 111), repeated_blocks=True),
}
