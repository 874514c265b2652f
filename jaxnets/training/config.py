"""The configuration of a run, as in config.json in its workdir."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxnets.data.datasets import load_dataset
from jaxnets.data.division import Division
from jaxnets.data.sources import Dataset
from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.models.contract import check_network
from jaxnets.training.recipe import Recipe
from jaxnets.transfer import TRANSFERS
from jaxnets.weights.runs import network_of

DTYPES = ("float32", "bfloat16", "float64")
# What a resumed run may change: where the images are (they are compared by themselves), how often metrics are logged,
# and rematerialisation.
_MAY_CHANGE = (
    "dataset",
    "data_dir",
    "train_folder",
    "val_folder",
    "test_folder",
    "log_every",
    "log_gradients",
    "remat",
)


@dataclass(frozen=True)
class Config:
    """All that determines the numbers of a run. The network computes in `dtype`.

    `data_dir` is the folder of TFDS's data sets (None: the default of TFDS). `val_share`, `test_share`, `fold` and
    `group_by` say how the parts that the data set lacks are held out of its training images, as in `Division`.
    `train_folder`, `val_folder` and `test_folder`, relative to a folder of images, hold the images of its parts (None:
    found by name). `on_bad_image` is "error", "skip" or "strict". Metrics are logged every
    `log_every` steps. `weights`, as for `jaxnets.load_pretrained`, are the initial weights; `weights_key` is the entry
    of a torch checkpoint to read; `transfer` says what is trained: "full" (the same as None), "partial" (from the stage
    `train_from` on) or "head". `network_options` are options of the network, as JSON has them (see
    `jaxnets.models.options`), such as {"activation": "gelu", "groups": 8}. `log_gradients` adds the norms of the
    gradients of all layers to the logged metrics.
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
    train_folder: str | None = None
    test_folder: str | None = None
    weights_key: str | None = None
    val_share: float = 0.1
    fold: str | None = None
    group_by: str | None = None
    val_folder: str | None = None
    network_options: dict[str, Any] = field(default_factory=dict)
    log_gradients: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}; expected {', '.join(DTYPES)}")
        self._check_transfer()
        _ = self.division
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise InputError(f"on_bad_image={self.on_bad_image!r}; expected {', '.join(ON_BAD_IMAGE)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}; expected a whole number from 0 to {2**32 - 1}")
        if self.log_every < 1:
            raise InputError(f"log_every={self.log_every}; expected at least 1 step")

    @property
    def division(self) -> Division:
        """How the parts that the data set lacks are held out; InputError for other values."""
        return Division(self.val_share, self.test_share, self.fold, self.group_by)

    def load_dataset(self, *, only_test: bool = False) -> Dataset:
        """Loads the data set; with `only_test`, image files need no training images."""
        return load_dataset(
            self.dataset,
            data_dir=self.data_dir,
            division=self.division,
            train_folder=self.train_folder,
            val_folder=self.val_folder,
            test_folder=self.test_folder,
            only_test=only_test,
        )

    def warnings(self) -> list[str]:
        """Warnings about settings that are probably mistakes."""
        warnings = self.recipe.warnings()
        if self.recipe.head_epochs and self.weights is None:
            warnings.append(
                f"warning: head_epochs={self.recipe.head_epochs} trains a head on random weights; give --weights"
            )
        return warnings

    def _check_transfer(self) -> None:
        recipe = self.recipe
        if self.transfer not in (None, *TRANSFERS):
            raise InputError(f"unknown transfer {self.transfer!r}; expected one of {', '.join(TRANSFERS)}")
        if self.weights is None and self.transfer is not None:
            raise InputError(f"transfer={self.transfer} needs weights to start from; give --weights")
        if self.weights is None and self.weights_key is not None:
            raise InputError(f"weights_key={self.weights_key} needs weights to start from; give --weights")
        if self.train_from is not None and self.transfer != "partial":
            raise InputError(f"train_from={self.train_from} needs --transfer partial; give both, or none")
        if self.transfer == "head" and recipe.head_epochs:
            raise InputError("transfer=head trains only the head in all epochs; leave out --head-epochs")
        if self.transfer == "head" and recipe.precise_batch_norm_images:
            raise InputError("transfer=head keeps the statistics that precise_batch_norm_images replaces")
        if recipe.head_epochs >= recipe.epochs:
            raise InputError(f"head_epochs={recipe.head_epochs}; expected fewer than epochs={recipe.epochs}")

    def create_model(self, num_classes: int, model: nn.Module | None = None, **options: Any) -> nn.Module:
        """The network `arch`, or `model` in its place, with the recipe's settings and the `options` of the weights.

        Raises InputError if the network lacks a setting, and if `model` has other classes or another dtype.
        """
        if model is not None:
            self._check_model(model, num_classes)
        return network_of(asdict(self), num_classes, options, model)

    def _check_model(self, model: Any, num_classes: int) -> None:
        if self.weights is not None:
            raise InputError("weights need a network by name; register it with jaxnets.register_model")
        if self.network_options:
            raise InputError(
                f"options {', '.join(self.network_options)} are for a network by name; set them in the model"
            )
        check_network(model, "model", num_classes)
        if jnp.dtype(model.dtype) != jnp.dtype(self.dtype):
            raise InputError(f"the model computes in {jnp.dtype(model.dtype).name}, but the run has dtype={self.dtype}")

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The configuration from the result of `dataclasses.asdict`, or from JSON of that."""
        recipe: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values["recipe"].items()
        }
        return cls(**{**values, "recipe": Recipe(**recipe)})

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Reads a config.json; raises InputError if it is damaged or from another version."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged or from another version ({error})") from None

    def check_resumes(self, before: "Config") -> None:
        """Raises InputError unless a run with the configuration `before` can resume with this one."""
        for ours, theirs in ((self, before), (self.recipe, before.recipe)):
            for setting in fields(ours):
                now, then = getattr(ours, setting.name), getattr(theirs, setting.name)
                if setting.name not in ("recipe", *_MAY_CHANGE) and now != then:
                    raise InputError(
                        f"the run began with {setting.name}={then}, now it is {now}; resume with the same, or train "
                        "again in another --workdir"
                    )
