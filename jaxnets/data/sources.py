"""Labelled images in a fixed order: the one interface behind which every data set stands."""

from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol

import numpy as np

from jaxnets.errors import InputError

Channels = tuple[float, float, float]

# Of ImageNet's training images (He et al. 2015 and torchvision's presets); photos of any kind are close to it.
PHOTO_MEAN: Channels = (0.485, 0.456, 0.406)
PHOTO_STD: Channels = (0.229, 0.224, 0.225)


class Record(NamedTuple):
    """One labelled image: the bytes of an image file, or uint8 pixels [H, W], [H, W, 1] or [H, W, 3]."""

    image: bytes | np.ndarray
    label: int


class Source(Protocol):
    """A fixed sequence of records. Reading one is safe from many threads, and raises InputError, naming it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def where(self, index: int) -> str:
        """What a message calls the record, such as the path of its file."""
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal digits, of what tells these records from others, or from what they were before."""
        ...


@dataclass(frozen=True)
class Dataset:
    """What a classifier is trained on and tested on. A class's index is its place in `class_names`.

    `mean` and `std` are a channel each, in units of the full range (0 to 1).
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    test: Source
    mean: Channels = PHOTO_MEAN
    std: Channels = PHOTO_STD


@dataclass(frozen=True)
class ArraySource:
    """Images in memory, uint8 [N, H, W] or [N, H, W, C] with one or three channels, and labels [N]."""

    images: np.ndarray
    labels: np.ndarray
    name: str = "image"

    def __post_init__(self) -> None:
        shape, dtype = self.images.shape, self.images.dtype
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise InputError(
                f"images are {dtype} {list(shape)}; expected uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
            )
        if self.labels.shape != shape[:1] or not np.issubdtype(self.labels.dtype, np.integer):
            raise InputError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; expected whole numbers [{shape[0]}]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]))

    def where(self, index: int) -> str:
        return f"{self.name} {index}"

    def fingerprint(self) -> str:
        arrays = (self.images, self.labels)
        parts = (part for array in arrays for part in (repr((array.shape, array.dtype.str)).encode(), array.tobytes()))
        return sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Subset:
    """The records of another source at `indices` [N], in their order."""

    whole: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.whole[int(self.indices[index])]

    def where(self, index: int) -> str:
        return self.whole.where(int(self.indices[index]))

    def fingerprint(self) -> str:
        return sha256(self.whole.fingerprint().encode() + self.indices.astype("<i8").tobytes()).hexdigest()
