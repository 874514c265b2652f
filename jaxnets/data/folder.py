"""Image folders: train/CLASS/IMAGE with an optional val/ and test/ folder, or just CLASS/IMAGE."""

import hashlib
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.data.division import Division, check_groups, groups_of, position_of
from jaxnets.data.image_files import (
    has_images_below,
    images_below,
    listed,
    named_like_image,
    normalised,
    printable,
    read_file,
    sort_key,
    subfolders,
)
from jaxnets.data.layout import find_layout
from jaxnets.data.sources import Dataset, Record
from jaxnets.errors import InputError

_UNREAD, _UNREADABLE = -1, -2


@dataclass(frozen=True)
class FolderSource:
    """Image files, as pairs of a path relative to `root` and a label."""

    root: Path
    files: Sequence[tuple[str, int]]
    # The size and the CRC-32 of each file that has been read, as one number [N].
    contents: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contents", np.full(len(self.files), _UNREAD, np.int64))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        name, label = self.files[index]
        path = os.path.join(self.root, name)
        try:
            data = read_file(path)
        except OSError as error:
            self.contents[index] = _UNREADABLE
            raise InputError(f"{self.where(index)}: can't be read ({error.strerror or error})") from None
        if self.contents[index] < 0:
            self.contents[index] = len(data) << 32 | zlib.crc32(data)
        return Record(data, label)

    def where(self, index: int) -> str:
        return printable(self.root / self.files[index][0])

    def subset(self, indices: np.ndarray) -> "FolderSource":
        """The files at `indices` [N], in this order."""
        return FolderSource(self.root, [self.files[index] for index in indices.tolist()])

    def fingerprint(self) -> str:
        """A SHA-256 of names, labels and contents. Reads the files that have not been read yet."""

        def read(index: int) -> None:
            with suppress(InputError):
                self[index]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, np.flatnonzero(self.contents == _UNREAD).tolist()))
        digest = hashlib.sha256()
        for (name, label), contents in zip(self.files, self.contents.tolist(), strict=True):
            digest.update(f"{sort_key(name)[0]}\0{label}\0{contents}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def named_images(paths: Sequence[Path]) -> FolderSource:
    """Returns the given image files, and all image files below the given folders, in order; all have label 0.

    Raises InputError for a folder without image files.
    """
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(os.fspath(path))
            continue
        below = sorted(images_below(path), key=sort_key)
        if not below:
            raise InputError(
                f"{printable(path)} has no image files (.jpg, .png, ...); give image files or their folder"
            )
        files += below
    return FolderSource(Path(), [(file, 0) for file in files])


def load_folder(
    root: Path,
    division: Division,
    *,
    train_folder: str | None = None,
    val_folder: str | None = None,
    test_folder: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads the images below `root`. Parts without a folder are held out of the training images as `division` says.

    The parts are found by the names of the folders (see `layout.find_layout`); `train_folder`, `val_folder` and
    `test_folder` name them, relative to `root`. With `only_test` there need not be training images; `train` is then the
    same images as `test`, or else `val`. Class names are the names of the folders, in the order of `class_order`.
    Raises InputError if the layout is different, if a class is empty, if there is only one class, or if the classes of
    the parts differ.
    """
    layout = find_layout(root, train_folder, val_folder, test_folder, only_test=only_test)
    class_names = _classes(layout.train, layout.left_out)
    train = _source(root, layout.train, class_names)
    given: dict[str, FolderSource] = {}
    origins: dict[str, str] = {}
    for part, folder in (("val", layout.val), ("test", layout.test)):
        if folder is not None:
            given[part] = train if folder == layout.train else _same_classes(root, layout.train, class_names, folder)
            origins[part] = f"from {printable(os.path.relpath(folder, root))}/"
    prefix = os.path.relpath(layout.train, root)
    val, test = given.get("val"), given.get("test")
    dataset = Dataset(root.name, tuple(class_names), train, test, val=val, origins=origins, warnings=layout.warnings)
    if train in (val, test):  # there are no training images
        return dataset
    groups = None
    if division.group_by is not None:
        groups = {
            part: groups_of([sort_key(name)[0] for name, _ in source.files], division.group_by)
            for part, source in {"train": train, **given}.items()
        }
    return held_out(dataset, division, [os.path.relpath(name, prefix) for name, _ in train.files], groups)


def held_out(
    dataset: Dataset, division: Division, names: Sequence[str], groups: Mapping[str, Sequence[str]] | None
) -> Dataset:
    """The data set of image files with the parts that it lacks, held out of its training images.

    `names` [N] of the training images decide, or else `groups`, the names of each part's groups. The name decides so
    that a network is never tested on images that it was trained on before others came and went.
    """
    train: Any = dataset.train
    labels = np.array([label for _, label in train.files])
    if groups is not None:
        check_groups(groups)
    elif "test" in division.lacking(dataset):
        for label, count in enumerate(np.bincount(labels).tolist()):
            if count == 1:
                raise InputError(
                    f"class {dataset.class_names[label]!r} has only one image; expected at least two, one of them for "
                    "testing, or --test-share 0"
                )
    positions = np.array([position_of(name) for name in names])
    return division.divide(dataset, labels, positions, None if groups is None else groups["train"], FolderSource.subset)


def _same_classes(root: Path, train: Path, class_names: dict[str, Path], folder: Path) -> FolderSource:
    """The images of a part, whose classes must be those of training."""
    names = _classes(folder)
    if class_names.keys() != names.keys():
        only_one = sorted(class_names.keys() ^ names.keys())[0]
        present, absent = (train, folder) if only_one in class_names else (folder, train)
        raise InputError(
            f"class {only_one!r} is in {present} but not in {absent} ({len(class_names)} and {len(names)} classes); "
            "expected the same class folders in both; rename them, or name the parts to use with "
            "--train-folder and --val-folder or --test-folder"
        )
    return _source(root, folder, names)


def class_order(names: Sequence[str]) -> list[str]:
    """Returns the names in natural order: digits compare by value, other characters by code point."""

    def key(name: str) -> tuple[list[tuple[int, int | str]], str]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts if part], name

    return sorted(names, key=key)


def _classes(part: Path, left_out: Sequence[Path] = ()) -> dict[str, Path]:
    """Returns the class folders by name, in class order."""
    classes: dict[str, Path] = {}
    loose = [name for name in listed(part) if named_like_image(name) and not os.path.isdir(part / name)]
    folders = [path for path in subfolders(part) if path not in left_out]
    if folders and loose:
        raise InputError(f"{printable(part / loose[0])} is not in a class folder; move it into one, or elsewhere")
    for path in folders:
        try:
            name = normalised(path.name)
        except UnicodeDecodeError:
            raise InputError(f"the name of the folder {path.name!r} in {part} is not UTF-8; rename it") from None
        if name in classes:
            raise InputError(f"{part} has two folders named {name!r} in different Unicode forms; rename one")
        classes[name] = path
    if not classes:
        raise InputError(f"{part} has no class folders; expected {part}/CLASS/IMAGE")
    if len(classes) == 1:
        ((name, folder),) = classes.items()
        inside = [path for path in subfolders(folder) if has_images_below(path)]
        hint = f"; if the folders in it are the classes, move its loose images away or give {folder}" if inside else ""
        raise InputError(f"{part} has only one class, {name!r}; expected at least two class folders{hint}")
    return {name: classes[name] for name in class_order(list(classes))}


def _source(root: Path, part: Path, classes: dict[str, Path]) -> FolderSource:
    files = []
    for label, (name, folder) in enumerate(classes.items()):
        images = sorted(images_below(folder), key=sort_key)
        if not images:
            raise InputError(
                f"class {name!r} is empty: no image files in {printable(folder)}; add some or remove the folder"
            )
        files += [(os.path.relpath(path, root), label) for path in images]
    return FolderSource(root, files)
