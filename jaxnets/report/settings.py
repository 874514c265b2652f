"""The settings of runs, their defaults and their differences."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from typing import Any

from jaxnets.errors import InputError
from jaxnets.report.page import details, paragraph, section, table

_MISSING = "\N{EM DASH}"


def settings_section(config: Mapping[str, Any]) -> str:
    """The settings of a run: those that differ from the defaults of its network and data set, and all, folded."""
    values, defaults, help = flat(config), _defaults(config), _help()
    changed = [name for name in values if name in defaults and values[name] != defaults[name]]
    head = ("setting", "value", "default", "meaning")

    def rows(names: Sequence[str]) -> list[tuple[str, ...]]:
        return [(name, _text(values, name), _text(defaults, name), help.get(name, "")) for name in names]

    return section(
        "Settings",
        paragraph("These differ from the defaults:") if changed else paragraph("All are the defaults."),
        table(head, rows(changed), "settings that differ from the defaults") if changed else "",
        details(f"All {len(values)} settings", table(head, rows(list(values)), "all settings")),
    )


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The settings that are not the same in all runs: the name, and the value in each run."""
    runs = [flat(config) for config in configs]
    names = dict.fromkeys(name for run in runs for name in run)
    rows = [(name, *(_text(run, name) for run in runs)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by name; those of the recipe and of the network stand beside the others."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= value if isinstance(value, dict) else {name: value}
    return values


def _text(values: Mapping[str, Any], name: str) -> str:
    match values.get(name, MISSING):
        case value if value is MISSING:
            return _MISSING
        case None | [] | ():
            return "none"
        case bool() as value:
            return "yes" if value else "no"
        case [*parts]:
            return " ".join(str(part) for part in parts)
        case value:
            return str(value)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    from jaxnets.training.config import Config
    from jaxnets.training.recipe import Recipe
    from jaxnets.training.recipes import recipe_for

    own = {setting.name: setting.default for kind in (Recipe, Config) for setting in fields(kind)}
    defaults = {name: value for name, value in own.items() if value is not MISSING}
    name = None
    if config.get("weights") is not None:
        name = "linear_probe" if config.get("transfer") == "head" else "finetune"
    with suppress(InputError):  # a network that was given as an object
        defaults |= asdict(recipe_for(config["arch"], config["dataset"], name))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def _help() -> dict[str, str]:
    from jaxnets.training.recipe import Recipe

    return {setting.name: setting.metadata["help"] for setting in fields(Recipe)}
