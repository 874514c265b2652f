"""Folders of IDX files, the format of MNIST and of the data sets that followed it (Fashion-MNIST, KMNIST, EMNIST).

An IDX file has a magic number (two zero bytes, the type, the number of dimensions), the size of each dimension as a
big-endian uint32, and the values: http://yann.lecun.com/exdb/mnist. Files may be compressed with gzip.
"""

import gzip
import re
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from jaxnets.data.division import Division, even_positions
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError

_FILE = re.compile(r".*?(train|t10k|test)-(images|labels)[-.]idx([13])-ubyte(\.gz)?")
_PARTS = {"train": "train", "t10k": "test", "test": "test"}
_UBYTE = 0x08


def holds_idx(folder: Path) -> bool:
    """Whether a folder has IDX files of training images and labels."""
    return {("train", "images"), ("train", "labels")} <= _files(folder).keys()


def load_idx(folder: Path, division: Division) -> Dataset:
    """Loads the IDX files of a folder: train-images-idx3-ubyte, train-labels-idx1-ubyte and those of t10k or test.

    The classes are named by their numbers, as the files hold no names. Parts that are not there are held out of the
    training images as `division` says. Raises InputError for a file that is missing or damaged.
    """
    files = _files(folder)
    parts = {}
    for part in ("train", "test"):
        present = [what for what in ("images", "labels") if (part, what) in files]
        if len(present) == 1:
            raise InputError(f"{folder} has {present[0]} of {part}, but not both images and labels; add the other file")
        if present:
            images, labels = (
                _read(files[part, what], dimensions) for what, dimensions in (("images", 3), ("labels", 1))
            )
            if len(images) != len(labels):
                raise InputError(
                    f"{folder}: {len(images):,} images of {part}, but {len(labels):,} labels; download the files again"
                )
            parts[part] = images, labels.astype(np.int32)
    images, labels = parts["train"]
    classes = 1 + max(int(labels.max()) for _, labels in parts.values())
    shares = np.bincount(images.reshape(-1), minlength=256) / images.size
    values = np.arange(256) / 255
    mean = float(shares @ values)
    std = float(np.sqrt(shares @ (values - mean) ** 2))
    name = folder.resolve().name
    sources = {part: ArraySource(*arrays, f"{name} {part} image") for part, arrays in parts.items()}
    whole = Dataset(
        name=name,
        class_names=tuple(map(str, range(classes))),
        train=sources["train"],
        test=sources.get("test"),
        mean=(round(mean, 4),) * 3,
        std=(round(std, 4),) * 3,
        origins={"test": f"from {files['test', 'images'].name}"} if "test" in parts else {},
    )
    return division.divide(whole, labels, even_positions(labels), subset=ArraySource.subset)


def _files(folder: Path) -> dict[tuple[str, str], Path]:
    if not folder.is_dir():
        return {}
    matches = {path: _FILE.fullmatch(path.name) for path in sorted(folder.iterdir())}
    # The uncompressed file of a pair comes first.
    files = {(_PARTS[match[1]], match[2]): path for path, match in reversed(matches.items()) if match}
    first = {match[0][: match.start(1)]: path.name for path, match in matches.items() if match}
    if len(first) > 1:
        raise InputError(f"{folder} has several data sets: {', '.join(first.values())}; move all but one away")
    return files


def _read(path: Path, dimensions: int) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); download it again") from None
    header = 4 * (1 + dimensions)
    if len(data) < header or data[:4] != bytes((0, 0, _UBYTE, dimensions)):
        raise InputError(f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions; download it again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != prod(shape) or not prod(shape):
        raise InputError(
            f"{path} has {len(data) - header:,} values, but its header says {list(shape)}; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
