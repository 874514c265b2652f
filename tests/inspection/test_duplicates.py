"""Duplicates: planted copies of parts of real photos are found, and digits, which resemble each other, are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from jaxnets.data.datasets import digits
from jaxnets.data.sources import ArraySource, Record
from jaxnets.errors import InputError
from jaxnets.inspection.duplicates import find_duplicates

PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "ihc.png", "motorcycle_left.png")


class Pictures:
    """A source of images of any size."""

    def __init__(self, images: list[np.ndarray | bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], 0)

    def where(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return ""


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    """Parts of photos, 120 px wide, with something in them."""
    found = []
    for name in PHOTOS:
        photo = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))
        for top in range(0, photo.shape[0] - 119, 120):
            for left in range(0, photo.shape[1] - 119, 120):
                tile = photo[top : top + 120, left : left + 120]
                if tile.std() > 20:
                    found.append(tile)
    return found[::2]


def resized(tile: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(tile).resize((84, 84), Image.Resampling.BICUBIC))


def recompressed(tile: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=40)
    return file.getvalue()


def cropped(tile: np.ndarray) -> np.ndarray:
    return tile[4:, :-6]


def brightened(tile: np.ndarray) -> np.ndarray:
    return np.clip(tile * 1.25, 0, 255).astype(np.uint8)


def mirrored(tile: np.ndarray) -> np.ndarray:
    return tile[2:-2, ::-1][:, 3:]


CHANGES: tuple[Callable[[np.ndarray], np.ndarray | bytes], ...] = (resized, recompressed, cropped, brightened, mirrored)


def test_copies_across_parts_are_found(tiles: list[np.ndarray]) -> None:
    half = len(tiles) // 2
    clean = find_duplicates({"train": Pictures(tiles[:half]), "test": Pictures(tiles[half:])})
    assert len(clean) <= 2
    # Four copies by each change.
    copies = [change(tiles[4 * number + other]) for number, change in enumerate(CHANGES) for other in range(4)]
    pairs = find_duplicates({"train": Pictures(tiles[:half]), "test": Pictures([*tiles[half:], *copies])})
    rest = len(tiles) - half
    planted = {(index, rest + index) for index in range(len(copies))}
    across = {(pair.index, pair.other_index): pair for pair in pairs if pair.part != pair.other_part}
    assert len(planted & across.keys()) >= 19
    assert len(across.keys() - planted) <= 2
    for index, pair in across.items():
        if index in planted:
            assert pair.mirrored == (CHANGES[index[0] // 4] is mirrored)
            assert not pair.exact
    # Across parts first, then within.
    within = [pair.part == pair.other_part for pair in pairs]
    assert within == sorted(within)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_all_images_by_one_change_are_found(
    tiles: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray | bytes]
) -> None:
    pairs = find_duplicates({"train": Pictures(tiles), "test": Pictures([change(tile) for tile in tiles])})
    across = {(pair.index, pair.other_index) for pair in pairs if pair.part != pair.other_part}
    planted = {(index, index) for index in range(len(tiles))}
    assert planted <= across
    assert len(pairs) - len(planted) <= 4


def test_the_same_pixels_in_other_files_are_exact_duplicates(tiles: list[np.ndarray]) -> None:
    file = io.BytesIO()
    Image.fromarray(tiles[1]).save(file, "PNG")
    blank = np.zeros((40, 40, 3), np.uint8)
    train, test = Pictures([*tiles[:20], tiles[5], blank]), Pictures([file.getvalue(), blank, blank + 1])
    counts: list[int] = []
    pairs = find_duplicates({"train": train, "test": test}, counts.append)
    exact = [(pair.part, pair.index, pair.other_part, pair.other_index) for pair in pairs if pair.exact]
    assert sorted(exact) == [("train", 1, "test", 0), ("train", 5, "train", 20), ("train", 21, "test", 1)]
    # Images of one colour resemble nothing.
    assert [pair for pair in pairs if not pair.exact] == []
    assert counts[-1] == 25


def test_digits_that_resemble_each_other_are_no_duplicates() -> None:
    test = digits().test
    assert test is not None
    assert find_duplicates({"test": test}) == []


def test_digits_in_other_sizes_are_found_in_the_other_part() -> None:
    images = digits().train.images  # type: ignore[attr-defined]
    larger = [np.kron(image // 2, np.ones((2, 2), np.uint8)) for image in images[:10]]
    labels = np.zeros(300, np.int64)
    pairs = find_duplicates({"train": ArraySource(images[:300], labels), "test": Pictures(larger)})
    across = [(pair.index, pair.other_index) for pair in pairs if pair.part != pair.other_part]
    assert len({(index, index) for index in range(10)} & set(across)) >= 8
    assert all(index == other for index, other in across)


def test_an_image_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="picture 1"):
        find_duplicates({"train": Pictures([np.zeros((9, 9, 3), np.uint8), b"no image"])})
    assert find_duplicates({"train": Pictures([])}) == []
