"""The folders in a data set that have images, and what their names say."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxnets.data.image_files import has_images_below, has_loose_images, printable, sort_key, subfolders
from jaxnets.data.part_names import SPLITS, Part, part_of


@dataclass(frozen=True)
class TopFolder:
    """A folder with images in it.

    `part` is what its name says, `is_flat` whether images are directly in it, `inner` the folder with its class folders
    (itself, or one nested in it), and `names` are the names of those.
    """

    path: Path
    part: Part | None
    is_flat: bool
    inner: Path
    names: tuple[str, ...]

    @property
    def has_parts(self) -> bool:
        """Whether the folders in it are for training and testing."""
        inside = {part_of(name) for name in self.names}
        return "train" in inside and not inside.isdisjoint(SPLITS)

    @property
    def label(self) -> str:
        """The name for messages."""
        return printable(self.path.name)


def top_folders(folder: Path, left_out: Sequence[Path] = ()) -> tuple[list[TopFolder], list[Path]]:
    """The folders with images, and those without, but for those of `left_out`."""
    present, empty = with_images(folder)
    tops = map(_top, present)
    return [top for top in tops if top.path not in left_out and top.inner not in left_out], empty


def _top(path: Path) -> TopFolder:
    part, is_flat = part_of(path.name), has_loose_images(path)
    # A class may have thousands of files, and its subfolders do not matter.
    inner = path if is_flat and part is None else unwrapped(path)
    names = () if is_flat and part is None else tuple(sort_key(inside.name)[0] for inside in with_images(inner)[0])
    return TopFolder(path, part, is_flat, inner, names)


def with_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder that have images at any depth, and the others."""
    present: list[Path] = []
    empty: list[Path] = []
    for path in sorted(subfolders(folder), key=lambda path: sort_key(path.name)):
        (present if has_images_below(path) else empty).append(path)
    return present, empty


def unwrapped(folder: Path) -> Path:
    """The folder, or the one nested in it that has all its class folders."""
    while inner := only_inner(folder):
        folder = inner
    return folder


def only_inner(folder: Path, left_out: Sequence[Path] = ()) -> Path | None:
    """The only folder with images in `folder`, if it has folders of images itself; None if it may be a class.

    Those of `left_out` do not count.
    """
    if has_loose_images(folder):
        return None
    present, empty = with_images(folder)
    if left_out:
        present = [path for path in present if path not in left_out and unwrapped(path) not in left_out]
    if len(present) != 1 or has_loose_images(present[0]):
        return None
    # An empty folder is a class whose images are missing.
    if not all(any(files for _, _, files in os.walk(path)) for path in empty):
        return None
    return present[0]
