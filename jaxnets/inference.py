"""Networks in the form that is fastest to evaluate."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.layers import BatchNorm, Initializer, param_dtype
from jaxnets.models.resnet_v2 import PreActivationResNet
from jaxnets.ops import compile, pack_kernels

# The convolution before each norm, by the norm's name.
_CONVOLUTIONS = {"bn": "conv", "downsample_bn": "downsample_conv", **{f"bn{i}": f"conv{i}" for i in (1, 2, 3)}}
_AUXILIARY_HEADS = ("aux1", "aux2")


def fold(model: Any, variables: Mapping[str, Any], dtype: DTypeLike | None = None) -> tuple[Any, dict[str, Any]]:
    """The network with each norm multiplied into the convolution before it, and without auxiliary heads.

    `apply(variables, images, train=False)` of what is returned equals that of what was given up to rounding. `dtype`,
    such as bfloat16, is what it computes and stores its weights in; by default as before. Where a norm precedes its
    convolution (pre-activation networks) it becomes a scale and a shift. Raises InputError for norms other than
    BatchNorm, and for weights that are not finite: logits would not always show it.
    """
    norm = getattr(model, "norm", None)
    params = {name: tree for name, tree in variables["params"].items() if name not in _AUXILIARY_HEADS}
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if hasattr(model, "aux_logits"):
        options["aux_logits"] = False
    if norm is not None:
        kind, settings = (norm.func, norm.keywords) if isinstance(norm, partial) else (norm, {})
        if kind is not BatchNorm:
            raise InputError(f"only BatchNorm can be folded into convolutions; the network has {kind}")
        epsilon = settings.get("epsilon", BatchNorm.epsilon)
        apart = isinstance(model, PreActivationResNet)
        params = _folded(params, variables["batch_stats"], epsilon, apart)
        options["norm"] = ScaleAndShift if apart else None
    for path, leaf in jax.tree.leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = "/".join(key.key for key in path)
            raise InputError(f"{name} has values that are not finite; fold an earlier checkpoint of the network")
    stored = jnp.dtype(dtype if dtype is not None else param_dtype(model.dtype))
    return model.clone(**options), {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, stored), params)}


def specialised(function: Callable[..., Any], variables: Any, *arguments: Any) -> Callable[..., Any]:
    """`function(variables, *arguments)` compiled for these variables, as a function of arguments of these shapes.

    On the CPU this lays out the kernels of a folded network for its convolutions, which each call does otherwise. The
    variables are copied: changing them later has no effect.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.array, variables))

    def flat(leaves: list[jax.Array], *arguments: Any) -> Any:
        return function(jax.tree.unflatten(tree, leaves), *arguments)

    run, packed = pack_kernels(flat, leaves, *arguments)
    return partial(compile(jax.jit(run), packed, *arguments), packed)


def _folded(params: Mapping[str, Any], stats: Mapping[str, Any], epsilon: float, apart: bool) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, tree in params.items():
        if not isinstance(tree, Mapping):
            folded[name] = tree
        elif set(stats.get(name, ())) != {"mean", "var"}:
            folded[name] = _folded(tree, stats.get(name, {}), epsilon, apart)
    for name in params.keys() - folded.keys():
        scale, bias, mean, var = (
            np.asarray(tree[leaf], np.float64)
            for tree, leaf in (
                (params[name], "scale"),
                (params[name], "bias"),
                (stats[name], "mean"),
                (stats[name], "var"),
            )
        )
        with np.errstate(invalid="ignore"):  # refused later
            factor = scale / np.sqrt(var + epsilon)
        shift = bias - mean * factor
        if apart:
            folded[name] = {"scale": factor, "bias": shift}
        else:
            # Repeated blocks have one more axis in front, in all of them.
            kernel = np.asarray(params[_CONVOLUTIONS[name]]["kernel"], np.float64) * factor[..., None, None, None, :]
            folded[_CONVOLUTIONS[name]] = {"kernel": kernel, "bias": shift}
    return folded


class ScaleAndShift(nn.Module):
    """What is left of a norm in evaluation: `inputs * scale + bias`, for [..., C]."""

    train: bool
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32
    scale_init: Initializer = initializers.ones

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        shape, stored = (inputs.shape[-1],), param_dtype(self.dtype)
        scale = self.param("scale", self.scale_init, shape, stored)
        bias = self.param("bias", initializers.zeros, shape, stored)
        return inputs * scale.astype(self.dtype) + bias.astype(self.dtype)
