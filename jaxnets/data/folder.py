"""Image folders: train/CLASS/IMAGE with an optional val/ or test/ folder, or just CLASS/IMAGE."""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxnets.data.sources import Dataset, Record
from jaxnets.errors import InputError

# Files with these suffixes must be readable images. Other files are ignored.
_IMAGE_SUFFIXES = tuple(
    f".{name}"
    for names in (
        ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "dib", "webp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        ("avif", "heic", "heif", "jp2", "j2k", "jxl", "tga", "ico", "psd", "dng", "cr2", "nef", "arw"),
    )
    for name in names
)
_TEST_FOLDERS = ("val", "validation", "valid", "test")
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class FolderSource:
    """Image files, as pairs of a path relative to `root` and a label."""

    root: Path
    files: Sequence[tuple[str, int]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        name, label = self.files[index]
        path = os.path.join(self.root, name)
        try:
            return Record(_read(path), label)
        except OSError as error:
            raise InputError(f"{self.where(index)}: can't be read ({error.strerror or error})") from None

    def where(self, index: int) -> str:
        return _shown(self.root / self.files[index][0])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, label in self.files:
            try:
                status = os.stat(os.path.join(self.root, name))
            except OSError as error:
                raise InputError(f"{_shown(self.root / name)}: can't be read ({error.strerror})") from None
            digest.update(os.fsencode(f"{name}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\0"))
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
        below = sorted(_images(path), key=_order)
        if not below:
            raise InputError(f"{_shown(path)} has no image files (.jpg, .png, ...); give image files or their folder")
        files += below
    return FolderSource(Path(), [(file, 0) for file in files])


def load_folder(root: Path, test_share: float) -> Dataset:
    """Loads the images below `root`. Without a val/ or test/ folder, a fixed `test_share` of each class is held out.

    Class names are the names of the folders, in the order of `class_order`. Raises InputError if the layout is
    different, if a class is empty, if there is only one class, or if the training and test classes differ.
    """
    parts: dict[str, Path] = {}
    folders = _folders(root)
    for path in folders:
        name = path.name.lower()
        if name == "train" or name in _TEST_FOLDERS:
            if name in parts:
                raise InputError(f"{root} has both {parts[name].name}/ and {path.name}/; rename or remove one")
            # A class can have this name too; its folder then contains images and no folders.
            if _folders(path) or not any(_images(path)) or len(folders) == 1:
                parts[name] = path
    if "train" not in parts:
        tests = [parts[name] for name in _TEST_FOLDERS if name in parts]
        if tests:
            raise InputError(f"{root} has {tests[0].name}/ but no train/; expected train/CLASS/IMAGE")
        return _divided(root, root, test_share)
    for path in folders:
        if path not in parts.values() and path.name.lower() not in _TEST_FOLDERS and any(_images(path)):
            raise InputError(
                f"{_shown(path)} has images but is not a split; expected only train, val or test in {root}"
            )
    train = parts["train"]
    test = next((parts[name] for name in _TEST_FOLDERS if name in parts), None)
    if test is None:
        return _divided(root, train, test_share)
    class_names, test_names = _classes(train), _classes(test)
    if class_names.keys() != test_names.keys():
        only_one = sorted(class_names.keys() ^ test_names.keys())[0]
        present, absent = (train, test) if only_one in class_names else (test, train)
        raise InputError(
            f"class {only_one!r} is in {present} but not in {absent} ({len(class_names)} training and "
            f"{len(test_names)} test classes); expected the same class folders in both"
        )
    return Dataset(root.name, tuple(class_names), _source(root, train, class_names), _source(root, test, test_names))


def class_order(names: Sequence[str]) -> list[str]:
    """Returns the names in natural order: digits compare by value, other characters by code point."""

    def key(name: str) -> tuple[list[tuple[int, int | str]], str]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts if part], name

    return sorted(names, key=key)


def _folders(root: Path) -> list[Path]:
    folders = []
    for name in _listed(root):
        if not name.startswith("."):
            _refuse_broken_link(root / name)
            if os.path.isdir(root / name):
                folders.append(root / name)
    return folders


