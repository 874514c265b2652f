"""AlexNet: the network of the 2012 paper, and the one-tower network of 2014 that torchvision has.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012.
Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (arXiv 1404.5997): torchvision's.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.models.checks import check_call, check_functions, check_whole
from jaxnets.models.initialization import Scaled
from jaxnets.models.layers import (
    Activation,
    Conv,
    Dense,
    Dropout,
    Initializer,
    Stages,
    sow_feature,
    torch_kernel_init,
)
from jaxnets.ops import adaptive_avg_pool, local_response_norm, max_pool
from jaxnets.ops.windows import smallest_input

Normalise = Callable[[jax.Array], jax.Array]
_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2", "fc3")


class AlexNet(nn.Module):
    """torchvision's AlexNet: [N, H, W, 3] -> logits [N, num_classes], images of at least 63 px.

    One tower, no response normalisation (unless `lrn` is one), dropout before the first two dense layers.
    Initialisation: torch's default for all layers. `num_filters` are those of conv1; the other convolutions have theirs
    in proportion.
    """

    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    lrn: Normalise | None = None
    activation: Activation = nn.relu
    kernel_init: Initializer = torch_kernel_init
    num_filters: int = 64
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    smallest_image: ClassVar[int] = smallest_input([(11, 4, 2, False), *3 * [(3, 2, 0, False)]])
    stages: ClassVar[Stages] = {name: (name,) for name in _LAYERS}
    head_dropout_rate: ClassVar[float] = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        train = check_call(type(self).__name__, images, train, self.smallest_image)
        lrn = self.lrn or _identity
        widths = {"num_filters": self.num_filters, "hidden_features": self.hidden_features}
        check_whole(type(self).__name__, num_classes=self.num_classes, **widths)
        check_functions(type(self).__name__, activation=self.activation, kernel_init=self.kernel_init, lrn=lrn)
        conv = partial(Conv, use_bias=True, kernel_init=self.kernel_init, bias_init=None, dtype=self.dtype)
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        dropout = partial(Dropout, self.dropout_rate, train=train, axis_name=self.axis_name)
        keep, filters = partial(sow_feature, self), self.num_filters
        x = keep("conv1", lrn(conv(filters, 11, stride=4, padding=2, name="conv1")(images, self.activation)))
        x = max_pool(x, 3, stride=2)
        x = keep("conv2", lrn(conv(3 * filters, 5, padding=2, name="conv2")(x, self.activation)))
        x = max_pool(x, 3, stride=2)
        x = keep("conv3", conv(6 * filters, 3, padding=1, name="conv3")(x, self.activation))
        x = keep("conv4", conv(4 * filters, 3, padding=1, name="conv4")(x, self.activation))
        x = keep("conv5", conv(4 * filters, 3, padding=1, name="conv5")(x, self.activation))
        x = max_pool(x, 3, stride=2)
        x = adaptive_avg_pool(x, 6).reshape(x.shape[0], -1)
        x = keep("fc1", self.activation(dense(self.hidden_features, name="fc1")(dropout()(x))))
        x = keep("fc2", self.activation(dense(self.hidden_features, name="fc2")(dropout()(x))))
        return dense(self.num_classes, name="fc3")(x)


class AlexNet2012(nn.Module):
    """The paper's AlexNet: [N, H, W, 3] -> logits [N, num_classes], images of at least 63 px; the paper's are 224.

    Two groups, one for each of its two GPUs, in conv2, conv4 and conv5 (figure 2); response normalisation after the
    ReLU of conv1 and conv2 (section 3.3); overlapping pooling (3.4); dropout on the outputs of the first two dense
    layers (4.2). Initialisation (section 5): weights N(0, 0.01), biases 1 in conv2, conv4, conv5 and the hidden dense
    layers, 0 elsewhere. Away from 224 px the last map is averaged to the 6x6 that the dense layers expect.
    `num_filters` are those of conv1; the other convolutions have theirs in proportion.
    """

    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    groups: int = 2
    lrn: Normalise | None = local_response_norm
    activation: Activation = nn.relu
    kernel_init: Initializer = Scaled("normal", factor=0.01)
    num_filters: int = 96
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    smallest_image: ClassVar[int] = smallest_input([(11, 4, 2, False), *3 * [(3, 2, 0, False)]])
    stages: ClassVar[Stages] = {name: (name,) for name in _LAYERS}

    @property
    def head_dropout_rate(self) -> float:
        """The rate of the dropout before the head."""
        return self.dropout_rate

    @nn.compact
    def __call__(self, images: jax.Array, train: bool | None = None) -> jax.Array:
        train = check_call(type(self).__name__, images, train, self.smallest_image)
        lrn = self.lrn or _identity
        widths = {"num_filters": self.num_filters, "hidden_features": self.hidden_features}
        check_whole(type(self).__name__, num_classes=self.num_classes, **widths)
        check_functions(type(self).__name__, activation=self.activation, kernel_init=self.kernel_init, lrn=lrn)
        conv = partial(Conv, use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype)
        dense = partial(Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        dropout = partial(Dropout, self.dropout_rate, train=train, axis_name=self.axis_name)
        keep, filters = partial(sow_feature, self), self.num_filters
        ones, zeros = initializers.ones, initializers.zeros
        towers = partial(conv, groups=self.groups, bias_init=ones)
        conv1 = conv(filters, 11, stride=4, padding=2, bias_init=zeros, name="conv1")
        x = keep("conv1", lrn(conv1(images, self.activation)))
        x = max_pool(x, 3, stride=2)
        x = keep("conv2", lrn(towers(8 * filters // 3, 5, padding=2, name="conv2")(x, self.activation)))
        x = max_pool(x, 3, stride=2)
        x = keep("conv3", conv(4 * filters, 3, padding=1, bias_init=zeros, name="conv3")(x, self.activation))
        x = keep("conv4", towers(4 * filters, 3, padding=1, name="conv4")(x, self.activation))
        x = keep("conv5", towers(8 * filters // 3, 3, padding=1, name="conv5")(x, self.activation))
        x = max_pool(x, 3, stride=2)
        x = adaptive_avg_pool(x, 6).reshape(x.shape[0], -1)
        x = keep("fc1", self.activation(dense(self.hidden_features, bias_init=ones, name="fc1")(x)))
        x = keep("fc2", self.activation(dense(self.hidden_features, bias_init=ones, name="fc2")(dropout()(x))))
        return dense(self.num_classes, bias_init=zeros, name="fc3")(dropout()(x))


def _identity(x: jax.Array) -> jax.Array:
    return x


MODELS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "alexnet_2012": AlexNet2012}
