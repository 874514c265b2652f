"""Settings: dataclass fields that know their help text and the values they accept."""

from dataclasses import MISSING, field, fields
from typing import Any

from jaxnets.errors import InputError

INFINITY = float("inf")


def setting(
    help: str,
    default: Any = MISSING,
    *,
    least: float = 0,
    most: float = INFINITY,
    of: tuple[str, ...] = (),
    only_with: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A dataclass field with a help text, for a number from `least` to `most` or a name out of `of`.

    `only_with` names another field and the values of that field with which this one has an effect.
    """
    metadata = {"help": help, "least": least, "most": most, "of": of, "only_with": only_with}
    return field(default=default, metadata=metadata)


def check_settings(settings: Any) -> None:
    """Raises InputError if a field of a dataclass of settings has a value that the field does not accept."""
    for one in fields(settings):
        value, rule = getattr(settings, one.name), one.metadata
        if rule["of"] and value not in rule["of"]:
            raise InputError(f"unknown {one.name} {value!r}; expected one of {', '.join(rule['of'])}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not (rule["least"] <= number <= rule["most"] and number < INFINITY):
                limit = "" if rule["most"] == INFINITY else f" and at most {rule['most']}"
                raise InputError(f"{one.name}={number}; expected a number of at least {rule['least']}{limit}")


def unused_settings(settings: Any) -> list[str]:
    """Warnings about fields that differ from their default but have no effect."""
    warnings = []
    for one in fields(settings):
        value, only_with = getattr(settings, one.name), one.metadata["only_with"]
        if only_with and value != one.default and getattr(settings, only_with[0]) not in only_with[1]:
            other, values = only_with
            warnings.append(
                f"warning: {one.name}={value} has no effect with {other}={getattr(settings, other)}, only with "
                + ", ".join(values)
            )
    return warnings
