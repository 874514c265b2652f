"""The layers of the networks, their initialisers, and the check of images."""

from collections.abc import Callable, Mapping
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.contract import Pairs as Pairs
from jaxnets.models.contract import Stages as Stages
from jaxnets.models.initialization import Scaled, parameter
from jaxnets.ops import batch_norm, conv2d, conv2d_bias, dense, image_keys

Activation = Callable[[jax.Array], jax.Array]
Initializer = initializers.Initializer

# The default of torch's nn.Conv2d and nn.Linear: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
torch_kernel_init = Scaled("uniform", variance=1 / 3)
# He et al. 2015 (arXiv 1502.01852); torchvision's ResNet counts the fan out, the paper the fan in.
he_fan_out = Scaled("normal", variance=2.0, fan="out")
he_fan_in = Scaled("normal", variance=2.0)

# Names for jax.checkpoint_policies.save_only_these_names: with these values kept, the backward pass repeats no
# convolution, no dense layer, and no reduction of statistics over replicas.
KEPT_OUTPUTS = ("convolution", "dense", "moments")

# The collection of arrays that are added to the outputs of stages, which makes derivatives with respect to them known.
ADDED = "perturbations"


def torch_bias_init(fan_in: int) -> Initializer:
    """torch's bias initialiser, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which depends on the layer's inputs."""
    return Scaled("uniform", factor=fan_in**-0.5)


def param_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Parameters and statistics are float32, or float64 where the computation is."""
    return jnp.promote_types(dtype, jnp.float32)


def check_image_size(images: jax.Array, smallest: int, network: str) -> None:
    """Raises InputError unless `images` is floating-point [N, H, W, C] with H and W of at least `smallest`."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"{network} got images of type {images.dtype}; expected floating-point, normalised images")
    if images.ndim != 4:
        raise InputError(f"{network} got images of shape {images.shape}; expected [N, H, W, C]")
    _, height, width, _ = images.shape
    if min(height, width) < smallest:
        raise InputError(
            f"{network} got images of {height}x{width} px; the smallest that it can take is {smallest}x{smallest}"
        )


