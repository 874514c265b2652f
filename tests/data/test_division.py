"""Held-out parts, folds and groups, against plain loops."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnets.data.datasets import load_dataset
from jaxnets.data.division import Division
from jaxnets.data.folder import FolderSource, load_folder
from jaxnets.data.records import load_records, write_records
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from tests.data.test_folder import classes, fill, picture


def names(source: Any) -> set[str]:
    assert isinstance(source, FolderSource)
    return {Path(name).as_posix() for name, _ in source.files}


def parts_of(dataset: Dataset) -> dict[str, set[str]]:
    return {part: names(source) for part, source in dataset.parts.items()}


def position(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256


def patients(root: Path, count: int = 30, photos: int = 4) -> Path:
    """Two classes; each patient has photos in both."""
    for label in ("ill", "well"):
        (root / label).mkdir(parents=True)
        for patient in range(count):
            for photo in range(photos):
                (root / label / f"p{patient:02}_{photo}.png").write_bytes(picture(photo))
    return root


def test_all_three_parts_come_from_the_hash_of_the_name(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b", count=100)
    dataset = load_folder(tmp_path, Division())
    everything = {f"{label}/{number:03}.png" for label in "ab" for number in range(100)}
    test = {name for name in everything if position(name) < 0.2}
    val = {name for name in everything if 0.2 <= position(name) < 0.2 + 0.1 * 0.8}
    assert parts_of(dataset) == {"train": everything - test - val, "val": val, "test": test}
    # The test part does not depend on the val part.
    assert dataset.test == load_folder(tmp_path, Division(val_share=0.4)).test
    assert parts_of(load_folder(tmp_path, Division(val_share=0, test_share=0))) == {"train": everything}
    assert parts_of(load_folder(tmp_path, Division(test_share=0))).keys() == {"train", "val"}


def test_val_comes_from_train_where_only_that_is_missing(tmp_path: Path) -> None:
    for part, count in (("train", 50), ("test", 3)):
        classes(tmp_path / part, "a", "b", count=count)
    dataset = load_folder(tmp_path, Division(0.2))
    assert len(dataset.judged("test")) == 6
    assert names(dataset.val) == {
        f"train/{label}/{number:03}.png"
        for label in "ab"
        for number in range(50)
        if position(f"{label}/{number:03}.png") < 0.2
    }


def test_folds_are_disjoint_and_leave_the_test_part_alone(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b", count=60)
    folds = [parts_of(load_folder(tmp_path, Division(fold=f"{number}/4"))) for number in range(1, 5)]
    test = folds[0]["test"]
    trained = folds[0]["train"] | folds[0]["val"]
    seen: set[str] = set()
    for fold in folds:
        assert fold["test"] == test
        assert fold["train"] | fold["val"] == trained
        assert not fold["train"] & fold["val"]
        assert not seen & fold["val"]
        seen |= fold["val"]
    assert seen == trained
    # An image stays in its fold when others come.
    classes(tmp_path, "a", "b", count=90)
    for number, fold in enumerate(folds, 1):
        assert fold["val"] < parts_of(load_folder(tmp_path, Division(fold=f"{number}/4")))["val"]
    classes(tmp_path / "parted" / "train", "a", "b")
    classes(tmp_path / "parted" / "val", "a", "b")
    with pytest.raises(InputError, match="parted has a val part"):
        load_folder(tmp_path / "parted", Division(fold="1/4"))


@pytest.mark.parametrize("group_by", ["p[0-9]+", "/(p[0-9]+)_"])
@pytest.mark.parametrize("fold", [None, "2/3"])
def test_a_group_lies_in_one_part(tmp_path: Path, group_by: str, fold: str | None) -> None:
    patients(tmp_path)
    dataset = load_folder(tmp_path, Division(0.1 if fold else 0.2, 0.2, fold, group_by))
    found = {part: {Path(name).name[:3] for name in images} for part, images in parts_of(dataset).items()}
    everyone = [f"p{number:02}" for number in range(30)]
    of = {name: position(name) for name in everyone}
    test = {name for name in everyone if of[name] < 0.2}
    rest = {name: (of[name] - 0.2) / 0.8 for name in everyone if name not in test}
    val = {name for name, place in rest.items() if (1 / 3 <= place < 2 / 3 if fold else place < 0.2)}
    assert found == {"train": set(everyone) - test - val, "val": val, "test": test}
    assert all(found.values())
    # Both classes of a patient, with all photos.
    for part, images in parts_of(dataset).items():
        assert len(images) == 8 * len(found[part])
    assert dataset.origins["test"] == "about 20% of the groups, at least one, held out"


def test_shares_that_hold_nothing_out_are_warned_of(tmp_path: Path) -> None:
    for part in ("train", "val"):
        classes(tmp_path / "own val" / part, "a", "b", count=40)
        classes(tmp_path / "own test" / part.replace("val", "test"), "a", "b", count=40)
    classes(tmp_path / "none", "a", "b", count=40)
    write_records(load_folder(tmp_path / "own val", Division()), tmp_path / "records", 8, lambda _: None)
    for name, division, words in (
        ("own val", Division(0.3), "--val-share 0.3 has no effect, as own val has val images of its own"),
        ("own val", Division(test_share=0.3), "--test-share 0.3 has no effect, as own val has val images of its own"),
        ("own val", Division(), None),
        ("own test", Division(0.3), None),
        ("own test", Division(0, 0.3), "--test-share 0.3 has no effect, as own test has test images of its own"),
        ("none", Division(0.3, 0.4), None),
        ("none", Division(0, 0.4), None),
        ("none", Division(0.4, 0), None),
        ("none", Division(test_share=0.4, fold="1/4"), None),
        ("records", Division(0.3), "--val-share 0.3 has no effect, as own val has val images of its own"),
    ):
        warnings = division.unused(load_dataset(str(tmp_path / name), division=division))
        assert warnings == ([f"warning: {words}; leave it out"] if words else []), (name, division)
    origins = load_folder(tmp_path / "none", Division(0.004)).origins
    assert origins["val"] == "about 0.4% of the rest of each class, at least one, held out"


def test_groups_that_cannot_be_are_refused(tmp_path: Path) -> None:
    patients(tmp_path / "all", 3, 1)
    for group_by, words in (
        ("(", "no regular expression"),
        ("q[0-9]", "finds no group in 'ill/p00_0.png'"),
        ("p", "gives one group, 'p'"),
        ("ill|well", "all images of class"),
    ):
        with pytest.raises(InputError, match=words):
            load_folder(tmp_path / "all", Division(val_share=0, group_by=group_by))
    for part in ("train", "test"):
        patients(tmp_path / "parts" / part, 3, 1)
    with pytest.raises(InputError, match="group 'p00' has images in train and in test; move them into one part"):
        load_folder(tmp_path / "parts", Division(group_by="p[0-9]+"))
    with pytest.raises(InputError, match="--group-by p is for image files, which digits is not"):
        load_dataset("digits", division=Division(group_by="p"))


def table(folder: Path, header: str, *rows: str) -> str:
    path = folder / "photos.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return str(path)


def test_a_csv_file_says_labels_and_parts(tmp_path: Path) -> None:
    fill(tmp_path / "images", 9)
    part = ["train", "training", "val", "validation", "test", "train", "train", "train", "train"]
    file = table(
        tmp_path,
        "patient,label,path,part",
        *(f"x,{'ba'[n % 2]},images/{n:03}.png,{part[n]}" for n in range(9)),
    )
    dataset = load_dataset(file)
    assert (dataset.name, dataset.class_names) == ("photos", ("a", "b"))
    assert {name: list(source.files) for name, source in dataset.parts.items()} == {  # type: ignore[attr-defined]
        "train": [(f"images/{n:03}.png", 1 - n % 2) for n in (0, 1, 5, 6, 7, 8)],
        "val": [("images/002.png", 1), ("images/003.png", 0)],
        "test": [("images/004.png", 1)],
    }
    assert dataset.train[1].image == (tmp_path / "images" / "001.png").read_bytes()
    assert dataset.origins == {"val": "by photos.csv", "test": "by photos.csv"}


def test_a_csv_file_without_parts_is_divided_as_a_folder(tmp_path: Path) -> None:
    patients(tmp_path)
    images = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    rows = [f"{name},{name.split('/')[0]},{name.split('/')[1][:3]}" for name in images]
    file = table(tmp_path, "path,label,patient", *rows)
    for division in (Division(), Division(fold="2/3"), Division(group_by="p[0-9]+")):
        assert parts_of(load_dataset(file, division=division)) == parts_of(load_folder(tmp_path, division))
    by_column = load_dataset(file, division=Division(group_by="patient"))
    assert parts_of(by_column) == parts_of(load_folder(tmp_path, Division(group_by="p[0-9]+")))


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("file,label", ["0.png,a"], "has the columns 'file', 'label'; expected path, label"),
        ("path,label,path", ["0.png,a,b"], "each once"),
        ("", [], "has the columns none"),
        ("path,label", [], "names no images"),
        ("path,label", ["000.png,a", "001.png"], "line 3 has 1 values; expected 2"),
        ("path,label", ["000.png,a", "001.png,"], "line 3 has no label"),
        ("path,label", ["000.png,a", "009.png,b"], "line 3: no file '009.png'"),
        ("path,label", ["000.png,a", "./000.png,b"], "line 3: '000.png' is in line 2 too"),
        ("path,label", ["000.png,a", "001.png,a"], "has only one label, 'a'"),
        (
            "path,label,part",
            ["000.png,a,train", "001.png,b,other"],
            "line 3: part 'other'; expected train, val or test",
        ),
        ("path,label,part", ["000.png,a,val", "001.png,b,test"], "has no rows of the part train"),
        ("path,label,part", ["000.png,a,train", "001.png,b,test"], "class 'b' has no training images"),
        ("path,label", ["000.png,a", "001.png,b", "002.png,b"], "class 'a' has only one image"),
    ],
)
def test_csv_files_that_are_not_complete_are_refused(tmp_path: Path, header: str, rows: list[str], words: str) -> None:
    fill(tmp_path, 3)
    with pytest.raises(InputError) as caught:
        load_dataset(table(tmp_path, header, *rows))
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    file = table(tmp_path, "path,label,patient", "000.png,a,1", "001.png,a,2", "002.png,b,3", "003.png,b,4")
    for group_by, reason, hint in (
        ("pateint", "finds no group in '000.png'", "did you mean patient?"),
        ("[", "no regular expression", "give a column, or"),
    ):
        with pytest.raises(InputError) as caught:
            load_dataset(file, division=Division(group_by=group_by))
        assert reason in str(caught.value)
        assert "no such column in path, label, patient; " + hint in str(caught.value)


def test_a_missing_csv_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv can't be read \(No such file"):
        load_dataset(os.fspath(tmp_path / "nowhere.csv"))


def records_of(folder: Path, division: Division) -> Dataset:
    source = ArraySource(np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8).repeat(20, 0), np.arange(60) % 3)
    test = ArraySource(source.images[:9], source.labels[:9])
    whole = Dataset("stripes", tuple("abc"), source, test)
    labels = np.asarray(source.labels)
    dataset = division.divide(whole, labels, np.linspace(0, 1, 60), subset=ArraySource.subset)
    write_records(dataset, folder, 8, lambda count: None)
    return dataset


def test_prepared_records_keep_their_parts(tmp_path: Path) -> None:
    dataset = records_of(tmp_path / "records", Division())
    records = load_dataset(str(tmp_path / "records"))
    assert {part: len(source) for part, source in records.parts.items()} == {"train": 54, "val": 6, "test": 9}
    for part, source in dataset.parts.items():
        for index in range(len(source)):
            image, label = source[index]
            written = records.parts[part][index]
            assert label == written.label
            np.testing.assert_array_equal(np.asarray(written.image)[..., 0], image)
    with pytest.raises(InputError, match="stripes has a val part"):
        load_records(tmp_path / "records", Division(fold="1/5"))


def test_records_without_a_val_part_can_be_divided(tmp_path: Path) -> None:
    """As those of earlier versions."""
    records_of(tmp_path / "records", Division(val_share=0))
    assert list(load_records(tmp_path / "records").parts) == ["train", "test"]
    records = load_dataset(str(tmp_path / "records"))
    assert {part: len(source) for part, source in records.parts.items()} == {"train": 54, "val": 6, "test": 9}
    assert np.bincount([records.judged("val")[index].label for index in range(6)]).tolist() == [2, 2, 2]
