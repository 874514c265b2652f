"""The networks by name."""

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models import alexnet, googlenet, resnet, resnet_v2, resnext

# A family shares its training defaults; "cifar" holds the networks for small images of all papers.
_FAMILIES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "alexnet": alexnet.MODELS,
    "googlenet": googlenet.MODELS,
    "resnet": resnet.MODELS,
    "resnext": resnext.MODELS,
    "cifar": resnet.CIFAR_MODELS | resnet_v2.CIFAR_MODELS | resnext.CIFAR_MODELS,
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern such as "resnet*_cifar", in alphabetical order."""
    names = [name for family in _FAMILIES.values() for name in family]
    return sorted(fnmatch.filter(names, pattern))


def family_of(name: str) -> str:
    """The family ("alexnet", "googlenet", "resnet", "resnext", "cifar") of a network; InputError if unknown."""
    for family, models in _FAMILIES.items():
        if name in models:
            return family
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "jaxnets.list_models() names them all"
    raise InputError(f"unknown architecture {name!r}; {hint}")


def create_model(name: str, *, num_classes: int = 1000, dtype: DTypeLike = jnp.float32, **options: Any) -> nn.Module:
    """Builds a network, without weights: `model.init(key, images, train=False)` makes those.

    `options` are arguments of the network's class, such as `aux_logits=False` or `zero_init_residual=True`.
    `dtype` is what it computes in; parameters and statistics are float32, or float64 with float64.
    Raises InputError for an unknown name (with the nearest ones), an option that the network lacks, or no classes.
    """
    build = _FAMILIES[family_of(name)][name]
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InputError(
            f"dtype={jnp.dtype(dtype).name}; expected float32, bfloat16, float16, or float64 with jax_enable_x64 set"
        )
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes}; a network needs at least 1 class")
    network: Any = getattr(build, "func", build)
    accepted = sorted({field.name for field in fields(network)} - {"parent", "name"})
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}")
    return build(num_classes=num_classes, dtype=dtype, **options)
