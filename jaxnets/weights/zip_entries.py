"""Locates the entries of a zip archive. Unlike Python's zipfile, it refuses damaged archives."""

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

from jaxnets.errors import InputError
from jaxnets.weights.pickle_values import shown

# Records of a zip archive: end of directory, its zip64 versions, directory entry, local header, extra field.
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_CENTRAL, LOCAL, EXTRA = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H"), struct.Struct("<2H")
_MAX_COMMENT, _MAX_DIRECTORY = (1 << 16) - 1, 16 << 20
_ENCRYPTED = 0x2041


class Stored(NamedTuple):
    """The position of bytes in the file, and their checksum if known."""

    start: int
    length: int
    crc32: int | None


class Entry(NamedTuple):
    """An entry of a zip archive's directory. `header` is the offset of its local header."""

    flags: int
    method: int
    crc32: int
    compressed: int
    length: int
    header: int


def read_directory(file: BinaryIO, length: int) -> dict[str, Entry]:
    """Returns the entries by name. Raises InputError for a damaged directory and for duplicate or unsafe names."""
    count, size, start = _read_end(file, length)
    file.seek(start)
    directory = file.read(size)
    entries: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        if len(directory) - at < _CENTRAL.size or not directory.startswith(b"PK\1\2", at):
            raise InputError("is a zip archive whose directory is damaged")
        _, _, _, flags, method, _, _, crc32, *sizes, named, extra, comment, _, _, _, header = _CENTRAL.unpack_from(
            directory, at
        )
        at += _CENTRAL.size
        name = directory[at : at + named].decode("utf-8", "backslashreplace")
        at += named
        sizes = _long_sizes(directory[at : at + extra], *sizes, header)
        at += extra + comment
        if name in entries:
            raise InputError(f"is a zip archive that has {shown(name)} twice")
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"is a zip archive that has {shown(name)}, a path outside the archive")
        entries[name] = Entry(flags, method, crc32, *sizes)
    return entries


def _read_end(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Returns the number of directory entries, and the directory's size and offset."""
    start_of_tail = max(0, length - _END.size - _MAX_COMMENT)
    file.seek(start_of_tail)
    tail = file.read(length - start_of_tail)
    position = tail.rfind(b"PK\5\6")
    if position < 0 or len(tail) - position < _END.size:
        raise InputError("is a truncated zip archive; copy or download the file again")
    end = start_of_tail + position
    *_, count, size, start, _ = _END.unpack_from(tail, position)
    if count == 0xFFFF or 0xFFFFFFFF in (size, start):
        file.seek(max(0, end - _LOCATOR64.size))
        magic, _, end, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
        file.seek(min(end, length))
        record = file.read(_END64.size)
        if magic != b"PK\6\7" or len(record) < _END64.size or not record.startswith(b"PK\6\6"):
            raise InputError("is a zip archive whose end record is damaged")
        *_, count, size, start = _END64.unpack(record)
    if size > _MAX_DIRECTORY or start + size > end:
        raise InputError("is a damaged zip archive: its directory is not before its end")
    return count, size, start


def _long_sizes(extra: bytes, *sizes: int) -> list[int]:
    """Replaces sizes that need 64 bits by those in the extra field, whose order is length, compressed, header."""
    compressed, length, header = sizes
    at = 0
    while at + EXTRA.size <= len(extra):
        tag, size = EXTRA.unpack_from(extra, at)
        at += EXTRA.size
        if tag == 1:
            longs = iter([int.from_bytes(extra[i : i + 8], "little") for i in range(at, at + size, 8)])
            length, compressed, header = (
                next(longs, value) if value == 0xFFFFFFFF else value for value in (length, compressed, header)
            )
        at += size
    return [compressed, length, header]


def locate(file: BinaryIO, entries: Mapping[str, Entry]) -> dict[str, Stored]:
    """Locates the bytes of the entries, with their checksums if the archive has any.

    Raises InputError for compressed, encrypted and overlapping entries.
    """
    stored: dict[str, Stored] = {}
    end = 0
    # torch writes zeros for all checksums after torch.serialization.set_crc32_options(False).
    has_checksums = any(entry.crc32 for entry in entries.values())
    length = os.fstat(file.fileno()).st_size
    for name, entry in sorted(entries.items(), key=lambda item: item[1].header):
        if entry.flags & _ENCRYPTED:
            raise InputError(f"is a zip archive whose {shown(name)} is encrypted")
        if entry.method != zipfile.ZIP_STORED or entry.compressed != entry.length:
            raise InputError(f"is a zip archive whose {shown(name)} is compressed; expected uncompressed entries")
        if entry.header < end:
            raise InputError(f"is a zip archive whose {shown(name)} overlaps another entry")
        file.seek(min(entry.header, length))
        local = file.read(LOCAL.size)
        if len(local) < LOCAL.size or not local.startswith(b"PK\3\4"):
            raise InputError(f"is a damaged zip archive: {shown(name)} is not at the offset in its directory")
        *_, named, extra = LOCAL.unpack(local)
        if file.read(named).decode("utf-8", "backslashreplace") != name:
            raise InputError(f"is a damaged zip archive: {shown(name)} has a different name in its local header")
        start = entry.header + LOCAL.size + named + extra
        end = start + entry.length
        if end > length:
            raise InputError(f"is a truncated zip archive: {shown(name)} ends beyond the end of the file")
        stored[name] = Stored(start, entry.length, entry.crc32 if has_checksums else None)
    return stored
