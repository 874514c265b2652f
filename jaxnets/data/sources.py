"""The interface of all data sets: sources of labelled images in a fixed order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Protocol

import numpy as np

from jaxnets.errors import InputError

Channels = tuple[float, float, float]

# The statistics of ImageNet's training images (He et al. 2015, torchvision's presets), which suit other photos too.
PHOTO_MEAN: Channels = (0.485, 0.456, 0.406)
PHOTO_STD: Channels = (0.229, 0.224, 0.225)
# Class names in a summary.
_NAMED = 5


class Record(NamedTuple):
    """One labelled image: the bytes of an image file, or uint8 pixels [H, W], [H, W, 1] or [H, W, 3]."""

    image: bytes | np.ndarray
    label: int


class Source(Protocol):
    """A fixed sequence of records.

    Threads may read records concurrently. Reading an invalid record raises InputError with the record's name.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def where(self, index: int) -> str:
        """The record's name in messages, such as the path of its file."""
        ...

    def fingerprint(self) -> str:
        """A hexadecimal SHA-256 that changes when the records change."""
        ...


@dataclass(frozen=True)
class Dataset:
    """The images of each part, "train", "val" and "test", with their classes. A label is an index into `class_names`.

    `val` and `test` may be None. `mean` and `std` are per channel, for pixel values from 0 to 1. `origins` says where
    the images of val and test come from, such as "from val/", and `warnings` what a user may not expect.
    `labels` are those of each part [N], once its images are checked.
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    test: Source | None
    mean: Channels = PHOTO_MEAN
    std: Channels = PHOTO_STD
    val: Source | None = None
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def parts(self) -> dict[str, Source]:
        """The parts that are there, in the order train, val, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {part: source for part, source in parts.items() if source is not None}

    def images_by_class(self, part: str) -> np.ndarray:
        """The numbers of images of each class [K] in a part whose images are checked."""
        return np.bincount(self.labels[part], minlength=len(self.class_names))

    @property
    def judged_on(self) -> str:
        """The part that a finished network is judged on: "test", or "val" without a test part."""
        return "val" if self.test is None else "test"

    def judged(self, part: str | None = None) -> Source:
        """The images of a part, by default those of `judged_on`; InputError if there are none."""
        source = self.parts.get(part or self.judged_on)
        if source is None:
            present = ", ".join(self.parts)
            raise InputError(f"{self.name} has no {part or 'val or test'} images, only {present}; choose another part")
        return source

    def summary(self) -> str:
        """One line: the classes, and the number of images of each part."""
        names, more = ", ".join(map(repr, self.class_names[:_NAMED])), ", ..." * (len(self.class_names) > _NAMED)
        counts = [f"{len(self.train):,} training images"]
        for part, source in list(self.parts.items())[1:]:
            origin = f" ({self.origins[part]})" if part in self.origins else ""
            counts.append(f"{len(source):,} {part} images{origin}")
        return f"{len(self.class_names)} classes ({names}{more}), {', '.join(counts)}"

    def __post_init__(self) -> None:
        first: dict[str, int] = {}
        for index, name in enumerate(self.class_names):
            if not isinstance(name, str):
                raise InputError(f"{self.name}: class {index} is named {name!r}; expected a string")
            if first.setdefault(name, index) != index:
                raise InputError(f"{self.name}: classes {first[name]} and {index} are both named {name!r}; rename one")


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
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; expected integers [{shape[0]}]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]))

    def where(self, index: int) -> str:
        return f"{self.name} {index}"

    def subset(self, indices: np.ndarray) -> "ArraySource":
        """The images at `indices` [N], in this order."""
        return ArraySource(self.images[indices], self.labels[indices], self.name)

    def fingerprint(self) -> str:
        arrays = (self.images, self.labels)
        parts = (part for array in arrays for part in (repr((array.shape, array.dtype.str)).encode(), array.tobytes()))
        return sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class Relabelled:
    """The records of another source with the label `new_labels[label]` in place of each label."""

    source: Source
    new_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        image, label = self.source[index]
        return Record(image, int(self.new_labels[label]))

    def where(self, index: int) -> str:
        return self.source.where(index)

    def fingerprint(self) -> str:
        return sha256(self.source.fingerprint().encode() + self.new_labels.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Subset:
    """The records of another source at `indices` [N], in this order."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    def where(self, index: int) -> str:
        return self.source.where(int(self.indices[index]))

    def fingerprint(self) -> str:
        return sha256(self.source.fingerprint().encode() + self.indices.astype("<i8").tobytes()).hexdigest()
