"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015 (arXiv 1512.03385).

The ImageNet networks are torchvision's, with the stride on the 3x3 convolution of a bottleneck ("v1.5"). The CIFAR
networks are section 4.2's. The same class without shortcuts is the paper's plain network; with `groups` and
`width_per_group` it is ResNeXt (resnext.py), and with wider bottlenecks Wide ResNet (arXiv 1605.07146).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.depth import block_stages, run_stages
from jaxnets.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Initializer,
    NormFactory,
    Stages,
    check_image_size,
    convolved,
    he_fan_in,
    he_fan_out,
    sow_feature,
)
from jaxnets.ops import max_pool

Shortcut = Literal["A", "B", "C", "none"]
Stem = Literal["imagenet", "cifar"]
ModuleFactory = Callable[..., Any]


def shortcut_of(
    inputs: jax.Array, features: int, *, kind: Shortcut, stride: int, conv: ModuleFactory, norm: ModuleFactory
) -> jax.Array | None:
    """What one of the paper's shortcuts (sections 3.3 and 4.1) adds to a residual: [N, H, W, C] -> [N, H', W', F].

    A: identity, subsampled, new channels zero, no parameters. B: a projection where the shape changes, identity
    elsewhere. C: projections everywhere. none: no shortcut at all, which makes the network plain.
    """
    channels = inputs.shape[-1]
    changes = stride != 1 or channels != features
    match kind:
        case "none":
            return None
        case "C":
            project = True
        case "B":
            project = changes
        case "A":
            project = False
        case _:
            raise InputError(f"shortcut={kind!r} is unknown; expected 'A', 'B', 'C' or 'none'")
    if project:
        projection = conv(features, 1, stride=stride, name="downsample_conv")
        return convolved(projection, norm(name="downsample_bn"), inputs)
    if changes:
        return jnp.pad(inputs[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - channels)))
    return inputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    filters: int
    stride: int
    groups: int
    width_per_group: int
    shortcut: Shortcut
    zero_init_residual: bool
    activation: Activation
    conv: ModuleFactory
    norm: ModuleFactory
    drop: ModuleFactory = partial(Dropout, train=False)
    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        if self.groups != 1 or self.width_per_group != 64:
            raise InputError(
                f"a basic block got groups={self.groups} and width_per_group={self.width_per_group}; "
                "it only takes 1 and 64: use a network of bottlenecks"
            )
        added = shortcut_of(
            inputs, self.filters, kind=self.shortcut, stride=self.stride, conv=self.conv, norm=self.norm
        )
        conv1 = self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv1")
        conv2 = self.conv(self.filters, 3, padding=1, name="conv2")
        bn2 = self.norm(name="bn2", scale_init=_last_scale_init(self.zero_init_residual))
        x = convolved(conv1, self.norm(name="bn1"), inputs, self.activation)
        return convolved(conv2, bn2, x, self.activation, added, self.drop(drop_rate))


