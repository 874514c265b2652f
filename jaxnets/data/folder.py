"""A folder of images: train/CLASS/*.jpg with val/ or test/ beside it, or CLASS/*.jpg alone."""

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

# Files of these names are meant as images; what can't be read of them is a fault. Other files are left alone.
_IMAGE_SUFFIXES = tuple(
    f".{name}"
    for names in (
        ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "dib", "webp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        ("avif", "heic", "heif", "jp2", "j2k", "jxl", "tga", "ico", "psd", "dng", "cr2", "nef", "arw"),
    )
    for name in names
)
_TEST_FOLDERS = ("val", "validation", "valid", "test")
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class FolderSource:
    """Image files below `root`, as (path relative to it, label)."""

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
    """The image files named, and those at any depth below the folders named, in order; all with label 0.

    Raises InputError for a folder without image files.
    """
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(os.fspath(path))
            continue
        below = sorted(_images(path), key=_order)
        if not below:
            raise InputError(f"{_shown(path)} holds no image files (.jpg, .png, ...); give files or a folder of them")
        files += below
    return FolderSource(Path(), [(file, 0) for file in files])


def load_folder(root: Path, test_share: float) -> Dataset:
    """The images below `root`; without a val/ or test/ folder, `test_share` of each class is held out, always the same.

    Class names are the folders' names, in the order of `class_order`. Raises InputError for a folder of another
    layout, and for classes that are empty, alone, or not the same in both parts.
    """
    parts: dict[str, Path] = {}
    folders = _folders(root)
    for path in folders:
        name = path.name.lower()
        if name == "train" or name in _TEST_FOLDERS:
            if name in parts:
                raise InputError(f"{root} holds both {parts[name].name}/ and {path.name}/; rename or remove one")
            # A class may be called so as well; then it holds images, and no classes.
            if _folders(path) or not any(_images(path)) or len(folders) == 1:
                parts[name] = path
    if "train" not in parts:
        tests = [parts[name] for name in _TEST_FOLDERS if name in parts]
        if tests:
            raise InputError(f"{root} holds {tests[0].name}/ but no train/; expected train/CLASS/IMAGE")
        return _divided(root, root, test_share)
    for path in folders:
        if path not in parts.values() and path.name.lower() not in _TEST_FOLDERS and any(_images(path)):
            raise InputError(f"{_shown(path)} holds images but is no part; expected {root}/train and val or test alone")
    train = parts["train"]
    test = next((parts[name] for name in _TEST_FOLDERS if name in parts), None)
    if test is None:
        return _divided(root, train, test_share)
    class_names, test_names = _classes(train), _classes(test)
    if class_names.keys() != test_names.keys():
        only_one = sorted(class_names.keys() ^ test_names.keys())[0]
        place, other = (train, test) if only_one in class_names else (test, train)
        raise InputError(
            f"class {only_one!r} is in {place} but not in {other} ({len(class_names)} and {len(test_names)} classes); "
            "both need a folder for each class"
        )
    return Dataset(root.name, tuple(class_names), _source(root, train, class_names), _source(root, test, test_names))


def class_order(names: Sequence[str]) -> list[str]:
    """Names in the order of their indices: numbers within them by value, the rest by code point."""

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
    """Class name (Unicode form C, as file systems differ in it) -> folder, in the order of the classes' indices."""
    found: dict[str, Path] = {}
    loose = [name for name in _listed(part) if _named_like_image(name) and not os.path.isdir(part / name)]
    folders = _folders(part)
    if folders and loose:
        raise InputError(f"{_shown(part / loose[0])} lies beside the class folders; move it into one of them, or away")
    for path in folders:
        try:
            name = unicodedata.normalize("NFC", os.fsencode(path.name).decode())
        except UnicodeDecodeError:
            raise InputError(f"the name of the folder {path.name!r} in {part} is not UTF-8; rename it") from None
        if name in found:
            raise InputError(f"{part} has two folders that read {name!r}, composed differently; rename one")
        found[name] = path
    if not found:
        raise InputError(f"{part} has no class folders; expected {part}/CLASS/IMAGE")
    if len(found) == 1:
        raise InputError(f"{part} has one class only, {next(iter(found))!r}; a classifier needs at least two folders")
    return {name: found[name] for name in class_order(list(found))}


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
            raise InputError(f"class {name!r} has one image only; holding some out for the test needs at least two")
        count = min(max(round(test_share * len(files)), 1), len(files) - 1)
        # Decided by the files' own names, so that a new image moves hardly any other to the other side.
        held_out.update(
            sorted(files, key=lambda file: _digest(os.path.relpath(file[0], part.relative_to(root))))[:count]
        )
    train, test = ([file for file in whole.files if (file in held_out) == side] for side in (False, True))
    return Dataset(root.name, tuple(classes), FolderSource(root, train), FolderSource(root, test))


def _digest(name: str) -> bytes:
    return hashlib.sha256(_order(name)[0].encode("utf-8", "surrogateescape")).digest()


def _order(name: str) -> tuple[str, str]:
    """A file's name as it reads on every machine, then as it is, should two of them read the same."""
    read = os.fsencode(name).decode("utf-8", "surrogateescape").replace(os.sep, "/")
    return unicodedata.normalize("NFC", read), name


def _images(folder: Path) -> Iterator[str]:
    """Paths of all that is named like an image, at any depth; a link back to a folder above ends there."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{_shown(error.filename)} can't be read ({error.strerror}); mend or remove it")

    parent = Path(os.path.realpath(folder.parent))
    seen = {os.fspath(place) for place in (parent, *parent.parents, *Path(os.path.realpath(folder)).parents)}
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        named = [name for name in folders if name.lower().endswith(_IMAGE_SUFFIXES)]
        # A folder that links lead to twice is read where it comes first.
        folders[:] = sorted((name for name in folders if name not in named and not name.startswith(".")), key=_order)
        for name in files + named:
            if _named_like_image(name):
                yield os.path.join(place, name)
            elif not name.startswith("."):
                _refuse_broken_link(Path(place) / name)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{_shown(folder)} can't be read ({error.strerror}); give a folder of images") from None


def _named_like_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")


def _refuse_broken_link(path: Path) -> None:
    # It may have led to a folder of images, on a drive that is not there now.
    if os.path.islink(path) and not os.path.exists(path) and not _named_like_image(path.name):
        raise InputError(f"{_shown(path)} is a link that leads nowhere; mend or remove it")


def _shown(path: str | Path) -> str:
    """A path as messages show it: printable where it is not UTF-8, on one line where it has line breaks."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], name)


def _read(path: str) -> bytes:
    # Not to wait for ever where a pipe bears an image's name.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > _MOST_BYTES:
            raise OSError(None, f"{status.st_size / 1e9:.1f} GB, too large for an image")
        data = os.read(file, status.st_size)
        while len(data) < status.st_size and (more := os.read(file, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(file)
