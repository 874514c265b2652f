"""The configuration of a run from settings by name: those of a command line, a Python call or a config.json."""

import difflib
import json
import numbers
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from jaxnets.data.datasets import absolute, check_there
from jaxnets.data.sources import Dataset
from jaxnets.errors import InputError
from jaxnets.models.options import checked_options, members
from jaxnets.pretrained import describe
from jaxnets.training.class_weights import BALANCED
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import recipe_for

_RECIPE = tuple(setting.name for setting in fields(Recipe))
_TYPES = get_type_hints(Recipe) | get_type_hints(Config) | {"recipe": str}
_SHORT = {"lr": "learning_rate"}
_DESCRIBED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "names with values"}


def configure(settings: Mapping[str, Any], before: Path | None = None) -> Config:
    """The configuration from `settings`: fields of Config and of Recipe by name; `recipe` is the name of a recipe.

    `lr` is the learning rate, as on the command line. Other settings are those of the recipe, which depends on the
    network, the data set and whether there are weights, or the defaults. `dataset` may be a Dataset. `before` is the
    folder of a run to continue: without `arch` the run keeps its configuration. Raises InputError for an unknown
    setting, and for a value that a setting does not accept.
    """
    settings = {_SHORT.get(name, name): value for name, value in settings.items()}
    dataset = settings.get("dataset", "digits")
    given = {name: _typed(name, value) for name, value in settings.items() if name != "dataset"}
    if "dataset" in settings:
        given["dataset"] = dataset.name if isinstance(dataset, Dataset) else absolute(_text("dataset", dataset))
    if given.get("data_dir") is not None:
        given["data_dir"] = str(Path(given["data_dir"]).expanduser().absolute())
    if given.get("weights") is not None:
        given["weights"] = _absolute_weights(given["weights"])
    elif given.get("transfer") is not None:
        given["weights"] = "DEFAULT"
    changes = {name: given.pop(name) for name in _RECIPE if name in given}
    if changes.get("class_weights") not in (None, BALANCED):
        changes["class_weights"] = str(Path(changes["class_weights"]).expanduser().absolute())
    name = given.pop("recipe", None)
    if "arch" not in given:
        if before is None or not (before / "config.json").exists():
            nothing = f"{before} holds no run to continue; " if before is not None else ""
            raise InputError(f"{nothing}give the network as --arch, such as --arch resnet50")
        if name is not None:
            raise InputError(f"--recipe {name} needs --arch; without both, the run keeps its own recipe")
        config = Config.read(before / "config.json")
        _set_options(config.arch, given, changes)
        return replace(config, recipe=replace(config.recipe, **changes), **given)
    _set_options(given["arch"], given, changes)
    weights = given.get("weights")
    if weights is not None:
        name = name or ("linear_probe" if given.get("transfer") == "head" else "finetune")
    recipe = recipe_for(given["arch"], dataset if isinstance(dataset, Dataset) else given.get("dataset", dataset), name)
    if weights is not None:
        if not isinstance(dataset, Dataset):
            check_there(given.get("dataset", dataset))  # before weights are downloaded
        recipe = _with_sizes_of_weights(recipe, given, before)
    return Config(recipe=replace(recipe, **changes), **given)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file such as a run's config.json. Raises InputError for a file that can't be read as one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the run's configuration in it, {path / 'config.json'}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give a run's config.json") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}); give a run's config.json") from None
    if not isinstance(values, dict) or not isinstance(values.get("recipe", {}), dict):
        raise InputError(f"{path} holds no configuration; give a run's config.json")
    recipe = values.pop("recipe", {})
    try:
        for name in recipe:
            if name not in _RECIPE:
                raise _unknown(name, _RECIPE)
        settings = values | recipe
        for name, value in settings.items():
            _typed(name, value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return settings


def override(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `before`, overridden by `settings`. A recipe by name replaces all settings of the recipe before."""
    if "recipe" in settings:
        before = {name: value for name, value in before.items() if name not in _RECIPE}
    options = {**before.get("network_options", {}), **settings.get("network_options", {})}
    return {**before, **settings} | ({"network_options": options} if options else {})


def _set_options(arch: str, given: dict[str, Any], changes: dict[str, Any]) -> None:
    """Checks the options of the network. Those that the recipe has as settings, such as dropout_rate, become these."""
    if not given.get("network_options"):
        given.pop("network_options", None)
        return
    options = checked_options(arch, given["network_options"])
    for name in [name for name in options if name in _RECIPE]:
        value = options.pop(name)
        if changes.setdefault(name, value) != value:
            raise InputError(f"{name} is given as {changes[name]} and, as an option, as {value}; give it once")
    given["network_options"] = options


def _with_sizes_of_weights(recipe: Recipe, given: Mapping[str, Any], before: Path | None) -> Recipe:
    """The recipe with the image size and the crop that the weights were tested with; a resumed run keeps its own."""
    if before is not None and (before / "config.json").exists():
        theirs = Config.read(before / "config.json").recipe
        return replace(recipe, image_size=theirs.image_size, crop_pct=theirs.crop_pct)
    return recipe.with_sizes_of(describe(given["arch"], given["weights"], given.get("weights_key")).preprocessing)


def _absolute_weights(weights: str) -> str:
    """A published name unchanged, or an absolute path."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() or os.sep in weights or path.suffix else weights


def _unknown(name: str, known: Any) -> InputError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "jaxnets train --help lists all of them"
    return InputError(f"unknown setting {name!r}; {hint}")


def _typed(name: str, value: Any) -> Any:
    """The value as the type of the setting `name` that it stands for; raises InputError if it is none."""
    if name not in _TYPES:
        raise _unknown(name, _TYPES)
    if name == "dataset" and isinstance(value, Dataset):
        return value
    kinds = members(_TYPES[name])
    for kind in kinds:
        if kind is NoneType and value is None:
            return None
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            if all(_is_a(number, get_args(kind)[0]) for number in value):
                return tuple(get_args(kind)[0](number) for number in value)
        elif (plain := get_origin(kind) or kind) in _DESCRIBED and _is_a(value, plain):
            return plain(value)
    expected = [_DESCRIBED.get(get_origin(kind) or kind, "a list of numbers") for kind in kinds if kind is not NoneType]
    raise InputError(f"{name}={value!r}; expected {' or '.join(expected)}")


def _text(name: str, value: Any) -> str:
    text: str = _typed(name, value)
    return text


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, str | os.PathLike if kind is str else kind)
