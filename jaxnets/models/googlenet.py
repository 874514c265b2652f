"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", 2014 (arXiv 1409.4842).

`GoogLeNet` is torchvision's, with batch normalisation, and a 3x3 convolution in the branch that the paper calls 5x5;
`googlenet_2014` is the same class with the paper's choices. Table 1 gives the widths of both.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.models.initialization import Scaled
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
    check_image_size,
    convolved,
    sow_feature,
)
from jaxnets.ops import adaptive_avg_pool, avg_pool, local_response_norm, max_pool
from jaxnets.ops.windows import output_size, smallest_input

ModuleFactory = Callable[..., Any]

# The published weights were trained on images scaled to (x - 0.5) / 0.5; torchvision's preprocessing normalises by
# ImageNet's mean and deviation, which `transform_input` turns back.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvUnit(nn.Module):
    """Convolution, normalisation (or a bias), activation: [N, H, W, C] -> [N, H', W', features]."""

    features: int
    window: int
    stride: int = 1
    padding: int = 0
    train: bool = False
    norm: NormFactory | None = None
    axis_name: str | None = None
    activation: Activation = nn.relu
    kernel_init: Initializer = Scaled("normal", factor=0.01)
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = jnp.float32
    conv_norm_pairs: ClassVar[Pairs] = (("conv", "bn"),)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        conv = Conv(
            self.features,
            self.window,
            stride=self.stride,
            padding=self.padding,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            name="conv",
        )
        norm = None
        if self.norm is not None:
            norm = self.norm(train=self.train, axis_name=self.axis_name, dtype=self.dtype, name="bn")
        return convolved(conv, norm, inputs, self.activation)


