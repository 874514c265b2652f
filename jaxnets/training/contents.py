"""The metadata of a checkpoint, and the classifier that is loaded from one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import flax.linen as nn

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.custom import check_same_parts


@dataclass(frozen=True)
class TrainedClassifier:
    """A network with its weights, the preprocessing that they were trained with, and the names of the classes.

    `fingerprints` are those of the images of each part: "train", "val" and "test".
    """

    config: Config
    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raises InputError unless a data set's classes are those that this classifier was trained on."""
        check_classes(self.class_names, class_names)


@dataclass(frozen=True)
class Contents:
    """The metadata of each checkpoint of a run; a resumed run must have the same.

    `options` are those of the network that came with the initial weights; `custom` describes the parts that were given
    to `train()` in the place of named ones. `class_weights` are those of the training loss, if it has any.
    """

    config: Config
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    fingerprints: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    custom: dict[str, Any] = field(default_factory=dict)
    class_weights: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The metadata as JSON."""
        return {**asdict(self), "class_names": list(self.class_names)}

    def check_resumes(self, before: dict[str, Any]) -> None:
        """Raises InputError unless a run with the metadata `before` can resume with these."""
        check_classes(before["class_names"], self.class_names)
        self.config.check_resumes(Config.from_dict(before["config"]))
        check_same_parts(before.get("custom", {}), self.custom)
        check_images(before["fingerprints"], self.fingerprints)
        if before.get("class_weights", self.class_weights) != self.class_weights:
            raise InputError(
                f"the class weights in {self.config.recipe.class_weights} are not those that the run began with; "
                "restore the file, or train again in another --workdir"
            )


def check_images(before: Mapping[str, str], fingerprints: Mapping[str, str]) -> None:
    """Raises InputError unless the images of each part are those that the run began with."""
    for part, fingerprint in fingerprints.items():
        if before.get(part) != fingerprint:
            raise InputError(
                f"the {part} images are not those that the run began with (names, classes or contents differ, or the "
                "run is of an earlier version); restore those, or train again in another --workdir"
            )


def check_classes(trained: Sequence[str], class_names: Sequence[str]) -> None:
    """Raises InputError unless the classes of a data set are those of training, in the same order."""
    if tuple(class_names) == tuple(trained):
        return
    pairs = zip_longest(trained, class_names)
    index, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    there, before = ("missing" if name is None else repr(name) for name in (theirs, ours))
    raise InputError(
        f"the data set has other classes than the classifier ({len(class_names)} and {len(trained)}): "
        f"class {index} is {there}, in training it was {before}; give the data set that it was trained on"
    )
