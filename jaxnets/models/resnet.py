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
from jaxnets.models.checks import check_call, check_functions, check_stage_sizes, check_whole
from jaxnets.models.depth import block_stages, run_stages
from jaxnets.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Initializer,
    NormFactory,
    Pairs,
    Stages,
    convolved,
    he_fan_in,
    he_fan_out,
    sow_feature,
)
from jaxnets.ops import max_pool

# Named, or a factory of a module: `factory(features=, stride=, conv=, norm=, name=)` maps [N, H, W, C] to
# [N, H', W', features], in the blocks that change the shape.
ModuleFactory = Callable[..., Any]
Shortcut = Literal["A", "B", "C", "none"] | ModuleFactory
# Named, or a factory of a module: `factory(features=, activation=, conv=, norm=, name=)` maps images [N, H, W, 3] to
# [N, H', W', features].
Stem = Literal["imagenet", "cifar"] | ModuleFactory


class Block(nn.Module):
    """What the blocks of a residual network share; a block of your own derives from it.

    A subclass sets `expansion` and defines `__call__(inputs, drop_rate=0.0)`, which maps [N, H, W, C] to
    [N, H', W', filters * expansion]. `conv` and `norm` make layers with the network's settings, as in
    `self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv1")` and `self.norm(name="bn1")`.
    `conv_norm_pairs` names the convolutions and the norms that read them, for `inference.fold`.
    """

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
    conv_norm_pairs: ClassVar[Pairs] = ()

    def added(self, inputs: jax.Array) -> jax.Array | None:
        """What the shortcut adds to the residual: [N, H, W, C] -> [N, H', W', filters * expansion], or None.

        The paper's shortcuts (sections 3.3 and 4.1): A is the identity, subsampled, with new channels of zeros. B is a
        projection where the shape changes, and the identity elsewhere. C projects everywhere. "none" makes the network
        plain. A factory's module takes the place of B's projection.
        """
        channels, features = inputs.shape[-1], self.filters * self.expansion
        changes = self.stride != 1 or channels != features
        if self.shortcut == "none":
            return None
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            projection = self.conv(features, 1, stride=self.stride, name="downsample_conv")
            return convolved(projection, self.norm(name="downsample_bn"), inputs)
        if not changes:
            return inputs
        if self.shortcut == "A":
            subsampled = inputs[:, :: self.stride, :: self.stride]
            return jnp.pad(subsampled, ((0, 0), (0, 0), (0, 0), (0, features - channels)))
        assert callable(self.shortcut)
        module = self.shortcut(features=features, stride=self.stride, conv=self.conv, norm=self.norm, name="downsample")
        outputs: jax.Array = module(inputs)
        return outputs

    def last_norm(self, *, name: str) -> Any:
        """The residual's last norm, whose scale starts at zero with `zero_init_residual`."""
        return self.norm(name=name, scale_init=initializers.zeros if self.zero_init_residual else initializers.ones)


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn1"), ("conv2", "bn2"), ("downsample_conv", "downsample_bn"))

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        if self.groups != 1 or self.width_per_group != 64:
            raise InputError(
                f"a basic block got groups={self.groups} and width_per_group={self.width_per_group}; "
                "it only takes 1 and 64: use a network of bottlenecks"
            )
        added = self.added(inputs)
        conv1 = self.conv(self.filters, 3, stride=self.stride, padding=1, name="conv1")
        conv2 = self.conv(self.filters, 3, padding=1, name="conv2")
        bn2 = self.last_norm(name="bn2")
        x = convolved(conv1, self.norm(name="bn1"), inputs, self.activation)
        return convolved(conv2, bn2, x, self.activation, added, self.drop(drop_rate))


