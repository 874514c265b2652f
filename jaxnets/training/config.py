"""A run's configuration, as it stands in its workdir's config.json."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.training.recipe import Recipe
from jaxnets.transfer import TRANSFERS
from jaxnets.weights.runs import network_of

DTYPES = ("float32", "bfloat16", "float64")
# What may change while a run stands still: where the images lie (whether they are the same is seen from themselves),
# how often metrics are logged, and what is computed twice to save memory.
_MAY_CHANGE = ("dataset", "data_dir", "log_every", "remat")


@dataclass(frozen=True)
class Config:
    """Everything that a run's numbers follow from. `dtype` is what the network computes in.

    `data_dir` is where TFDS keeps its data sets (None: its own choice); `test_share` is held out of a data set that has
    no test images; bad images stop the run or are skipped, as `on_bad_image` says; metrics are logged every `log_every`
    steps. `weights` are what it starts from, as `jaxnets.load_pretrained` takes them; `transfer` says what of them is
    trained: "full" (the same as None), "partial" (from the stage `train_from` on) or "head".
    """

    arch: str
    recipe: Recipe
    dataset: str = "digits"
    seed: int = 0
    dtype: str = "float32"
    data_dir: str | None = None
    test_share: float = 0.2
    on_bad_image: str = "error"
    log_every: int = 10
    weights: str | None = None
    transfer: str | None = None
    train_from: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}; expected {', '.join(DTYPES)}")
        self._check_transfer()
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise InputError(f"on_bad_image={self.on_bad_image!r}; expected {' or '.join(ON_BAD_IMAGE)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}; expected a whole number from 0 to {2**32 - 1}")
        if self.log_every < 1:
            raise InputError(f"log_every={self.log_every}; expected at least 1 step")

    def warnings(self) -> list[str]:
        """What is allowed, but hardly meant."""
        found = self.recipe.warnings()
        if self.recipe.head_epochs and self.weights is None:
            found.append(
                f"warning: head_epochs={self.recipe.head_epochs} trains a head on random weights; give --weights"
            )
        return found

    def _check_transfer(self) -> None:
        recipe = self.recipe
        if self.transfer not in (None, *TRANSFERS):
            raise InputError(f"unknown transfer {self.transfer!r}; expected one of {', '.join(TRANSFERS)}")
        if self.weights is None and self.transfer is not None:
            raise InputError(f"transfer={self.transfer} needs weights to start from; give --weights")
        if self.train_from is not None and self.transfer != "partial":
            raise InputError(f"train_from={self.train_from} goes with transfer=partial, not with {self.transfer}")
        if self.transfer == "head" and recipe.head_epochs:
            raise InputError("transfer=head trains the head alone in all epochs; leave out --head-epochs")
        if self.transfer == "head" and recipe.precise_batch_norm_images:
            raise InputError("transfer=head keeps the statistics that precise_batch_norm_images would replace")
        if recipe.head_epochs >= recipe.epochs:
            raise InputError(f"head_epochs={recipe.head_epochs} leaves none of epochs={recipe.epochs} for the rest")

    def create_model(self, num_classes: int, **options: Any) -> nn.Module:
        """The network with the recipe's settings. Raises InputError if it does not have one of them.

        `options` are those of the weights that it starts from.
        """
        return network_of(asdict(self), num_classes, options)

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The configuration from what `dataclasses.asdict` made of it, or JSON of that."""
        recipe: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values["recipe"].items()
        }
        return cls(**{**values, "recipe": Recipe(**recipe)})

    @classmethod
    def read(cls, path: Path) -> "Config":
        """The configuration of a config.json; raises InputError where it is damaged or of another version."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged or from another version ({error})") from None

    def check_goes_on(self, before: "Config") -> None:
        """Raises InputError where a run that began as `before` would not go on the same."""
        for ours, theirs, prefix in ((self, before, ""), (self.recipe, before.recipe, "recipe.")):
            for setting in fields(ours):
                now, then = getattr(ours, setting.name), getattr(theirs, setting.name)
                if setting.name not in ("recipe", *_MAY_CHANGE) and now != then:
                    raise InputError(
                        f"the run began with {prefix}{setting.name}={then}, now it is {now}; resume with the same, or "
                        "train anew in another --workdir"
                    )