class Bottleneck(nn.Module):
    """1x1 to the inner width, 3x3 in `groups`, 1x1 to four times `filters`, and a shortcut (figure 5, right)."""

    filters: int
    stride: int
    groups: int
    width_per_group: int
    shortcut: Shortcut
    zero_init_residual: bool
    activation: Activation
    conv: ModuleFactory
    norm: ModuleFactory
    drop: ModuleFactory = partial(Dropout, train=False)
    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        features = self.filters * self.expansion
        added = shortcut_of(inputs, features, kind=self.shortcut, stride=self.stride, conv=self.conv, norm=self.norm)
        reduce, transform, expand = self.convolutions()
        bn3 = self.norm(name="bn3", scale_init=_last_scale_init(self.zero_init_residual))
        x = convolved(reduce, self.norm(name="bn1"), inputs, self.activation)
        x = convolved(transform, self.norm(name="bn2"), x, self.activation)
        return convolved(expand, bn3, x, self.activation, added, self.drop(drop_rate))

    @property
    def width(self) -> int:
        """Channels of the 3x3 convolution, over all groups."""
        return int(self.filters * self.width_per_group / 64) * self.groups

    def convolutions(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The block's three convolutions; ResNeXt's other forms override how they are computed."""
        return (
            self.conv(self.width, 1, name="conv1"),
            self.conv(self.width, 3, stride=self.stride, padding=1, groups=self.groups, name="conv2"),
            self.conv(self.filters * self.expansion, 1, name="conv3"),
        )


def _last_scale_init(zero_init_residual: bool) -> Initializer:
    return initializers.zeros if zero_init_residual else initializers.ones


class ResNet(nn.Module):
    """A residual network: [N, H, W, 3] -> logits [N, num_classes]. Any image size works.

    `stem`: "imagenet" is a 7x7 convolution with stride 2 and a 3x3 max-pooling with stride 2; "cifar" is one 3x3
    convolution, for small images. `groups` is the cardinality. `norm=None` leaves normalisation out and gives the
    convolutions biases. In training each image loses the residual of a block at random (stochastic depth), of the last
    block with probability `stochastic_depth_rate`, and values before the last layer with `dropout_rate`.
    With `repeated_blocks` the alike blocks of a stage are compiled once, and their variables stacked (depth.py).
    Initialisation: convolutions by `kernel_init` (He et al. 2015; fan out is torchvision's, fan in the paper's), the
    last layer by torch's default.
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[Bottleneck]
    num_classes: int = 1000
    num_filters: int = 64
    groups: int = 1
    width_per_group: int = 64
    stem: Stem = "imagenet"
    shortcut: Shortcut = "B"
    zero_init_residual: bool = False
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
        """The stages in their order, with the names of their modules; each block is one."""
        return {
            "conv1": ("conv1", "bn1"),
            **block_stages(self.stage_sizes, self.repeated_blocks),
            "pool": (),
            "fc": ("fc",),
        }

    @property
    def head_dropout_rate(self) -> float:
        """Of the dropout between the stage before the last and the last."""
        return self.dropout_rate

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        check_image_size(images, self.smallest_image, type(self).__name__)
        if self.norm is None and self.zero_init_residual:
            raise InputError("zero_init_residual needs a norm, whose last scale it sets to zero; norm is None")
        if self.shortcut == "none" and self.stochastic_depth_rate > 0:
            raise InputError(
                f"stochastic_depth_rate={self.stochastic_depth_rate} needs shortcuts, which are all that is left of a "
                "block without its residual; shortcut is 'none'"
            )
        drop_rates = linear_drop_rates(self.stochastic_depth_rate, sum(self.stage_sizes))
        dropout = partial(Dropout, train=train, axis_name=self.axis_name)
        conv, norm = bind_layers(self.norm, train, self.axis_name, self.kernel_init, self.dtype)
        block = partial(
            self.block,
            groups=self.groups,
            width_per_group=self.width_per_group,
            shortcut=self.shortcut,
            zero_init_residual=self.zero_init_residual,
            activation=self.activation,
            conv=conv,
            norm=norm,
            drop=partial(dropout, whole_images=True),
        )
        keep = partial(sow_feature, self)
        if self.stem == "imagenet":
            conv1 = conv(self.num_filters, 7, stride=2, padding=3, name="conv1")
            x = keep("conv1", convolved(conv1, norm(name="bn1"), images, self.activation))
            x = max_pool(x, 3, stride=2, padding=1)
        elif self.stem == "cifar":
            conv1 = conv(self.num_filters, 3, padding=1, name="conv1")
            x = keep("conv1", convolved(conv1, norm(name="bn1"), images, self.activation))
        else:
            raise InputError(f"stem={self.stem!r} is unknown; expected 'imagenet' or 'cifar'")
        x = run_stages(
            block,
            x,
            stage_sizes=self.stage_sizes,
            num_filters=self.num_filters,
            drop_rates=drop_rates,
            repeated=self.repeated_blocks,
            keep=keep,
        )
        x = dropout(self.dropout_rate)(keep("pool", x.mean(axis=(1, 2))))
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


def bind_layers(
    norm: NormFactory | None, train: bool, axis_name: str | None, kernel_init: Initializer, dtype: DTypeLike
) -> tuple[ModuleFactory, ModuleFactory]:
    """Convolution and normalisation with a network's settings bound once, to hand to its blocks."""
    conv = partial(Conv, kernel_init=kernel_init, dtype=dtype, use_bias=norm is None)
    if norm is None:
        return conv, lambda **_: None
    return conv, partial(norm, train=train, axis_name=axis_name, dtype=dtype)


def linear_drop_rates(rate: float, blocks: int) -> Iterator[float]:
    """Stochastic depth's rate of each block (Huang et al. 2016, equation 4): l / L of `rate`, for l = 1 to L."""
    if not 0 <= rate < 1:
        raise InputError(f"stochastic_depth_rate={rate}; expected one from 0 to below 1")
    return (rate * (block / blocks) for block in range(1, blocks + 1))


_cifar = partial(ResNet, block=BasicBlock, num_filters=16, stem="cifar", shortcut="A", kernel_init=he_fan_in)
_wide = partial(ResNet, block=Bottleneck, width_per_group=128)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck),
    "wide_resnet50_2": partial(_wide, stage_sizes=(3, 4, 6, 3)),
    "wide_resnet101_2": partial(_wide, stage_sizes=(3, 4, 23, 3)),
    "plain18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock, shortcut="none"),
    "plain34": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock, shortcut="none"),
}
# Section 4.2: 6n + 2 layers.
CIFAR_MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{6 * n + 2}_cifar": partial(_cifar, stage_sizes=(n, n, n)) for n in (3, 5, 7, 9, 18)},
    "resnet1202_cifar": partial(_cifar, stage_sizes=(200, 200, 200), repeated_blocks=True),
    **{f"plain{6 * n + 2}_cifar": partial(_cifar, stage_sizes=(n, n, n), shortcut="none") for n in (3, 5, 7, 9)},
}