class Inception(nn.Module):
    """Four branches, concatenated (figure 2b): 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max-pooling and 1x1.

    The widths are table 1's columns: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
    """

    widths: tuple[int, int, int, int, int, int]
    unit: ModuleFactory
    branch3_window: int
    branches: ClassVar[tuple[str, ...]] = ("branch1", "branch2_1", "branch3_1", "branch4_1")

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        one, three_reduce, three, five_reduce, five, pool_projection = self.widths
        branch1 = self.unit(one, 1, name="branch1")(inputs)
        x = self.unit(three_reduce, 1, name="branch2_0")(inputs)
        branch2 = self.unit(three, 3, padding=1, name="branch2_1")(x)
        x = self.unit(five_reduce, 1, name="branch3_0")(inputs)
        window = self.branch3_window
        branch3 = self.unit(five, window, padding=window // 2, name="branch3_1")(x)
        x = max_pool(inputs, 3, stride=1, padding=1)
        branch4 = self.unit(pool_projection, 1, name="branch4_1")(x)
        return jnp.concatenate([branch1, branch2, branch3, branch4], axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on an inner map (section 5): average to 4x4, 1x1 to 128, 1024, num_classes; [N, H, W, C] -> logits.

    `pool_window=5` with stride 3 is the paper's pooling. It is used if it gives 4x4, as for the 14x14 map of a 224 px
    image; other maps are averaged adaptively, as are all maps with `pool_window=None`, torchvision's choice. The logits
    are also sown into the collection "aux_logits".
    """

    num_classes: int
    unit: ModuleFactory
    dense: ModuleFactory
    activation: Activation
    bias_init: Initializer | None
    dropout_rate: float
    pool_window: int | None
    train: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        window = self.pool_window
        if window is not None and all(output_size(side, window, 3, 0) == 4 for side in inputs.shape[1:3]):
            x = avg_pool(inputs, window, stride=3)
        else:
            x = adaptive_avg_pool(inputs, 4)
        x = self.unit(128, 1, name="conv")(x)
        x = self.activation(self.dense(1024, bias_init=self.bias_init, name="fc1")(x.reshape(x.shape[0], -1)))
        x = Dropout(self.dropout_rate, train=self.train, axis_name=self.axis_name)(x)
        logits: jax.Array = self.dense(self.num_classes, name="fc2")(x)
        if not self.is_initializing():
            self.sow("aux_logits", "logits", logits)
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet: [N, H, W, 3] -> logits [N, num_classes], images of at least 15 px (the paper's: 31 px).

    In training, with `aux_logits`, the two auxiliary heads sow their logits into the collection "aux_logits".
    `transform_input` re-normalises images that were normalised by ImageNet's mean and deviation, as the published
    weights need. `branch3_window` is the window of the "5x5" branch, `last_pool_window` that of the pooling before
    stage 5. `lrn` is applied after the first and before the second pooling. Initialisation: by default torchvision's,
    weights N(0, 0.01) and dense biases torch's default. `bias_init` is for the biases of convolutions (without `norm`)
    and hidden dense layers, `classifier_bias_init` for those of the classifiers.
    """

    num_classes: int = 1000
    aux_logits: bool = True
    transform_input: bool = False
    dropout_rate: float = 0.2
    aux_dropout_rate: float = 0.7
    branch3_window: int = 3
    last_pool_window: int = 2
    aux_pool_window: int | None = None
    norm: NormFactory | None = partial(BatchNorm, epsilon=1e-3)
    lrn: Callable[[jax.Array], jax.Array] | None = None
    activation: Activation = nn.relu
    kernel_init: Initializer = Scaled("normal", factor=0.01)
    bias_init: Initializer | None = None
    classifier_bias_init: Initializer | None = None
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def smallest_image(self) -> int:
        """The smallest image side, in pixels, that leaves every pooling a pixel."""
        return smallest_input([(7, 2, 3, False), *3 * [(3, 2, 0, True)], (self.last_pool_window, 2, 0, True)])

    stages: ClassVar[Stages] = {
        **{name: (name,) for name in ("conv1", "conv2", "conv3", "inception3a", "inception3b")},
        "inception4a": ("inception4a", "aux1"),
        **{name: (name,) for name in ("inception4b", "inception4c")},
        "inception4d": ("inception4d", "aux2"),
        **{name: (name,) for name in ("inception4e", "inception5a", "inception5b")},
        "pool": (),
        "fc": ("fc",),
    }
    auxiliary_heads: ClassVar[Mapping[str, str]] = {"aux1": "fc2", "aux2": "fc2"}

    @property
    def head_dropout_rate(self) -> float:
        """The rate of the dropout before the head."""
        return self.dropout_rate

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        check_image_size(images, self.smallest_image, type(self).__name__)
        unit = partial(
            ConvUnit,
            train=train,
            norm=self.norm,
            axis_name=self.axis_name,
            activation=self.activation,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init or initializers.zeros,
            dtype=self.dtype,
        )
        dense = partial(Dense, kernel_init=self.kernel_init, bias_init=self.classifier_bias_init, dtype=self.dtype)
        inception = partial(Inception, unit=unit, branch3_window=self.branch3_window)
        head = partial(
            AuxiliaryHead,
            self.num_classes,
            unit=unit,
            dense=dense,
            activation=self.activation,
            bias_init=self.bias_init,
            dropout_rate=self.aux_dropout_rate,
            pool_window=self.aux_pool_window,
            train=train,
            axis_name=self.axis_name,
        )
        # Evaluation does not need them, but `init` must create their parameters in either mode.
        heads = self.aux_logits and (train or self.is_initializing())
        lrn = self.lrn or (lambda x: x)
        pool = partial(max_pool, stride=2, ceil_mode=True)
        keep = partial(sow_feature, self)

        x = renormalise(images) if self.transform_input else images
        x = keep("conv1", unit(64, 7, stride=2, padding=3, name="conv1")(x))
        x = lrn(pool(x, 3))
        x = keep("conv2", unit(64, 1, name="conv2")(x))
        x = keep("conv3", lrn(unit(192, 3, padding=1, name="conv3")(x)))
        x = pool(x, 3)
        x = keep("inception3a", inception((64, 96, 128, 16, 32, 32), name="inception3a")(x))
        x = keep("inception3b", inception((128, 128, 192, 32, 96, 64), name="inception3b")(x))
        x = pool(x, 3)
        x = keep("inception4a", inception((192, 96, 208, 16, 48, 64), name="inception4a")(x))
        if heads:
            head(name="aux1")(x)
        x = keep("inception4b", inception((160, 112, 224, 24, 64, 64), name="inception4b")(x))
        x = keep("inception4c", inception((128, 128, 256, 24, 64, 64), name="inception4c")(x))
        x = keep("inception4d", inception((112, 144, 288, 32, 64, 64), name="inception4d")(x))
        if heads:
            head(name="aux2")(x)
        x = keep("inception4e", inception((256, 160, 320, 32, 128, 128), name="inception4e")(x))
        x = pool(x, self.last_pool_window)
        x = keep("inception5a", inception((256, 160, 320, 32, 128, 128), name="inception5a")(x))
        x = keep("inception5b", inception((384, 192, 384, 48, 128, 128), name="inception5b")(x))
        x = keep("pool", x.mean(axis=(1, 2)))
        x = Dropout(self.dropout_rate, train=train, axis_name=self.axis_name)(x)
        return dense(self.num_classes, name="fc")(x)


def renormalise(images: jax.Array) -> jax.Array:
    """From (x - mean) / std with ImageNet's figures to (x - 0.5) / 0.5, for x in [0, 1]; [..., 3]."""
    mean, std = (jnp.asarray(v, images.dtype) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    return images * (std / 0.5) + (mean - 0.5) / 0.5


MODELS: dict[str, Callable[..., nn.Module]] = {
    "googlenet": GoogLeNet,
    # The paper's choices. It does not give LRN's constants, for which AlexNet's are taken, nor the initialisation,
    # for which that of the BVLC reference model is taken: Caffe's "xavier" (uniform, variance 1 / fan in), biases 0.2,
    # and 0 in the classifiers.
    "googlenet_2014": partial(
        GoogLeNet,
        norm=None,
        lrn=local_response_norm,
        branch3_window=5,
        last_pool_window=3,
        aux_pool_window=5,
        dropout_rate=0.4,
        kernel_init=Scaled("uniform", variance=1.0),
        bias_init=initializers.constant(0.2),
        classifier_bias_init=initializers.zeros,
    ),
}
