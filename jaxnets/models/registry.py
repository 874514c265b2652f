"""The networks by name: jaxnets' own, those of `register_model`, and "package.module:factory"."""

import difflib
import fnmatch
import importlib
import inspect
import numbers
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models import alexnet, googlenet, resnet, resnet_v2, resnext
from jaxnets.models.contract import check_network, has_option

Factory = Callable[..., nn.Module]

# A family shares its default recipes and its names of tensors; "cifar" has the networks for small images of all papers.
_FAMILIES: dict[str, dict[str, Factory]] = {
    "alexnet": dict(alexnet.MODELS),
    "googlenet": dict(googlenet.MODELS),
    "resnet": dict(resnet.MODELS),
    "resnext": dict(resnext.MODELS),
    "cifar": resnet.CIFAR_MODELS | resnet_v2.CIFAR_MODELS | resnext.CIFAR_MODELS,
}
_DEFAULT_FAMILY = "resnet"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern such as "resnet*_cifar", in alphabetical order."""
    names = [name for family in _FAMILIES.values() for name in family]
    return sorted(fnmatch.filter(names, pattern))


def register_model(name: str, factory: Factory, *, family: str = _DEFAULT_FAMILY) -> None:
    """Adds a network of your own to `list_models`, `create_model` and all that takes a network's name.

    `factory(num_classes=..., dtype=...)` returns a module that keeps the contract of `jaxnets.models.contract`.
    `family` ("alexnet", "googlenet", "resnet", "resnext" or "cifar") decides its default recipe and the names of its
    tensors in files. Commands find a network under this name only if they import its module: give them
    `--arch package.module:factory`. Raises InputError for a name that is taken, or an unknown family.
    """
    if family not in _FAMILIES:
        raise InputError(f"family={family!r}; expected one of {', '.join(_FAMILIES)}")
    if ":" in name or not name:
        raise InputError(f"name={name!r}; expected one without a colon, such as 'se_resnet20'")
    known = {model: build for models in _FAMILIES.values() for model, build in models.items()}
    if name in known and known[name] is not factory:
        raise InputError(f"there is a network {name!r} already; choose another name")
    for models in _FAMILIES.values():
        models.pop(name, None)
    _FAMILIES[family][name] = factory


def family_of(name: str) -> str:
    """The family ("alexnet", "googlenet", "resnet", "resnext", "cifar") of a network; InputError if unknown.

    A network "package.module:factory" has the family under which its factory is registered, or "resnet".
    """
    if ":" in name:
        factory = _imported(name)
        return next((f for f, models in _FAMILIES.items() if factory in models.values()), _DEFAULT_FAMILY)
    for family, models in _FAMILIES.items():
        if name in models:
            return family
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.4)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else "jaxnets list (in Python: jaxnets.list_models()) names them all."
    )
    raise InputError(f"unknown architecture {name!r}; {hint} A network of your own is package.module:factory")


def factory_of(name: str) -> Factory:
    """The function that builds a network; InputError if unknown."""
    family = family_of(name)
    return _imported(name) if ":" in name else _FAMILIES[family][name]


def create_model(name: str, *, num_classes: int = 1000, dtype: DTypeLike = jnp.float32, **options: Any) -> nn.Module:
    """Builds a network, without weights: `model.init(key, images, train=False)` makes those.

    `name` is one of `list_models`, or "package.module:factory" for a network of your own; the current folder is
    searched for the package too. `options` are arguments of the network, such as `aux_logits=False` or
    `zero_init_residual=True`. `dtype` is what it computes in; parameters and statistics are float32, or float64 with
    float64. Raises InputError for an unknown name (with the nearest ones), an option that the network does not have, or
    no classes.
    """
    build = factory_of(name)
    if not jnp.issubdtype(dtype, jnp.floating) or jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise InputError(
            f"dtype={jnp.dtype(dtype).name}; expected float32, bfloat16, float16, or float64 with jax_enable_x64 set"
        )
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise InputError(f"num_classes={num_classes!r}; a network needs at least 1 class")
    accepted, any_option = _arguments(name, build)
    taken = {option: value for option, value in options.items() if any_option or option in accepted}
    try:
        model = build(num_classes=num_classes, dtype=dtype, **taken)
    except TypeError as error:
        raise InputError(f"{name} failed: {error}") from error
    check_network(model, name, num_classes)
    rest = {option: value for option, value in options.items() if option not in taken}
    unknown = sorted(option for option in rest if not has_option(model, option))
    if unknown:
        raise InputError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(sorted(accepted))}")
    return model.clone(**rest) if rest else model


def _arguments(name: str, build: Factory) -> tuple[set[str], bool]:
    """The arguments of a factory, and whether it takes any others; refuses one that lacks those of all networks."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        raise InputError(f"{name} can't be called; expected a function of num_classes and dtype") from None
    any_option = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    missing = [key for key in ("num_classes", "dtype") if key not in named and not any_option]
    needed = [key for key, p in named.items() if p.default is p.empty and key not in ("num_classes", "dtype")]
    if missing or needed:
        problem = f"does not take {' and '.join(missing)}" if missing else f"needs {', '.join(needed)} as well"
        raise InputError(f"{name}{inspect.signature(build)} {problem}; expected factory(num_classes=..., dtype=...)")
    return set(named) - {"parent", "name"}, any_option


def _imported(name: str) -> Factory:
    """The factory "package.module:factory"."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").replace("/", ".").strip(".")
        raise InputError(f"network {name!r}; give the module without its file: {dotted}:{attribute}")
    if not module_name or not attribute.isidentifier():
        raise InputError(f"network {name!r}; expected package.module:factory")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module from outside raises
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"network {name!r}: there is no module {error.name}{_near_modules(error.name)}") from None
        raise InputError(f"network {name!r}: importing it failed ({type(error).__name__}: {error})") from error
    factory = getattr(module, attribute, None)
    if callable(factory):
        return factory
    callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise InputError(f"network {name!r}: {module_name} has no function {attribute}{_hint(attribute, callables)}")


def _near_modules(missing: str | None) -> str:
    package, _, last = (missing or "").rpartition(".")
    try:
        paths = list(importlib.import_module(package).__path__) if package else [os.getcwd()]
    except (ImportError, AttributeError):
        return ""
    return _hint(last, [module.name for module in pkgutil.iter_modules(paths)])


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(near)}?" if near else ""
