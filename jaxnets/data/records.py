"""Prepared records: a data set's resized images as raw pixels, in a few memory-mapped files.

A folder has records.json and, for each part, PART.pixels (the RGB images, concatenated) and PART.index (an `_ENTRY`
per image: offset, size, label, CRC-32). Writing can resume after a kill, because index entries are written after their
pixels, and records.json last.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image

from jaxnets.data.decoding import open_image, pixels_of
from jaxnets.data.division import Division, even_positions
from jaxnets.data.part_names import PARTS
from jaxnets.data.pipeline import in_order
from jaxnets.data.preprocessing import resized
from jaxnets.data.sources import Dataset, Record, Source
from jaxnets.errors import InputError

_FORMAT = 1
_DONE, _STARTED, _PARTIAL = "records.json", "started.json", ".partial"
_ENTRY = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
_RECORDS_PER_FLUSH = 64
_SAMPLE_SIZE = 32


class RecordSource:
    """One part of prepared records. The first read of a record verifies its checksum."""

    def __init__(self, folder: Path, part: str, index_sha256: str) -> None:
        self._path = folder / f"{part}.pixels"
        index = (folder / f"{part}.index").read_bytes()
        if hashlib.sha256(index).hexdigest() != index_sha256:
            raise InputError(
                f"{folder / f'{part}.index'} does not match its checksum; remove the records and prepare them again"
            )
        self._index = np.frombuffer(index, _ENTRY)
        sizes = self._index["height"].astype(np.int64) * self._index["width"] * 3
        if self._path.stat().st_size != sizes.sum():
            raise InputError(
                f"{self._path} has a different length than its index says; remove the records and prepare them again"
            )
        # Slicing a plain array is cheaper than slicing a memmap.
        self._pixels = np.asarray(np.memmap(self._path, np.uint8, "r")) if len(self._index) else np.empty(0, np.uint8)
        self._sha256 = index_sha256
        self._checked = np.zeros(len(self._index), bool)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        offset, height, width, label, crc32 = self._index[index].item()
        pixels = self._pixels[offset : offset + height * width * 3]
        if not self._checked[index]:
            if zlib.crc32(pixels.data) != crc32:
                raise InputError(
                    f"{self.where(index)}: does not match its checksum; remove the records and prepare them again"
                )
            self._checked[index] = True
        return Record(pixels.reshape(height, width, 3), label)

    @property
    def labels(self) -> np.ndarray:
        """The labels [N]."""
        return self._index["label"].astype(np.int64)

    def where(self, index: int) -> str:
        return f"{self._path} record {index}"

    def fingerprint(self) -> str:
        return self._sha256


def holds_records(folder: Path) -> bool:
    """Whether `write_records` created the folder, even if it did not finish."""
    return (folder / _DONE).exists() or (folder / _STARTED).exists()


def load_records(folder: Path, division: Division = Division(0, 0)) -> Dataset:  # noqa: B008
    """Loads a data set from a folder of prepared records.

    Parts that were not prepared are held out of the training images as `division` says. Raises InputError if the
    records are unfinished or damaged.
    """
    if not (folder / _DONE).exists():
        raise InputError(f"{folder} has unfinished records; run the same prepare command again")
    try:
        info = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        if info["format"] != _FORMAT:
            raise InputError(
                f"{folder} has records of format {info['format']}; expected {_FORMAT}; remove the folder and prepare "
                "the records again"
            )
        sources = {
            part: RecordSource(folder, part, info["index_sha256"][part])
            for part in PARTS
            if part in info["index_sha256"]
        }
        if info.pop("sha256") != _sha256(info):
            raise InputError(
                f"{folder / _DONE} does not match its checksum; remove the folder and prepare the records again"
            )
        mean, std, class_names = tuple(info["mean"]), tuple(info["std"]), tuple(info["class_names"])
        labels = sources["train"].labels
        dataset = Dataset(
            info["name"],
            class_names,
            sources["train"],
            sources.get("test"),
            mean,
            std,
            sources.get("val"),
            {part: "as prepared" for part in sources if part != "train"},
        )
        return division.divide(dataset, labels, even_positions(labels))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder} has damaged records ({error}); remove the folder and prepare the records again"
        ) from None


def write_records(dataset: Dataset, folder: Path, short_side: int, done: Callable[[int], None]) -> bool:
    """Writes every image with its short side reduced to `short_side`. Smaller images keep their size.

    Resumes an interrupted call. If the records are complete, only verifies their checksums and returns False. `done` is
    called with the number of images finished so far. Raises InputError if the folder has other content, if the disk is
    too small, or if an image is unreadable.
    """
    check_target(folder, short_side)
    plan = {
        "format": _FORMAT,
        "name": dataset.name,
        "short_side": short_side,
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "sources": {part: source.fingerprint() for part, source in dataset.parts.items()},
    }
    if not _start(folder, plan):
        written = load_records(folder)
        before = 0
        for source in written.parts.values():
            for index, _ in enumerate(in_order(source.__getitem__, range(len(source)))):
                done(before + index + 1)
            before += len(source)
        return False
    _check_space(dataset, folder, short_side)
    before, checksums = 0, {}
    for part, source in dataset.parts.items():
        _write_part(source, folder / part, short_side, partial(_report, done, before))
        before += len(source)
        checksums[part] = hashlib.sha256((folder / f"{part}.index").read_bytes()).hexdigest()
    info = {**plan, "index_sha256": checksums}
    _write_json(folder / _DONE, {**info, "sha256": _sha256(info)})
    (folder / _STARTED).unlink(missing_ok=True)
    return True


def check_target(folder: Path, short_side: int) -> None:
    """Raises InputError if records of this size can't be, or if the folder has other content."""
    if short_side < 1:
        raise InputError(f"size={short_side}; expected a short side of at least 1 pixel")
    # An interrupted start may leave a partial file.
    if folder.is_dir() and not holds_records(folder) and any(path.suffix != _PARTIAL for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty; give --output an empty or a new folder")


def _sha256(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _report(done: Callable[[int], None], before: int, count: int) -> None:
    done(before + count)


def _start(folder: Path, plan: dict[str, Any]) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_DONE, _STARTED):
        if (folder / name).exists():
            try:
                earlier = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(
                    f"{folder / name} is damaged ({error}); remove {folder} and prepare the records again"
                ) from None
            if {key: earlier.get(key) for key in plan} != plan:
                raise InputError(
                    f"{folder} has records of other images or of another size; give another --output, or remove it"
                )
            return name == _STARTED
    _write_json(folder / _STARTED, plan)
    return True


def _check_space(dataset: Dataset, folder: Path, short_side: int) -> None:
    count = sum(map(len, dataset.parts.values()))
    sample = range(0, len(dataset.train), max(1, len(dataset.train) // _SAMPLE_SIZE))
    sizes = [_shrunk(dataset.train, index, short_side)[0].size for index in sample]
    needed = int(np.mean(sizes) * count)
    written = sum(path.stat().st_size for path in folder.glob("*.pixels"))
    free = shutil.disk_usage(folder).free
    if needed - written > free:
        raise InputError(
            f"{folder} needs about {(needed - written) / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; give an "
            "--output with more space, or a smaller --size"
        )


def _write_part(source: Source, path: Path, short_side: int, done: Callable[[int], None]) -> None:
    with _open(path.with_suffix(".pixels")) as pixels, _open(path.with_suffix(".index")) as index:
        written, end = _resume(pixels, index)
        entries: list[tuple[int, ...]] = []
        shrunk = in_order(lambda number: _shrunk(source, number, short_side), range(written, len(source)))
        for image, label, crc32 in shrunk:
            pixels.write(image.data)
            entries.append((end, *image.shape[:2], label, crc32))
            end += image.size
            written += 1
            if len(entries) == _RECORDS_PER_FLUSH or written == len(source):
                # The pixels must be on the disk before their entries.
                _to_disk(pixels)
                index.write(np.array(entries, _ENTRY).tobytes())
                _to_disk(index)
                entries.clear()
                done(written)


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resume(pixels: BinaryIO, index: BinaryIO) -> tuple[int, int]:
    """Truncates both files after the last complete record. Returns the number of records and of bytes."""
    index.seek(0)
    entries = np.frombuffer(index.read(), np.uint8)
    entries = entries[: len(entries) // _ENTRY.itemsize * _ENTRY.itemsize].view(_ENTRY)
    count, end = len(entries), 0
    length = os.fstat(pixels.fileno()).st_size
    while count:
        entry = entries[count - 1]
        size = int(entry["height"]) * int(entry["width"]) * 3
        end = int(entry["offset"]) + size
        pixels.seek(int(entry["offset"]))
        # After a power failure a file may end in zeros, which would be an entry of size 0.
        if size > 0 and end <= length and zlib.crc32(pixels.read(size)) == entry["crc32"]:
            break
        count, end = count - 1, 0
    for file, size in ((pixels, end), (index, count * _ENTRY.itemsize)):
        file.truncate(size)
        file.seek(size)
    return count, end


def _shrunk(source: Source, number: int, short_side: int) -> tuple[np.ndarray, int, int]:
    encoded, label = source[number]
    try:
        image = Image.fromarray(pixels_of(open_image(encoded)))
    except InputError as error:
        raise InputError(f"{source.where(number)}: {error}") from None
    if min(image.size) > short_side:
        image = image.resize(resized(*image.size, short_side), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels, label, zlib.crc32(pixels.data)


def _open(path: Path) -> BinaryIO:
    return path.open("r+b" if path.exists() else "w+b")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(_PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        _to_disk(file)
    partial.replace(path)
