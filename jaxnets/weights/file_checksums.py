"""The sizes and checksums of all files of a checkpoint, in a file of its own, which name a file that is damaged."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from jaxnets.weights.tensors import replacing

NAME = "files.json"
_CHUNK = 1 << 20


class DamagedError(ValueError):
    """A file of a checkpoint is not as it was written: its name, and what is wrong."""


def write_checksums(folder: Path) -> None:
    """Writes `NAME` into a complete checkpoint. Raises InputError if that is impossible."""
    files = {name: [size, checksum] for name in _names(folder) for size, checksum in [_described(folder / name)]}
    with replacing(folder / NAME) as file:
        file.write(_encoded(files))


def check_files(folder: Path) -> bool:
    """Raises DamagedError for the first file that is not as it was written.

    Returns False if there is no `NAME`, as in a checkpoint of an earlier version, or of a run that was killed before
    it was written.
    """
    try:
        content = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return False
    try:
        files = json.loads(content)["files"]
    except (ValueError, KeyError, TypeError):
        files = None
    if content != _encoded(files):
        raise DamagedError(f"{NAME} is not as it was written")
    for name, (size, checksum) in files.items():
        try:
            found = _described(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{name} is missing") from None
        if found[0] != size:
            raise DamagedError(f"{name} has {found[0]:,} bytes, {size:,} were written")
        if found[1] != checksum:
            raise DamagedError(f"{name} has another checksum than when it was written")
    return True


def _names(folder: Path) -> list[str]:
    paths = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path != folder / NAME)


def _described(path: Path) -> tuple[int, int]:
    """The size and the checksum of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return size, checksum


def _encoded(files: Any) -> bytes:
    return json.dumps({"files": files, "checksum": zlib.crc32(json.dumps(files).encode())}).encode()
