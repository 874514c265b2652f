"""JPEGs with a blemish are used, counted and listed; with --on-bad-image strict they stop the run."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxnets.data.folder import FolderSource
from jaxnets.data.sources import Dataset
from jaxnets.data.verification import BadImage, verify, write_bad_images
from jaxnets.errors import InputError

COUNT, BLEMISHED = 40, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 JPEGs of two classes. In seven, 20 stray bytes precede the end marker."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).save(file, "JPEG")
        data = file.getvalue()
        if number < BLEMISHED:
            data = data[:-2] + bytes(20) + data[-2:]
        (folder / f"{number:02}.jpg").write_bytes(data)
    return folder


def dataset_of(folder: Path, extra: tuple[str, ...] = ()) -> Dataset:
    names = [*(path.name for path in sorted(folder.glob("*.jpg"))), *extra]
    source = FolderSource(folder, [(name, number % 2) for number, name in enumerate(names)])
    return Dataset("photos", ("even", "odd"), source, FolderSource(folder, [(names[-1 - len(extra)], 1)]))


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_blemished_jpegs_are_used_and_listed(folder: Path, tmp_path: Path, on_bad_image: str) -> None:
    said: list[str] = []
    dataset, bad = verify(dataset_of(folder), on_bad_image, lambda count: None, said.append)
    assert (len(dataset.train), len(dataset.test)) == (COUNT, 1)
    assert [Path(image.where).name for image in bad] == [f"{number:02}.jpg" for number in range(BLEMISHED)]
    assert all(image.used and "extraneous bytes" in image.reason for image in bad)
    assert len(said) == 1
    assert said[0].startswith(f"{BLEMISHED} of {COUNT + 1} images are damaged, but can be read whole and are used; the")
    write_bad_images(tmp_path, [*bad, BadImage("other.jpg", "empty file")])
    with (tmp_path / "bad-images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "reason", "used"]
    assert [row[2] for row in rows[1:]] == ["yes"] * BLEMISHED + ["no"]


def test_strict_stops_at_a_blemish(folder: Path) -> None:
    with pytest.raises(InputError, match=f"{BLEMISHED} of {COUNT + 1} images can't be used, the first is .*00.jpg"):
        verify(dataset_of(folder), "strict", lambda count: None, lambda line: None)


def test_unusable_images_are_told_from_blemished_ones(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.jpg"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "cut.jpeg").write_bytes((folder / "20.jpg").read_bytes()[:-2])
    dataset = dataset_of(tmp_path, ("cut.jpeg",))
    with pytest.raises(InputError, match=r"1 of 42 images can't be used, the first is .*cut\.jpeg \(damaged JPEG"):
        verify(dataset, "error", lambda count: None, lambda line: None)
    many = Dataset("many", dataset.class_names, Repeated(dataset.train, 3), dataset.test)
    checked, bad = verify(many, "skip", lambda count: None, lambda line: None)
    assert len(checked.train) == len(many.train) - 1
    assert [image.used for image in bad].count(False) == 1


class Repeated(FolderSource):
    """All files but the last several times, and the last once."""

    def __init__(self, source: FolderSource, times: int) -> None:
        super().__init__(source.root, [*(list(source.files[:-1]) * times), source.files[-1]])