class Conv(nn.Module):
    """Convolution with a square window and symmetric padding: [N, H, W, C] -> [N, H', W', features].

    Parameters: `kernel` [window, window, C / groups, features] and, with `use_bias`, `bias` [features].
    `bias_init=None` is torch's, which depends on the fan in. `op` computes it, with the arguments of `conv2d`.
    """

    features: int
    window: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_kernel_init
    bias_init: Initializer | None = initializers.zeros
    op: Callable[..., jax.Array] = conv2d

    @nn.compact
    def __call__(
        self, inputs: jax.Array, activation: Activation | None = None, added: jax.Array | None = None
    ) -> jax.Array:
        """Convolves, adds `added` [N, H', W', features] and applies the activation, in one pass where possible."""
        if inputs.shape[-1] % self.groups or self.features % self.groups:
            raise InputError(
                f"groups={self.groups} must divide the {inputs.shape[-1]} input and {self.features} output channels"
            )
        shape = (self.window, self.window, inputs.shape[-1] // self.groups, self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape, param_dtype(self.dtype)).astype(self.dtype)
        inputs = inputs.astype(self.dtype)
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        if not (self.use_bias or self.has_variable("params", "bias")):  # a folded norm adds one
            outputs = checkpoint_name(self.op(inputs, kernel, **options), "convolution")
        else:
            bias_init = self.bias_init or torch_bias_init(self.window**2 * shape[2])
            bias = parameter(self, "bias", bias_init, (self.features,), param_dtype(self.dtype)).astype(self.dtype)
            if self.op is conv2d:
                return conv2d_bias(inputs, kernel, bias, added, activation=activation, **options)
            outputs = checkpoint_name(self.op(inputs, kernel, **options) + bias, "convolution")
        if added is not None:
            outputs += added
        return outputs if activation is None else activation(outputs)


class Dense(nn.Module):
    """Fully connected layer, [N, C] -> [N, features], with `kernel` [C, features] and `bias` [features].

    `bias_init=None` is torch's, which depends on the fan in.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = torch_kernel_init
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        channels, stored = inputs.shape[-1], param_dtype(self.dtype)
        kernel = parameter(self, "kernel", self.kernel_init, (channels, self.features), stored)
        bias = parameter(self, "bias", self.bias_init or torch_bias_init(channels), (self.features,), stored)
        outputs = dense(inputs.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return checkpoint_name(outputs, "dense")


class Dropout(nn.Module):
    """In training sets values of [N, ...] to zero with probability `rate`, and divides the others by 1 - rate.

    With `whole_images` all values of an image are kept or dropped together, as in stochastic depth (Huang et al. 2016).
    Each image has its own key, derived from rng "dropout" and its index in the batch over all replicas of `axis_name`,
    so one device and several devices drop the same values.
    """

    rate: float | jax.Array
    train: bool
    axis_name: str | None = None
    whole_images: bool = False

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is dropped."""
        return not self.train or (not isinstance(self.rate, jax.Array) and self.rate == 0)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        known = not isinstance(self.rate, jax.Array)
        if known and not 0 <= self.rate <= 1:
            raise InputError(f"a dropout rate of {self.rate}; expected one from 0 to 1")
        if self.keeps_all:
            return inputs
        if known and self.rate == 1:
            return jnp.zeros_like(inputs)
        # `init` runs outside of any replicated axis.
        axis_name = None if self.is_initializing() else self.axis_name
        keys = image_keys(self.make_rng("dropout"), len(inputs), axis_name)
        shape = (1,) * (inputs.ndim - 1) if self.whole_images else inputs.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(kept, inputs / jnp.asarray(1 - self.rate, inputs.dtype), 0)


def sow_feature(module: nn.Module, stage: str, value: jax.Array) -> jax.Array:
    """Returns `value`, and sows it as the output of `stage` for `jaxnets.features`; free if nobody reads it.

    All stages share one variable of the collection "features", a dict, as a stage's name may be that of a submodule.
    Where the collection `ADDED` has an array for the stage, it is added to `value`.
    """
    if not module.is_initializing():
        added: Mapping[str, jax.Array] = module.get_variable(ADDED, "outputs", {})
        if stage in added:
            value = value + added[stage]
        module.sow("features", "outputs", {stage: value}, init_fn=dict, reduce_fn=lambda old, new: old | new)
    return value


class NormFactory(Protocol):
    """What a network takes as `norm`: `BatchNorm`, a partial of it, or a class with the same arguments."""

    def __call__(
        self, *, train: bool, dtype: DTypeLike, axis_name: str | None, name: str, scale_init: Initializer = ...
    ) -> nn.Module: ...


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), with torch's conventions.

    `momentum` is the share of the old running statistics that is kept: 0.9 is what torch calls 0.1. Statistics are
    taken over the replicas of `axis_name` as well, where one is given. Mean and variance are found in two passes, in
    float32 at least: E[x^2] - E[x]^2 loses digits where the mean is large against the deviation.
    `unbiased_variance` stores the running variance with torch's n / (n - 1); Flax's own BatchNorm does not.
    Variables: params `scale`, `bias`; batch_stats `mean`, `var`; each [C]. After `inference.fold` it has the param
    `folded` [0] alone, and returns its inputs.
    """

    train: bool
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased_variance: bool = True
    dtype: DTypeLike = jnp.float32
    scale_init: Initializer = initializers.ones

    @property
    def folded(self) -> bool:
        """Whether `inference.fold` has multiplied the norm into the convolution before it."""
        return self.has_variable("params", "folded")

    @nn.compact
    def __call__(self, inputs: jax.Array, activation: Activation | None = None) -> jax.Array:
        """Normalises [..., C] and applies the activation, in one pass where possible."""
        if self.folded:
            return inputs if activation is None else activation(inputs)
        stats_dtype = param_dtype(self.dtype)
        shape = (inputs.shape[-1],)
        scale = parameter(self, "scale", self.scale_init, shape, stats_dtype)
        bias = parameter(self, "bias", initializers.zeros, shape, stats_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, stats_dtype)
        mean, var = running_mean.value, running_var.value
        if not self.train:
            factor = scale * jax.lax.rsqrt(var + self.epsilon)
            outputs = ((inputs.astype(stats_dtype) - mean) * factor + bias).astype(self.dtype)
            return outputs if activation is None else activation(outputs)
        # `init` runs outside of any replicated axis.
        axis_name = None if self.is_initializing() else self.axis_name
        outputs, (mean, var) = batch_norm(inputs.astype(self.dtype), scale, bias, self.epsilon, axis_name, activation)
        if not self.is_initializing():
            count = inputs.size // inputs.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
            correction = count / max(count - 1, 1) if self.unbiased_variance else 1.0
            keep = self.momentum
            mean, var = jax.lax.stop_gradient((mean, var))
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * correction * var
        return outputs


def activated(norm: nn.Module | None, activation: Activation | None, inputs: jax.Array) -> jax.Array:
    """`activation(norm(inputs))`, in one pass where possible."""
    if isinstance(norm, BatchNorm):
        outputs: jax.Array = norm(inputs, activation)
        return outputs
    outputs = inputs if norm is None else norm(inputs)
    return outputs if activation is None else activation(outputs)


def convolved(
    conv: nn.Module,
    norm: nn.Module | None,
    inputs: jax.Array,
    activation: Activation | None = None,
    added: jax.Array | None = None,
    drop: Dropout | None = None,
) -> jax.Array:
    """`activation(drop(norm(conv(inputs))) + added)`, in as few passes over memory as possible."""
    if isinstance(norm, BatchNorm) and norm.folded:
        norm = None
    if norm is None and (drop is None or drop.keeps_all):
        outputs: jax.Array = conv(inputs, activation, added)
        return outputs
    if added is None and drop is None:
        return activated(norm, activation, conv(inputs))
    outputs = activated(norm, None, conv(inputs))
    if drop is not None:
        outputs = drop(outputs)
    if added is not None:
        outputs += added
    return outputs if activation is None else activation(outputs)
