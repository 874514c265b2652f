"""Paths that orbax and tensorstore understand."""

import os
import re
from pathlib import Path

from jaxnets.errors import InputError

# tensorstore matches file names with the whole path as a glob pattern, where [ab] is one letter, reads a backslash as a
# separator, and takes UTF-8 alone. Control characters can't be printed.
_UNSAFE = re.compile("[\\[\\]\\\\*?{}\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Where Linux lists the open files of a process.
_OPEN_FILES = Path("/proc/self/fd")


def is_safe(folder: Path) -> bool:
    """Whether orbax can be given this path."""
    return os.name == "nt" or not _UNSAFE.search(str(folder))


def check_path(folder: Path) -> None:
    """Raises InputError if this system can't write checkpoints to the path."""
    if not is_safe(folder) and not _OPEN_FILES.is_dir():
        (letter, *_) = _UNSAFE.findall(str(folder))
        raise InputError(
            f"{folder}: orbax can't use a path with {letter!r} for checkpoints on this system; give another folder"
        )


def open_folder(folder: Path) -> tuple[Path, int | None]:
    """A safe path to an existing folder, and the descriptor to close after its use, if there is one."""
    if is_safe(folder):
        return folder, None
    check_path(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return _OPEN_FILES / str(descriptor), descriptor
