"""What the names of folders and splits say: training, validation, test, or a numbered piece."""

import re
from typing import Literal, get_args

Part = Literal["train", "val", "test"]
PARTS: tuple[str, ...] = get_args(Part)
SPLITS = ("val", "test")

_SET = "(set|data|dataset|images|imgs)?"
_PART_WORDS: dict[Part, re.Pattern[str]] = {
    "train": re.compile(f"(train|training|trn|trainval){_SET}"),
    "val": re.compile(f"(val|valid|validate|validation|dev|eval|evaluation){_SET}"),
    "test": re.compile(f"(test|testing|tst){_SET}"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# Words that name a container of images, not what the images show.
_IMAGES = ("image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "png", "pngs", "jpegimages")
_PIECES = (*_IMAGES, "part", "batch", "fold", "split", "shard", "chunk", "subset", "set", "data", "dataset", "volume")


def words_of(name: str) -> list[str]:
    """The words and numbers of a name, in lower case: "trainSet_1" has train, set and 1."""
    return [word.lower() for word in _WORD.findall(name)]


def part_of(name: str) -> Part | None:
    """The part of a data set that a name such as "Training", "seg_test" or "val2017" stands for; None for others."""
    words = words_of(name)
    parts = [part for part in get_args(Part) if any(map(_PART_WORDS[part].fullmatch, words))]
    return parts[0] if len(parts) == 1 else None


def without_part(name: str) -> tuple[str, ...]:
    """The words of a name without those for a part: of "rps-test-set", rps."""
    patterns = [re.compile("set"), *_PART_WORDS.values()]
    return tuple(word for word in words_of(name) if not any(pattern.fullmatch(word) for pattern in patterns))


def names_images(name: str) -> bool:
    """Whether a name such as "images" or "JPEGImages" says that images are in a folder, but not what they show."""
    return name.lower() in _IMAGES


def is_numbered_piece(names: list[str]) -> bool:
    """Whether names such as "part_1" and "part_2" are the same but for a number, and say that they are pieces."""
    stems = {tuple(word for word in words_of(name) if not word.isdecimal()) for name in names}
    return len(names) > 1 and len(stems) == 1 and any(word in _PIECES for word in next(iter(stems)))
