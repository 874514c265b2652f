"""Before the first step: can every image be read, and does every class have some?"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.data.decoding import check_image
from jaxnets.data.pipeline import IMAGES_A_TASK, in_order
from jaxnets.data.sources import Dataset, Source, Subset
from jaxnets.errors import InputError

ON_BAD_IMAGE = ("error", "skip")
_MOST_BAD = 0.01
_MOST_NAMED = 20

Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class BadImage:
    """An image that can't be read, and why."""

    where: str
    reason: str


def verify(
    dataset: Dataset,
    on_bad_image: str,
    done: Callable[[int], None],
    say: Callable[[str], None],
    process_index: int = 0,
    process_count: int = 1,
    gather: Gather = lambda findings: [findings],
) -> tuple[Dataset, list[BadImage]]:
    """The data set without its bad images, and those. Every image is looked at; `done` is told how many have been.

    Where there are several processes each looks at its share, and `gather` gives all of them what all have found.
    Raises InputError for bad images as `judge` does, and for a class without training images or a test without any.
    """
    look = partial(
        usable,
        num_classes=len(dataset.class_names),
        process_index=process_index,
        process_count=process_count,
        gather=gather,
    )
    train, train_bad, train_labels = look(dataset.train, done=done)
    test, test_bad, _ = look(dataset.test, done=lambda count: done(len(dataset.train) + count))
    bad = train_bad + test_bad
    judge(bad, len(dataset.train) + len(dataset.test), on_bad_image, say)
    check_labels(dataset.class_names, train_labels)
    if not len(test):
        raise InputError("no test images are left; mend them, or add some")
    return replace(dataset, train=train, test=test), bad


def judge(bad: Sequence[BadImage], count: int, on_bad_image: str, say: Callable[[str], None]) -> None:
    """Names what is bad among `count` images.

    Raises InputError for any if `on_bad_image` is "error", for more than 1 % of them if it is "skip".
    """
    if not bad:
        return
    for image in bad[:_MOST_NAMED]:
        say(f"bad image: {image.where}: {image.reason}")
    if len(bad) > _MOST_NAMED:
        say(f"... and {len(bad) - _MOST_NAMED} more")
    found = f"{len(bad)} of {count} images can't be used, the first is {bad[0].where} ({bad[0].reason})"
    if on_bad_image == "error":
        raise InputError(f"{found}; mend or remove them, or leave them out with --on-bad-image skip")
    if len(bad) > _MOST_BAD * count:
        raise InputError(f"{found}; that is more than {_MOST_BAD:.0%}: mend or remove them")


def write_bad_images(folder: Path, bad: Sequence[BadImage]) -> None:
    """Writes bad-images.csv: which images were left out, and why."""
    with (folder / "bad-images.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "reason"))
        rows.writerows((image.where, image.reason) for image in bad)


def check_labels(class_names: Sequence[str], labels: np.ndarray) -> None:
    """Raises InputError unless there are two classes or more, all of them with training images."""
    if len(class_names) < 2:
        raise InputError(f"one class only, {', '.join(class_names)!r}; a classifier needs at least two")
    present = np.bincount(labels, minlength=len(class_names))
    if not present.all():
        name = class_names[int(np.argmin(present))]
        raise InputError(f"class {name!r} has no training images; add some, or remove the class")


def usable(
    source: Source,
    num_classes: int,
    done: Callable[[int], None],
    process_index: int = 0,
    process_count: int = 1,
    gather: Gather = lambda findings: [findings],
) -> tuple[Source, list[BadImage], np.ndarray]:
    """The records of a source that can be used, the others, and the labels of the former."""

    def look(index: int) -> tuple[int, str]:
        try:
            image, label = source[index]
            check_image(image)
            if not 0 <= label < num_classes:
                raise InputError(f"label {label}; expected 0 to {num_classes - 1}")
            return label, ""
        except InputError as error:
            return -1, str(error).removeprefix(f"{source.where(index)}: ")

    def look_at(indices: range) -> list[tuple[int, str]]:
        return [look(index) for index in indices]

    share, mine, reasons = range(process_index, len(source), process_count), [], {}
    tasks = [share[start : start + IMAGES_A_TASK] for start in range(0, len(share), IMAGES_A_TASK)]
    for indices, found_in_task in zip(tasks, in_order(look_at, tasks), strict=True):
        for index, (label, reason) in zip(indices, found_in_task, strict=True):
            mine.append(label)
            if reason:
                reasons[index] = reason
            done(index + 1)
    labels, found = np.empty(len(source), np.int32), {}
    for process, (theirs, named) in enumerate(gather((mine, list(reasons.items())))):
        labels[process::process_count] = theirs
        found.update(named)
    bad = [BadImage(source.where(index), found[index]) for index in sorted(found)]
    if bad:
        source = Subset(source, np.flatnonzero(labels >= 0))
    return source, bad, labels[labels >= 0]
