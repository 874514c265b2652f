"""Checks before training that every image is readable and every class has images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.csv_file import write_csv
from jaxnets.data.decoding import check_image
from jaxnets.data.pipeline import IMAGES_PER_TASK, in_order
from jaxnets.data.sources import Dataset, Source, Subset
from jaxnets.errors import InputError

ON_BAD_IMAGE = ("error", "skip", "strict")
_MAX_BAD_FRACTION = 0.01
_MAX_NAMED = 20

Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class BadImage:
    """The name of a damaged image, and the reason. `used` says that it can be decoded to its full size nevertheless."""

    where: str
    reason: str
    used: bool = False


def verify(
    dataset: Dataset,
    on_bad_image: str,
    done: Callable[[int], None],
    say: Callable[[str], None],
    process_index: int = 0,
    process_count: int = 1,
    gather: Gather = lambda results: [results],
) -> tuple[Dataset, list[BadImage]]:
    """Checks every image. Returns the data set without the unusable images, and all damaged images.

    A JPEG that can be read whole in spite of its damage stays in the data set, and has `BadImage.used`. `done` is
    called with the number of images checked so far. With several processes each checks its share, and
    `gather` collects the results of all. Raises InputError for bad images as `judge` does, for a class without training
    images, and for a part without images.
    """
    check = partial(
        usable,
        num_classes=len(dataset.class_names),
        process_index=process_index,
        process_count=process_count,
        gather=gather,
    )
    usable_parts: dict[str, Any] = {}
    labels: dict[str, np.ndarray] = {}
    bad: list[BadImage] = []
    before = 0
    for part, source in dataset.parts.items():
        usable_parts[part], bad_of_part, labels[part] = check(source, done=partial(_count, done, before))
        bad += bad_of_part
        before += len(source)
    judge(bad, before, on_bad_image, say)
    check_labels(dataset.class_names, labels["train"])
    for part, images in usable_parts.items():
        if not len(images):
            raise InputError(f"all {part} images are bad; fix them, or add others")
    return replace(dataset, **usable_parts, labels=labels), bad


def _count(done: Callable[[int], None], before: int, count: int) -> None:
    done(before + count)


def judge(bad: Sequence[BadImage], count: int, on_bad_image: str, say: Callable[[str], None]) -> None:
    """Reports the damaged ones of `count` images.

    Raises InputError for any unusable image unless `on_bad_image` is "skip", for more than 1 % of them if it is "skip",
    and for any damaged image if it is "strict".
    """
    if on_bad_image == "strict":
        bad = [replace(image, used=False) for image in bad]
    if used := [image for image in bad if image.used]:
        say(
            f"{len(used)} of {count} images are damaged, but can be read whole and are used; the first is "
            f"{used[0].where} ({used[0].reason})"
        )
    bad = [image for image in bad if not image.used]
    if not bad:
        return
    for image in bad[:_MAX_NAMED]:
        say(f"bad image: {image.where}: {image.reason}")
    if len(bad) > _MAX_NAMED:
        say(f"... and {len(bad) - _MAX_NAMED} more")
    summary = f"{len(bad)} of {count} images can't be used, the first is {bad[0].where} ({bad[0].reason})"
    if on_bad_image != "skip":
        raise InputError(f"{summary}; fix or remove them, or skip them with --on-bad-image skip")
    if len(bad) > _MAX_BAD_FRACTION * count:
        raise InputError(f"{summary}; --on-bad-image skip allows at most {_MAX_BAD_FRACTION:.0%}; fix or remove them")


def write_bad_images(folder: Path, bad: Sequence[BadImage]) -> None:
    """Writes the damaged images, the reasons and whether they are used to bad-images.csv."""
    rows = ((image.where, image.reason, "yes" if image.used else "no") for image in bad)
    write_csv(folder / "bad-images.csv", ("image", "reason", "used"), rows)


def check_labels(class_names: Sequence[str], labels: np.ndarray) -> None:
    """Raises InputError unless there are at least two classes, all with training images."""
    if len(class_names) < 2:
        raise InputError(f"only one class, {', '.join(class_names)!r}; expected at least two")
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
    gather: Gather = lambda results: [results],
) -> tuple[Source, list[BadImage], np.ndarray]:
    """Returns the source without its unusable images, all damaged images, and the labels of the remaining images."""

    def check(index: int) -> tuple[int, str]:
        try:
            image, label = source[index]
            blemish = check_image(image)
            if not 0 <= label < num_classes:
                raise InputError(f"label {label}; expected 0 to {num_classes - 1}")
            return label, blemish
        except InputError as error:
            return -1, str(error).removeprefix(f"{source.where(index)}: ")

    def check_all(indices: range) -> list[tuple[int, str]]:
        return [check(index) for index in indices]

    share, local_labels, local_reasons = range(process_index, len(source), process_count), [], {}
    tasks = [share[start : start + IMAGES_PER_TASK] for start in range(0, len(share), IMAGES_PER_TASK)]
    for indices, results in zip(tasks, in_order(check_all, tasks), strict=True):
        for index, (label, reason) in zip(indices, results, strict=True):
            local_labels.append(label)
            if reason:
                local_reasons[index] = reason
            done(index + 1)
    labels, reasons = np.empty(len(source), np.int32), {}
    # Of files: so that no process has to read those of the others for the fingerprint.
    contents = getattr(source, "contents", None)
    local_contents = None if contents is None else contents[process_index::process_count].tolist()
    gathered = gather((local_labels, list(local_reasons.items()), local_contents))
    for process, (process_labels, process_reasons, process_contents) in enumerate(gathered):
        labels[process::process_count] = process_labels
        reasons.update(process_reasons)
        if contents is not None:
            contents[process::process_count] = process_contents
    bad = [BadImage(source.where(index), reasons[index], used=bool(labels[index] >= 0)) for index in sorted(reasons)]
    if (labels < 0).any():
        source = Subset(source, np.flatnonzero(labels >= 0))
    return source, bad, labels[labels >= 0]
