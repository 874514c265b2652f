"""Image folders: train/CLASS/IMAGE with an optional val/ or test/ folder, or just CLASS/IMAGE."""

import hashlib
import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    test_share: float,
    *,
    train_folder: str | None = None,
    test_folder: str | None = None,
    split: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads the images below `root`. Without a folder of test images, about `test_share` of each class is held out.

    The parts are found by the names of the folders (see `layout.find_layout`); `train_folder` and `test_folder` name
    them, relative to `root`. `split` is the part to test on, "val" or "test"; by default the first that is there. With
    `only_test` there need not be training images; `train` may then be the same images as `test`.
    Class names are the names of the folders, in the order of `class_order`. Raises InputError if the layout is
    different, if a class is empty, if there is only one class, or if the training and test classes differ.
    """
    layout = find_layout(root, train_folder, test_folder, split, only_test=only_test)
    train, test = layout.train, layout.test
    class_names = _classes(train, layout.left_out)
    whole = _source(root, train, class_names)
    if test is None:
        sources = _divided(root, train, whole, list(class_names), test_share)
        tested_on = f"about {test_share:.0%} of each class, held out"
    else:
        test_names = _classes(test)
        if class_names.keys() != test_names.keys():
            only_one = sorted(class_names.keys() ^ test_names.keys())[0]
            present, absent = (train, test) if only_one in class_names else (test, train)
            raise InputError(
                f"class {only_one!r} is in {present} but not in {absent} ({len(class_names)} training and "
                f"{len(test_names)} test classes); expected the same class folders in both"
            )
        sources = whole, whole if test == train else _source(root, test, test_names)
        tested_on = f"from {printable(os.path.relpath(test, root))}/"
    return Dataset(root.name, tuple(class_names), *sources, tested_on=tested_on, warnings=layout.warnings)


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


def _divided(
    root: Path, part: Path, whole: FolderSource, class_names: Sequence[str], test_share: float
) -> tuple[FolderSource, FolderSource]:
    """Holds out about `test_share` of each class, and at least one image.

    The hash of an image's own name decides, so that an image stays where it is when others come and go: a network is
    never tested on images that it was trained on before. Only a class that would lack training or test images gives
    one of them to the other side.
    """
    limit, prefix = test_share * 2**64, os.path.relpath(part, root)
    members: dict[int, list[tuple[int, tuple[str, int]]]] = {label: [] for label in range(len(class_names))}
    for file in whole.files:
        members[file[1]].append((_hash(os.path.relpath(file[0], prefix)), file))
    held_out: set[tuple[str, int]] = set()
    for name, files in zip(class_names, members.values(), strict=True):
        if len(files) < 2:
            raise InputError(f"class {name!r} has only one image; expected at least two, one of them for testing")
        files.sort()
        count = min(max(sum(number < limit for number, _ in files), 1), len(files) - 1)
        held_out.update(file for _, file in files[:count])
    train, test = ([file for file in whole.files if (file in held_out) == side] for side in (False, True))
    return FolderSource(root, train), FolderSource(root, test)


def _hash(name: str) -> int:
    """64 bits of the SHA-256 of a name."""
    return int.from_bytes(hashlib.sha256(sort_key(name)[0].encode("utf-8", "surrogateescape")).digest()[:8], "big")
