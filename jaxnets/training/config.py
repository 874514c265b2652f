"""A run's configuration, as it stands in its workdir's config.json."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from jaxnets.errors import InputError
from jaxnets.training.recipes import Recipe

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """Everything that a run's numbers follow from. `dtype` is what the network computes in."""

    arch: str
    recipe: Recipe
    dataset: str = "digits"
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}; expected {' or '.join(DTYPES)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}; expected a whole number from 0 to {2**32 - 1}")

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The configuration from what `dataclasses.asdict` made of it."""
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})
