"""Finds and reads image files."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from jaxnets.errors import InputError

# Files with these suffixes must be readable images. Other files are ignored.
_IMAGE_SUFFIXES = tuple(
    f".{name}"
    for names in (
        ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "dib", "webp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        ("avif", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpf", "jpx", "jxl", "tga", "ico", "psd"),
        ("dng", "cr2", "cr3", "crw", "nef", "arw", "raf", "orf", "rw2", "x3f"),
    )
    for name in names
)
# Folders that systems and network drives create; some hold thumbnails. Names that begin with a dot are ignored too.
_SYSTEM_FOLDERS = ("__macosx", "@eadir", "lost+found", "system volume information", "$recycle.bin")
_MAX_BYTES = 1 << 30


def images_below(folder: Path) -> Iterator[str]:
    """Yields the paths with an image suffix at any depth. Does not follow links to a parent folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{printable(error.filename)} can't be read ({error.strerror}); fix or remove it")

    parent = Path(os.path.realpath(folder.parent))
    visited = {os.fspath(path) for path in (parent, *parent.parents, *Path(os.path.realpath(folder)).parents)}
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A folder that several links point to is visited once.
        if os.path.realpath(current) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(current))
        folders[:] = [name for name in folders if not _is_ignored(name)]
        image_like = [name for name in folders if name.lower().endswith(_IMAGE_SUFFIXES)]
        folders[:] = sorted((name for name in folders if name not in image_like), key=sort_key)
        for name in files + image_like:
            if named_like_image(name):
                yield os.path.join(current, name)
            elif not name.startswith("."):
                _refuse_broken_link(Path(current) / name)


def has_images_below(folder: Path) -> bool:
    """Whether there are files with an image suffix at any depth."""
    # Not for a link, which may lead to a parent folder.
    return (not os.path.islink(folder) and has_loose_images(folder)) or any(images_below(folder))


def has_loose_images(folder: Path) -> bool:
    """Whether files with an image suffix are directly in the folder. Reads no more of it than it needs."""
    try:
        with os.scandir(folder) as entries:
            return any(named_like_image(entry.name) and not entry.is_dir() for entry in entries)
    except OSError as error:
        raise unreadable_folder(folder, error) from None


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, sorted, without those of the operating system."""
    folders = []
    for name in listed(root):
        if not _is_ignored(name):
            _refuse_broken_link(root / name)
            if os.path.isdir(root / name):
                folders.append(root / name)
    return folders


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted. Raises InputError if it can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable_folder(folder, error) from None


def unreadable_folder(folder: Path, error: OSError) -> InputError:
    """The error for a folder that can't be listed."""
    return InputError(f"{printable(folder)} can't be read ({error.strerror}); give a folder of images")


def named_like_image(name: str) -> bool:
    """Whether a file of this name has to be an image."""
    return name.lower().endswith(_IMAGE_SUFFIXES) and not name.startswith(".")


def normalised(name: str) -> str:
    """The name in Unicode form C, as file systems differ here. Raises UnicodeDecodeError if it is not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode())


def sort_key(name: str) -> tuple[str, str]:
    """Sorts file names in the same order on every machine; the name itself breaks ties."""
    portable = os.fsencode(name).decode("utf-8", "surrogateescape").replace(os.sep, "/")
    return unicodedata.normalize("NFC", portable), name


def printable(path: str | Path) -> str:
    """Formats a path for a message: escapes bytes that are not UTF-8, and control characters."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: ascii(match[0])[1:-1], name)


def read_file(path: str) -> bytes:
    """The content of a regular file of at most 1 GiB. Raises OSError."""
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


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _refuse_broken_link(path: Path) -> None:
    # Its target may be a folder of images on a drive that is not mounted.
    if os.path.islink(path) and not os.path.exists(path) and not named_like_image(path.name):
        raise InputError(f"{printable(path)} is a broken link; fix or remove it")
