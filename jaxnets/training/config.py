"""A run's configuration, as it stands in its workdir's config.json."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.training.recipes import Recipe

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """Everything that a run's numbers follow from. `dtype` is what the network computes in.

    `data_dir` is where TFDS keeps its data sets (None: its own choice); `test_share` is held out of a data set that has
    no test images; bad images stop the run or are skipped, as `on_bad_image` says.
    """

    arch: str
    recipe: Recipe
    dataset: str = "digits"
    seed: int = 0
    dtype: str = "float32"
    data_dir: str | None = None
    test_share: float = 0.2
    on_bad_image: str = "error"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}; expected {' or '.join(DTYPES)}")
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise InputError(f"on_bad_image={self.on_bad_image!r}; expected {' or '.join(ON_BAD_IMAGE)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}; expected a whole number from 0 to {2**32 - 1}")

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The configuration from what `dataclasses.asdict` made of it."""
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})
