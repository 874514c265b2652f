"""The preprocessing, class names and network options that belong to weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError


@dataclass(frozen=True)
class Origin:
    """The preprocessing and class names that weights were trained with, and the network's options as JSON has them."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Origin":
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        if not all(isinstance(name, str) for name in values["class_names"]):
            raise InputError("a class name is not text; expected a list of strings")
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        return cls(preprocessing, tuple(values["class_names"]), dict(values["options"]))
