"""The options of a network as text and as JSON, for commands and configurations: activation=gelu, groups=8."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.layers import BatchNorm, he_fan_in, he_fan_out, torch_kernel_init
from jaxnets.models.registry import create_model, factory_of
from jaxnets.models.resnet import BasicBlock, Block, Bottleneck
from jaxnets.models.resnext import EarlyConcatenationBlock, SplitTransformAddBlock
from jaxnets.ops import local_response_norm

_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "softplus", "sigmoid", "log_sigmoid"),
    *("tanh", "soft_sign", "hard_sigmoid", "hard_silu", "hard_tanh", "identity"),
)
_BIASES = {"torch": None, "zeros": initializers.zeros, "ones": initializers.ones}
# Options whose values are functions or classes, by names.
_NAMED: dict[str, dict[str, Any]] = {
    "activation": {name: getattr(jax.nn, name) for name in _ACTIVATIONS},
    "norm": {"batch_norm": BatchNorm, "none": None},
    "lrn": {"local_response_norm": local_response_norm, "none": None},
    "block": {
        "basic": BasicBlock,
        "bottleneck": Bottleneck,
        "early_concatenation": EarlyConcatenationBlock,
        "split_transform_add": SplitTransformAddBlock,
    },
    "kernel_init": {"torch": torch_kernel_init, "he_fan_in": he_fan_in, "he_fan_out": he_fan_out},
    "bias_init": _BIASES,
    "classifier_bias_init": _BIASES,
}
# What follows from the data, from --dtype or from the devices.
_ELSEWHERE = {
    "num_classes": "it follows from the data, or is given as --num-classes",
    "dtype": "it is given as --dtype",
    "axis_name": "it follows from the devices",
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Option:
    """An option of a network: its name, its annotation, its default, and its values by name if they are functions."""

    name: str
    annotation: Any
    default: Any
    named: Mapping[str, Any]

    @property
    def expected(self) -> str:
        """What the option accepts, in words."""
        names = [*self.named, *(word for kind in self._kinds if get_origin(kind) is Literal for word in get_args(kind))]
        plain = [words for kind, words in _KINDS.items() if kind in self._kinds]
        plain += ["whole numbers with commas between"] * any(map(_is_sequence, self._kinds))
        plain += ["none"] * (NoneType in self._kinds and not self.named)
        return " or ".join([", ".join(names)] * bool(names) + plain)

    @property
    def _kinds(self) -> tuple[Any, ...]:
        return members(self.annotation)

    def checked(self, value: Any) -> Any:
        """A text, or a value of a JSON file, as a value for JSON. Raises InputError if the option does not take it."""
        if self.named:
            if isinstance(value, str) and value in self.named:
                return value
            near = difflib.get_close_matches(str(value), self.named, n=1)
            raise self._refused(value, f"; did you mean {near[0]}?" if near else "")
        for kind in self._kinds:
            with_kind = _as_kind(value, kind)
            if with_kind is not _NO:
                return with_kind
        raise self._refused(value)

    def _refused(self, value: Any, hint: str = "") -> InputError:
        return InputError(f"{self.name}={value}; expected {self.expected or 'a value from Python'}{hint}")

    def built(self, value: Any) -> Any:
        """The argument of the network for a value that `checked` returned."""
        return self.named[value] if self.named else tuple(value) if isinstance(value, list) else value


_NO = object()
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list, Sequence)


def _as_kind(value: Any, kind: Any) -> Any:
    """The value as JSON has values of this type; `_NO` if it is none."""
    text = value.strip() if isinstance(value, str) else None
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else _NO
    if kind is NoneType:
        return None if value is None or text == "none" else _NO
    if kind is str:
        return _NO if text is None else text
    if kind is bool:
        return _BOOLEANS.get(text.lower(), _NO) if text is not None else value if isinstance(value, bool) else _NO
    if kind in (int, float):
        try:
            return _NO if isinstance(value, bool | float) and kind is int else kind(value)
        except (TypeError, ValueError):
            return _NO
    if _is_sequence(kind):
        parts = [part for part in text.split(",") if part] if text is not None else value
        if not isinstance(parts, list | tuple):
            return _NO
        numbers = [_as_kind(part, get_args(kind)[0]) for part in parts]
        return _NO if not numbers or _NO in numbers else numbers
    return _NO


def options_of(name: str) -> dict[str, Option]:
    """The options of the network `name` that can be given as text, in the order of their declaration.

    They are the arguments of its factory and the fields of its module.
    """
    model: Any = create_model(name)
    factory = factory_of(name)
    hints, annotations = get_type_hints(type(model)), _annotations(factory)
    parameters = {field.name: (hints.get(field.name), getattr(model, field.name)) for field in fields(model)}
    for key, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD and key in annotations:
            parameters[key] = (annotations[key], parameter.default)
    options = {
        key: Option(key, annotation, default, _named(key, annotation, type(model)))
        for key, (annotation, default) in parameters.items()
        if key not in (*_ELSEWHERE, "parent", "name") and annotation is not None
    }
    return {key: option for key, option in options.items() if option.expected}


def _annotations(factory: Any) -> dict[str, Any]:
    while isinstance(factory, partial):
        factory = factory.func
    return {} if isinstance(factory, type) else get_type_hints(factory)


def _named(name: str, annotation: Any, network: type) -> dict[str, Any]:
    """The named values of an option; batch normalisation is with the settings of the network's class."""
    if name not in _NAMED or any(kind in _KINDS for kind in members(annotation)):
        return {}
    if name == "block" and annotation != type[Block]:
        return {}
    named = dict(_NAMED[name])
    default = next((field.default for field in fields(network) if field.name == name), None)
    if name == "norm" and callable(default):
        named["batch_norm"] = default
    return named


def checked_options(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network `name`, as text or from JSON, as values for JSON.

    Raises InputError for an option that the network does not have, and for a value that it does not take.
    """
    options = options_of(name) if values else {}
    for key in values:
        if key in _ELSEWHERE:
            raise InputError(f"{key} is no option of {name} to set: {_ELSEWHERE[key]}")
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{name} has no option {key}; it has {', '.join(options)}{hint}")
    return {key: options[key].checked(value) for key, value in values.items()}


def built_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `create_model(name)` of options from JSON. Raises InputError as `checked_options`."""
    if all(isinstance(value, bool) for value in options.values()):  # switches need no conversion
        return dict(options)
    known = options_of(name)
    return {key: known[key].built(value) for key, value in checked_options(name, options).items()}


def model_with(
    name: str, options: Mapping[str, Any], *, num_classes: int = 1000, dtype: DTypeLike = jnp.float32
) -> nn.Module:
    """`create_model(name)` with options from JSON. Raises InputError as it does, and as `checked_options`."""
    return create_model(name, num_classes=num_classes, dtype=dtype, **built_options(name, options))


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """The options in texts such as "activation=gelu". Raises InputError for a text without "=", and one given twice."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"--set {text}; expected NAME=VALUE, such as --set activation=gelu")
        if values.setdefault(name, value) != value:
            raise InputError(f"--set {name} is given as {values[name]} and as {value}; give it once")
    return values