class Bottleneck(Block):
    """1x1 to the inner width, 3x3 in `groups`, 1x1 to four times `filters`, and a shortcut (figure 5, right)."""

    expansion: ClassVar[int] = 4
    conv_norm_pairs: ClassVar[Pairs] = (*BasicBlock.conv_norm_pairs, ("conv3", "bn3"))

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_rate: float | jax.Array = 0.0) -> jax.Array:
        added = self.added(inputs)
        reduce, transform, expand = self.convolutions()
        bn3 = self.last_norm(name="bn3")
        x = convolved(reduce, self.norm(name="bn1"), inputs, self.activation)
        x = convolved(transform, self.norm(name="bn2"), x, self.activation)
        return convolved(expand, bn3, x, self.activation, added, self.drop(drop_rate))

    @property
    def width(self) -> int:
        """Channels of the 3x3 convolution, over all groups."""
        width = int(self.filters * self.width_per_group / 64)
        if width < 1:
            raise InputError(
                f"a bottleneck of {self.filters} filters with width_per_group={self.width_per_group} leaves no channel "
                f"for each of its {self.groups} groups; give filters * width_per_group of at least 64"
            )
        return width * self.groups

    def convolutions(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The block's three convolutions; ResNeXt's other forms override how they are computed."""
        return (
            self.conv(self.width, 1, name="conv1"),
            self.conv(self.width, 3, stride=self.stride, padding=1, groups=self.groups, name="conv2"),
            self.conv(self.filters * self.expansion, 1, name="conv3"),
        )


class ResNet(nn.Module):
    """A residual network: [N, H, W, 3] -> logits [N, num_classes]. Any image size works.

    `stem`: "imagenet" is a 7x7 convolution with stride 2 and a 3x3 max-pooling with stride 2; "cifar" is one 3x3
    convolution, for small images. `block` is a subclass of `Block`. Stem and shortcut may also be factories of modules,
    as `Stem` and `Shortcut` say. `groups` is the cardinality. `norm=None` leaves normalisation out and gives the
    convolutions biases. In training each image loses the residual of a block at random (stochastic depth), of the last
    block with probability `stochastic_depth_rate`, and values before the last layer with `dropout_rate`.
    With `repeated_blocks` equal blocks of a stage are compiled once, and their variables stacked (depth.py).
    Initialisation: convolutions by `kernel_init` (He et al. 2015; fan out is torchvision's, fan in the paper's), the
    last layer by torch's default.
    """

    stage_sizes: Sequence[int]
    block: type[Block]
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
    conv_norm_pairs: ClassVar[Pairs] = (("conv1", "bn1"),)

    @property
    def stages(self) -> Stages:
        """The stages in order, with the names of their modules; each block is one."""
        return {
            **({"stem": ("stem",)} if callable(self.stem) else {"conv1": ("conv1", "bn1")}),
            **block_stages(self.stage_sizes, self.repeated_blocks),
            "pool": (),
            "fc": ("fc",),
        }

    @property
    def head_dropout_rate(self) -> float:
        """The rate of the dropout before the head."""
        return self.dropout_rate

    @nn.compact
    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        train = check_call(type(self).__name__, images, train, self.smallest_image)
        sizes = {"num_classes": self.num_classes, "num_filters": self.num_filters}
        check_whole(type(self).__name__, **sizes, groups=self.groups, width_per_group=self.width_per_group)
        norms = {} if self.norm is None else {"norm": self.norm}
        functions = {"block": self.block, "activation": self.activation, "kernel_init": self.kernel_init}
        check_functions(type(self).__name__, **functions, **norms)
        check_stage_sizes(self.stage_sizes)
        if self.zero_init_residual and (self.norm is None or self.shortcut == "none"):
            missing = (
                "a norm, whose scale is zero; norm is None" if self.norm is None else "shortcuts; shortcut is 'none'"
            )
            raise InputError(f"zero_init_residual needs {missing}; leave it out (--no-zero-init-residual)")
        if self.shortcut == "none" and self.stochastic_depth_rate > 0:
            raise InputError(
                f"stochastic_depth_rate={self.stochastic_depth_rate} needs shortcuts, which are all that is left of a "
                "block without its residual; shortcut is 'none'"
            )
        if not callable(self.shortcut) and self.shortcut not in _SHORTCUTS:
            raise InputError(f"shortcut={self.shortcut!r} is unknown; expected {_SHORTCUTS_NAMED} or a module factory")
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
        if callable(self.stem):
            stem = self.stem(features=self.num_filters, activation=self.activation, conv=conv, norm=norm, name="stem")
            x = keep("stem", stem(images))
        elif self.stem in ("imagenet", "cifar"):
            large = self.stem == "imagenet"
            conv1 = conv(self.num_filters, *((7, 2, 3) if large else (3, 1, 1)), name="conv1")
            x = keep("conv1", convolved(conv1, norm(name="bn1"), images, self.activation))
            x = max_pool(x, 3, stride=2, padding=1) if large else x
        else:
            raise InputError(f"stem={self.stem!r} is unknown; expected 'imagenet', 'cifar' or a module factory")
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
    """Factories of convolutions and norms with a network's settings, for its blocks."""
    conv = partial(Conv, kernel_init=kernel_init, dtype=dtype, use_bias=norm is None)
    if norm is None:
        return conv, lambda **_: None
    return conv, partial(norm, train=train, axis_name=axis_name, dtype=dtype)


def linear_drop_rates(rate: float, blocks: int) -> Iterator[float]:
    """Stochastic depth's rate of each block (Huang et al. 2016, equation 4): l / L of `rate`, for l = 1 to L."""
    if not 0 <= rate < 1:
        raise InputError(f"stochastic_depth_rate={rate}; expected one from 0 to below 1")
    return (rate * (block / blocks) for block in range(1, blocks + 1))


_SHORTCUTS = ("A", "B", "C", "none")
_SHORTCUTS_NAMED = ", ".join(map(repr, _SHORTCUTS))

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