def _classes(part: Path) -> dict[str, Path]:
    """Returns the class folders by name, in class order. Names are in Unicode form C, as file systems differ here."""
    classes: dict[str, Path] = {}
    loose = [name for name in _listed(part) if _named_like_image(name) and not os.path.isdir(part / name)]
    folders = _folders(part)
    if folders and loose:
        raise InputError(f"{_shown(part / loose[0])} is not in a class folder; move it into one, or elsewhere")
    for path in folders:
        try:
            name = unicodedata.normalize("NFC", os.fsencode(path.name).decode())
        except UnicodeDecodeError:
            raise InputError(f"the name of the folder {path.name!r} in {part} is not UTF-8; rename it") from None
        if name in classes:
            raise InputError(f"{part} has two folders named {name!r} in different Unicode forms; rename one")
        classes[name] = path
    if not classes:
        raise InputError(f"{part} has no class folders; expected {part}/CLASS/IMAGE")
    if len(classes) == 1:
        raise InputError(f"{part} has only one class, {next(iter(classes))!r}; expected at least two class folders")
    return {name: classes[name] for name in class_order(list(classes))}


def _source(root: Path, part: Path, classes: dict[str, Path]) -> FolderSource:
    files = []
    for label, (name, folder) in enumerate(classes.items()):
        images = sorted(_images(folder), key=_order)
        if not images:
            raise InputError(
                f"class {name!r} is empty: no image files in {_shown(folder)}; add some or remove the folder"
            )
        files += [(os.path.relpath(path, root), label) for path in images]
    return FolderSource(root, files)


def _divided(root: Path, part: Path, test_share: float) -> Dataset:
    classes = _classes(part)
    whole = _source(root, part, classes)
    members: dict[int, list[tuple[str, int]]] = {label: [] for label in range(len(classes))}
    for file in whole.files:
        members[file[1]].append(file)
    held_out: set[tuple[str, int]] = set()
    for name, files in zip(classes, members.values(), strict=True):
        if len(files) < 2:
            raise InputError(f"class {name!r} has only one image; expected at least two, one of them for testing")
        count = min(max(round(test_share * len(files)), 1), len(files) - 1)
        # Hashing the file names keeps nearly all images in their split when images are added.
        held_out.update(
            sorted(files, key=lambda file: _digest(os.path.relpath(file[0], part.relative_to(root))))[:count]
        )
    train, test = ([file for file in whole.files if (file in held_out) == side] for side in (False, True))
    return Dataset(root.name, tuple(classes), FolderSource(root, train), FolderSource(root, test))


def _digest(name: str) -> bytes:
    return hashlib.sha256(_order(name)[0].encode("utf-8", "surrogateescape")).digest()


def _order(name: str) -> tuple[str, str]:
    """Sorts file names in the same order on every machine; the name itself breaks ties."""
    portable = os.fsencode(name).decode("utf-8", "surrogateescape").replace(os.sep, "/")
    return unicodedata.normalize("NFC", portable), name


def _images(folder: Path) -> Iterator[str]:
    """Yields the paths with an image suffix at any depth. Does not follow links to a parent folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{_shown(error.filename)} can't be read ({error.strerror}); fix or remove it")

    parent = Path(os.path.realpath(folder.parent))
    visited = {os.fspath(path) for path in (parent, *parent.parents, *Path(os.path.realpath(folder)).parents)}
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A folder that several links point to is visited once.
        if os.path.realpath(current) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(current))
        image_like = [name for name in folders if name.lower().endswith(_IMAGE_SUFFIXES)]
        subfolders = (name for name in folders if name not in image_like and not name.startswith("."))
        folders[:] = sorted(subfolders, key=_order)
        for name in files + image_like:
            if _named_like_image(name):
                yield os.path.join(current, name)
            elif not name.startswith("."):
                _refuse_broken_link(Path(current) / name)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{_shown(folder)} can't be read ({error.strerror}); give a folder of images") from None


def _named_like_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")


def _refuse_broken_link(path: Path) -> None:
    # Its target may be a folder of images on a drive that is not mounted.
    if os.path.islink(path) and not os.path.exists(path) and not _named_like_image(path.name):
        raise InputError(f"{_shown(path)} is a broken link; fix or remove it")


def _shown(path: str | Path) -> str:
    """Formats a path for a message: escapes bytes that are not UTF-8, and control characters."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: ascii(match[0])[1:-1], name)


def _read(path: str) -> bytes:
    # O_NONBLOCK: opening a named pipe would otherwise wait forever.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > _MAX_BYTES:
            raise OSError(None, f"{status.st_size / 1e9:.1f} GB, expected at most {_MAX_BYTES / 1e9:.1f} GB")
        data = os.read(file, status.st_size)
        while len(data) < status.st_size and (more := os.read(file, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(file)
