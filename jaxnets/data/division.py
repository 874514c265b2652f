"""Which training images are held out for the parts that a data set lacks."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxnets.data.hashing import mix64
from jaxnets.data.image_files import sort_key
from jaxnets.data.part_names import PARTS, SPLITS
from jaxnets.data.sources import Dataset, Source, Subset
from jaxnets.errors import InputError

# How the origin of a part that is held out ends.
_HELD_OUT = "held out"
_FOLD = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


@dataclass(frozen=True)
class Division:
    """How the parts that a data set lacks are held out of its training images.

    `val_share` of them become the val part, and `test_share` the test part if there is neither a val nor a test part; 0
    holds out none. With `fold`, "K/N", the val part is fold K of N instead. `group_by` names groups whose images stay
    together: a regular expression, searched in the path of an image, whose first group (or whole match) is the name, or
    a column of a CSV file.
    """

    val_share: float = 0.1
    test_share: float = 0.2
    fold: str | None = None
    group_by: str | None = None

    def __post_init__(self) -> None:
        for name, share in (("val_share", self.val_share), ("test_share", self.test_share)):
            if not 0 <= share < 1:
                raise InputError(f"{name}={share}; expected a fraction of at least 0 and below 1, such as 0.2")
        if self.fold is not None and self.val_share != Division.val_share:
            raise InputError(f"fold={self.fold} and val_share={self.val_share} both say what val is; give one of them")
        if self.fold is not None:
            match = _FOLD.fullmatch(self.fold)
            if match is None or not int(match[1]) <= int(match[2]) or int(match[2]) < 2:
                raise InputError(f"fold={self.fold}; expected K/N with K from 1 to N and N at least 2, such as 1/5")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of the fold, from 1, and of all folds; empty without `fold`."""
        return tuple(map(int, self.fold.split("/"))) if self.fold else ()

    def divide(
        self,
        dataset: Dataset,
        labels: np.ndarray,
        positions: np.ndarray,
        groups: Sequence[str] | None = None,
        subset: Callable[[Any, np.ndarray], Source] = Subset,
    ) -> Dataset:
        """The data set with the parts that it lacks, held out of its training images.

        `labels` [N] are the classes of the training images; images with a label below 0 stay there. Images with the
        lowest `positions` [N], from 0 to 1, are held out first; with `groups` [N], hashes of the names of the groups
        take the place of the positions. `subset` returns the images of a source at indices. Raises InputError if a part
        or a class would have no images.
        """
        lacking = self.lacking(dataset)
        numbers = self._assign(labels, positions, dataset.class_names, lacking, groups)
        indices = {part: np.flatnonzero(numbers == number) for number, part in enumerate(PARTS)}
        parts: dict[str, Any] = {part: subset(dataset.train, indices[part]) for part in lacking}
        if lacking:
            parts["train"] = subset(dataset.train, indices["train"])
        return replace(dataset, **parts, origins={**dataset.origins, **lacking})

    def lacking(self, dataset: Dataset) -> dict[str, str]:
        """The parts that a data set lacks and that are to be held out, with a description of each."""
        parts: dict[str, str] = {}
        holds_out_test = dataset.val is None and dataset.test is None and self.test_share > 0
        if self.fold is not None:
            if dataset.val is not None:
                raise InputError(
                    f"--fold {self.fold} takes val images out of the training images, but {dataset.name} has a val "
                    "part; leave it out, or give the folder of all training images as --dataset"
                )
            parts["val"] = "fold {} of {}, ".format(*self.numbers) + _HELD_OUT
        elif dataset.val is None and self.val_share:
            parts["val"] = self._share_in_words(self.val_share, "the rest of " if holds_out_test else "")
        if holds_out_test:
            parts["test"] = self._share_in_words(self.test_share)
        return parts

    def _share_in_words(self, share: float, rest: str = "") -> str:
        of = "each class" if self.group_by is None else "the groups"
        return f"about {100 * share:.3g}% of {rest}{of}, at least one, {_HELD_OUT}"

    def unused(self, dataset: Dataset) -> list[str]:
        """Warnings about shares that are not the default and by which nothing was held out of a data set."""
        warnings = []
        for part in SPLITS:
            name, others = f"{part}_share", ("val",) if part == "val" else SPLITS
            share, own = getattr(self, name), [other for other in others if other in dataset.parts]
            own = [other for other in own if not is_held_out(dataset, other)]
            if share != getattr(Division, name) and own:
                warnings.append(
                    f"warning: --{part}-share {share:g} has no effect, as {dataset.name} has {own[-1]} images of its "
                    "own; leave it out"
                )
        return warnings

    def _assign(
        self,
        labels: np.ndarray,
        positions: np.ndarray,
        class_names: Sequence[str],
        lacking: Mapping[str, str],
        groups: Sequence[str] | None,
    ) -> np.ndarray:
        """The part [N] of each training image, as an index into `PARTS`."""
        if groups is None:
            parts = self._divided(positions, labels, lacking)
        else:
            names, units = np.unique(np.array(groups), return_inverse=True)
            if len(names) < 2:
                raise InputError(f"--group-by {self.group_by} gives one group, {str(names[0])!r}; expected several")
            hashes = np.array([position_of(str(name)) for name in names])
            parts = self._divided(hashes, np.zeros(len(names), int), lacking)[units]
        trained = np.bincount(labels[(parts == 0) & (labels >= 0)], minlength=len(class_names))
        present = np.bincount(labels[labels >= 0], minlength=len(class_names)) > 0
        if (present & (trained == 0)).any():
            name = class_names[int(np.argmax(present & (trained == 0)))]
            raise InputError(
                f"all images of class {name!r} are held out; choose a smaller --val-share or --test-share, or other "
                "--fold or --group-by"
            )
        return parts

    def _divided(self, positions: np.ndarray, labels: np.ndarray, lacking: Mapping[str, str]) -> np.ndarray:
        parts = np.zeros(len(positions), int)
        if "test" in lacking:
            test = _lowest(positions, labels, self.test_share)
            if not test.any():
                raise InputError("no class has two images, one of them for testing; add images, or give --test-share 0")
            parts[test] = PARTS.index("test")
            positions = (positions - self.test_share) / (1 - self.test_share)
        if "val" not in lacking:
            return parts
        rest = np.flatnonzero(parts == 0)
        if self.numbers:
            fold, count = self.numbers
            val = (np.clip(positions[rest] * count, 0, count - 1).astype(int) == fold - 1) & (labels[rest] >= 0)
        else:
            val = _lowest(positions[rest], labels[rest], self.val_share)
        if not val.any():
            smaller = "give a smaller --test-share, " if "test" in lacking else ""
            advice = "give fewer folds" if self.fold else f"add images, {smaller}or give --val-share 0 to train on all"
            raise InputError(
                f"too few {'images' if self.group_by is None else 'groups'} to hold out a val part; {advice}"
            )
        parts[rest[val]] = PARTS.index("val")
        return parts


def is_held_out(dataset: Dataset, part: str) -> bool:
    """Whether a part of a data set was held out of its training images."""
    return dataset.origins.get(part, "").endswith(_HELD_OUT)


def _lowest(positions: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Whether a position [N] is below `share`; at least one of each class, and not all of them.

    An image stays where it is when others come and go: only a class that would lack images of a part gives one of them
    to the other side. A class with one image keeps it.
    """
    below = np.zeros(len(positions), bool)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(positions[members], kind="stable")]
        count = min(max(int((positions[members] < share).sum()), 1), len(members) - 1)
        below[members[:count]] = True
    return below


def position_of(name: str) -> float:
    """A fixed number from 0 to 1 for a name, by its SHA-256."""
    digest = hashlib.sha256(sort_key(name)[0].encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def even_positions(labels: np.ndarray) -> np.ndarray:
    """Positions [N] from 0 to 1 for images without names: in a fixed random order, even within each class."""
    order = np.argsort(mix64(np.arange(len(labels), dtype=np.uint64)))
    positions = np.zeros(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        positions[members] = (np.arange(len(members)) + 0.5) / len(members)
    return positions


def groups_of(paths: Sequence[str], pattern: str) -> list[str]:
    """The name of each image's group: the first group, or the whole match, of `pattern` in its path.

    Raises InputError if the pattern is invalid or is not in a path.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"--group-by {pattern}: no regular expression ({error})") from None
    names = []
    for path in paths:
        match = search(path)
        name = match and (match[1] if match.re.groups else match[0])
        if not name:
            raise InputError(
                f"--group-by {pattern} finds no group in {path!r}; expected one in each path, such as patient_7 by "
                "'patient_[0-9]+'"
            )
        names.append(name)
    return names


def check_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError if a group has images in two of the parts that a data set has."""
    owner: dict[str, str] = {}
    for part, names in groups.items():
        for name in names:
            if owner.setdefault(name, part) != part:
                raise InputError(
                    f"group {name!r} has images in {owner[name]} and in {part}; move them into one part, or leave out "
                    "--group-by"
                )
