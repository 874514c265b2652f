"""Image folders: the order is the same on every machine, and every fault is reported before training."""

import errno
import hashlib
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxnets.data.image_files as image_files
from jaxnets.data.division import Division
from jaxnets.data.folder import FolderSource, class_order, load_folder
from jaxnets.data.part_names import part_of
from jaxnets.data.sources import ArraySource, Dataset, Record, Source
from jaxnets.data.verification import BadImage, usable, verify
from jaxnets.errors import InputError
from tests.tiers import slow_except

SHARE = 0.25
DIVISION = Division(val_share=0, test_share=SHARE)
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((3, 4, 3), value % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int, first: int = 0) -> Path:
    """Writes 000.png, 001.png, ...; each image shows its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:03}.png").write_bytes(picture(number))
    return folder


def classes(root: Path, *names: str, count: int = 4) -> Path:
    for name in names:
        fill(root / name, count)
    return root


def files(source: Source) -> list[tuple[str, int]]:
    assert isinstance(source, FolderSource)
    return list(source.files)


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def quietly(dataset: Dataset, on_bad_image: str) -> tuple[Dataset, list[BadImage]]:
    return verify(dataset, on_bad_image, lambda count: None, lambda line: None)


# ---- layouts ----


@pytest.mark.parametrize("test", ["val", "valid", "validation", "test", "Val", "TEST"])
@pytest.mark.parametrize("train", ["train", "Train"])
def test_train_and_test_folders(tmp_path: Path, train: str, test: str) -> None:
    classes(tmp_path / train, "cat", "dog", count=3)
    classes(tmp_path / test, "cat", "dog", count=2)
    dataset = load_folder(tmp_path, DIVISION)
    assert (dataset.name, dataset.class_names) == (tmp_path.name, ("cat", "dog"))
    assert files(dataset.train) == [
        (f"{train}/{name}/00{i}.png", k) for k, name in enumerate(("cat", "dog")) for i in range(3)
    ]
    part = "test" if test == "TEST" or test == "test" else "val"
    assert list(dataset.parts) == ["train", part]
    judged = dataset.judged()
    assert files(judged) == [(f"{test}/{name}/00{i}.png", k) for k, name in enumerate(("cat", "dog")) for i in range(2)]
    image, label = judged[3]
    assert (image, label) == (picture(1), 1)
    assert judged.where(3) == str(tmp_path / test / "dog" / "001.png")


def test_all_three_parts_are_used_and_other_folders_are_ignored(tmp_path: Path) -> None:
    for count, part in enumerate(("test", "val", "train"), 2):
        classes(tmp_path / part, "a", "b", count=count)
    (tmp_path / "notes").mkdir()
    dataset = load_folder(tmp_path, Division())
    assert {part: len(source) for part, source in dataset.parts.items()} == {"train": 8, "val": 6, "test": 4}
    for part, source in dataset.parts.items():
        assert all(name.startswith(f"{part}/") for name, _ in files(source))
    assert dataset.origins == {"val": "from val/", "test": "from test/"}


@pytest.mark.parametrize("part", ["train", ""])
def test_a_share_of_each_class_is_held_out(tmp_path: Path, part: str) -> None:
    sizes = {"a": 2, "b": 8, "c": 40, "d": 101}
    for name, size in sizes.items():
        fill(tmp_path / part / name, size)
    dataset = load_folder(tmp_path, DIVISION)
    train, test = files(dataset.train), files(dataset.test)
    assert sorted(train + test) == sorted(
        (os.path.join(part, name, f"{i:03}.png"), k)
        for k, (name, size) in enumerate(sizes.items())
        for i in range(size)
    )
    counts = [sum(label == k for _, label in test) for k in range(4)]
    assert counts[0] == 1
    # Within three standard deviations of a binomial distribution.
    for count, size in zip(counts, sizes.values(), strict=True):
        assert max(1, SHARE * size - 3 * (SHARE * (1 - SHARE) * size) ** 0.5) <= count
        assert count <= max(1, SHARE * size + 3 * (SHARE * (1 - SHARE) * size) ** 0.5)
    # Not the first images of a class: files are often sorted by time and subject.
    held_out = [int(Path(name).stem) for name, label in test if label == 3]
    assert 25 < np.mean(held_out) < 75
    assert load_folder(tmp_path, DIVISION).test == dataset.test
    # Each class has an image in both splits for any share.
    for share in (0.001, 0.999):
        extreme = load_folder(tmp_path, Division(0, share))
        assert (
            {label for _, label in files(extreme.train)} == {label for _, label in files(extreme.test)} == set(range(4))
        )


def test_the_split_does_not_depend_on_the_folders_path(tmp_path: Path) -> None:
    one, other = classes(tmp_path / "one", "a", "b", count=30), classes(tmp_path / "o" / "ther", "a", "b", count=30)
    assert files(load_folder(one, DIVISION).test) == files(load_folder(other, DIVISION).test)
    # The SHA-256 of a file's own path within the folder decides, on every machine.
    digests = {f"a/{i:03}.png": hashlib.sha256(f"a/{i:03}.png".encode()).hexdigest() for i in range(30)}
    held_out = {name for name, digest in digests.items() if digest < "4"}  # a quarter of the first digits
    assert {name for name, label in files(load_folder(one, DIVISION).test) if label == 0} == held_out


def test_images_stay_in_their_split_when_others_come_and_go(tmp_path: Path) -> None:
    """A network must not be tested on images that it was trained on before others were added or deleted."""
    classes(tmp_path, "a", "b", count=60)
    before = load_folder(tmp_path, DIVISION)
    trained, tested = set(files(before.train)), set(files(before.test))
    random.seed(0)
    for number in range(12):
        if number % 2:
            fill(tmp_path / "a", 9, 100 + 9 * number)
        else:
            for path in random.sample(sorted((tmp_path / "b").iterdir()), 3):
                path.unlink()
        now = load_folder(tmp_path, DIVISION)
        assert not trained & set(files(now.test))
        assert not tested & set(files(now.train))
        assert {label for _, label in files(now.test)} == {0, 1}


def test_a_new_class_does_not_move_images(tmp_path: Path) -> None:
    before = load_folder(classes(tmp_path, "a", "b", count=20), DIVISION)
    classes(tmp_path, "0 first", "c", count=20)
    after = load_folder(tmp_path, DIVISION)
    assert {name for name, _ in files(before.test)} < {name for name, _ in files(after.test)}
    assert {name for name, _ in files(before.train)} < {name for name, _ in files(after.train)}


@pytest.fixture(params=range(3))
def shuffled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists folders in a random order."""
    order, scandir, listdir = random.Random(request.param), os.scandir, os.listdir

    class Entries(list[Any]):
        def __enter__(self) -> Iterator[Any]:
            return iter(self)

        def __exit__(self, *error: object) -> None:
            pass

        def __next__(self) -> Any:
            if not self:
                raise StopIteration
            return self.pop()

        def close(self) -> None:
            pass

    def shuffle(entries: Any) -> Any:
        entries = Entries(entries)
        order.shuffle(entries)
        return entries

    monkeypatch.setattr(os, "scandir", lambda path=".": shuffle(scandir(path)))
    monkeypatch.setattr(os, "listdir", lambda path=".": shuffle(listdir(path)))


def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, shuffled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "C", "2", "10"):
        fill(tmp_path / name, 12)
        fill(tmp_path / name / "deep" / "er", 5, 50)
    # One name in two Unicode forms, and two paths to one folder.
    for form in ("NFC", "NFD"):
        (tmp_path / "a" / (unicodedata.normalize(form, "é") + ".png")).write_bytes(picture(0))
    (tmp_path / "b" / "alias").symlink_to("deep", target_is_directory=True)
    actual = load_folder(tmp_path, DIVISION)
    monkeypatch.undo()
    expected = load_folder(tmp_path, DIVISION)
    assert actual == expected
    assert actual.class_names == ("2", "10", "C", "a", "b")
    # Each file occurs once.
    paths = [os.path.realpath(tmp_path / name) for name, _ in files(actual.train) + files(actual.test)]
    assert len(paths) == len(set(paths)) == 5 * 17 + 2


# ---- names ----

ORDERS = [
    ["n01440764", "n01443537", "n01484850", "n15075141"],
    ["1", "2", "3", "10", "11", "20", "100"],
    ["class1", "class2", "class10", "class10b", "class11"],
    ["0", "00", "000", "001", "01", "1"],
    ["Ant", "Bee", "Zebra", "ant", "bee", "zebra"],
    ["1cat", "2cat", "10cat", "Cat1", "cat", "cat1", "cat1a2", "cat1a10", "cat2"],
    ["Apfel", "Zebra", "apfel", "Ähre", "Öl", "ß", "äther", "éclair", "Жук", "ねこ", "猫", "🐈"],
    # Digits of other scripts sort as letters.
    ["2", "10", "x²", "x³", "٢", "१०"],
    ["a b", "a,b", "a-b", "a.b", "a_b", "ab"],
]


@pytest.mark.parametrize("order", ORDERS)
def test_class_order(order: list[str]) -> None:
    for seed in range(5):
        names = list(order)
        random.Random(seed).shuffle(names)
        assert class_order(names) == order


@pytest.mark.parametrize("order", [order for order in ORDERS if "猫" in order or "ant" in order])
def test_class_names_are_folder_names(tmp_path: Path, order: list[str]) -> None:
    for name in order:
        fill(tmp_path / name, 2)
    if len(list(tmp_path.iterdir())) < len(order):
        pytest.skip("the file system ignores case")
    dataset = load_folder(tmp_path, DIVISION)
    assert dataset.class_names == tuple(order)
    assert [name.split("/")[0] for name, _ in files(dataset.train)] == order


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path) -> None:
    """Copies between macOS and Linux may change the Unicode form of names."""
    names = ("café", "naïve", "über", "가", "zebra", "eclair", "éclair")
    datasets = []
    for form in ("NFC", "NFD"):
        for name in names:
            folder = tmp_path / form / "train" / unicodedata.normalize(form, name)
            fill(folder, 9)
            (folder / unicodedata.normalize(form, "Ångström é.png")).write_bytes(picture(3))
        datasets.append(load_folder(tmp_path / form, DIVISION))
    composed, decomposed = datasets
    assert (
        composed.class_names == decomposed.class_names == ("café", "eclair", "naïve", "zebra", "éclair", "über", "가")
    )

    def read(source: Source) -> list[tuple[str, int]]:
        return [(unicodedata.normalize("NFC", name), label) for name, label in files(source)]

    assert read(composed.train) == read(decomposed.train)
    assert read(composed.test) == read(decomposed.test)
    # The test folder may use another form than the training folder.
    for name in names:
        fill(tmp_path / "NFC" / "val" / unicodedata.normalize("NFD", name), 1)
    assert load_folder(tmp_path / "NFC", DIVISION).class_names == composed.class_names
    assert len(quietly(load_folder(tmp_path / "NFC", DIVISION), "error")[0].judged("val")) == len(names)


def test_two_forms_of_one_class_name_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        fill(tmp_path / unicodedata.normalize(form, "é"), 2)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("the file system normalises names")
    assert "two folders named 'é' in different Unicode forms" in refusal(lambda: load_folder(tmp_path, DIVISION))


@pytest.mark.slow
def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    for name in ("ä", "z", "Ö", unicodedata.normalize("NFD", "é"), "猫"):
        fill(tmp_path / name, 9)
        fill(tmp_path / name / unicodedata.normalize("NFD", "ü"), 9)
    code = (
        "import sys; from pathlib import Path\n"
        "from jaxnets.data.division import Division; from jaxnets.data.folder import load_folder\n"
        "data = load_folder(Path(sys.argv[1]), Division(0, 0.25))\n"
        "print([data.train.where(i) for i in range(len(data.train))] + list(map(ascii, data.class_names)))"
    )
    outputs = set()
    for settings in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        environment = {**os.environ, **settings, **path, "PYTHONIOENCODING": "utf-8"}
        run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, env=environment, timeout=60)
        assert run.returncode == 0, run.stderr
        outputs.add(run.stdout)
    assert len(outputs) == 1


def write(path: bytes, data: bytes) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
    except OSError:
        pytest.skip("the file system only has Unicode names")
    os.write(file, data)
    os.close(file)


def test_a_file_name_that_is_not_utf8_can_be_read_and_printed(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    write(os.fsencode(tmp_path) + b"/a/caf\xe9.png", picture(9))
    write(os.fsencode(tmp_path) + b"/b/bad\xff.png", b"")
    dataset = load_folder(tmp_path, DIVISION)
    images = [source[i].image for source in (dataset.train, dataset.test) for i in range(len(source))]
    assert picture(9) in images
    _, bad, _ = usable(dataset.train, 2, lambda count: None)
    _, more, _ = usable(dataset.test, 2, lambda count: None)
    assert bad + more == [BadImage(f"{tmp_path}/b/bad\\xff.png", "empty file")]
    refusal(lambda: quietly(dataset, "error")).encode()


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("the file system only has Unicode names")
    assert "is not UTF-8; rename it" in refusal(lambda: load_folder(tmp_path, DIVISION))


def test_a_line_break_in_a_name_is_escaped(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b\nc")
    (tmp_path / "a" / "x\ny\x1b[31m\u2028.png").write_bytes(b"")
    dataset = load_folder(tmp_path, DIVISION)
    assert dataset.class_names == ("a", "b\nc")
    assert "x\\ny\\x1b[31m\\u2028.png (empty file)" in refusal(lambda: quietly(dataset, "error"))
    for path in (tmp_path / "b\nc").iterdir():
        path.unlink()
    assert "class 'b\\nc' is empty" in refusal(lambda: load_folder(tmp_path, DIVISION)).replace(str(tmp_path), "")


# ---- which files are images ----


def test_only_files_with_an_image_suffix_count(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    for name in ("notes.txt", "list.csv", "archive.zip", "jpg", "Thumbs.db", "a.png.part", ".hidden.png", "._000.png"):
        (tmp_path / "a" / name).write_bytes(b"?")
    fill(tmp_path / "a" / ".cache", 2)
    fill(tmp_path / ".git", 2)
    for name in ("upper.PNG", "photo.JPG", "old.JpEg", "page.tif", "web.webp", "anim.gif"):
        (tmp_path / "b" / name).write_bytes(picture(7))
    dataset = load_folder(tmp_path, DIVISION)
    all_files = sorted(files(dataset.train) + files(dataset.test))
    assert [Path(name).name for name, label in all_files if label == 0] == [f"00{i}.png" for i in range(4)]
    assert len(all_files) == 4 + 10
    # The content determines the format.
    assert quietly(dataset, "error") == (dataset, [])


def test_images_may_be_in_subfolders(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "2021" / "may", 3)
    fill(tmp_path / "a" / "2022", 3, 3)
    fill(tmp_path / "b", 2)
    dataset = load_folder(tmp_path, DIVISION)
    all_files = files(dataset.train) + files(dataset.test)
    assert sorted(name for name, label in all_files if label == 0) == [
        *(f"a/2021/may/00{i}.png" for i in range(3)),
        *(f"a/2022/00{i}.png" for i in range(3, 6)),
    ]


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere" / "cats", 5)
    root = classes(tmp_path / "root", "dog")
    (root / "cat").symlink_to(elsewhere, target_is_directory=True)
    (root / "dog" / "link.png").symlink_to(elsewhere / "004.png")
    dataset = load_folder(root, DIVISION)
    assert dataset.class_names == ("cat", "dog")
    all_files = files(dataset.train) + files(dataset.test)
    assert [sum(label == k for _, label in all_files) for k in (0, 1)] == [5, 5]
    assert quietly(dataset, "error")[1] == []


@pytest.mark.parametrize("target", [".", "..", "../..", "deep", "../../root"])
def test_a_link_back_up_ends_there(tmp_path: Path, target: str) -> None:
    root = classes(tmp_path / "root", "a", "b")
    expected = load_folder(root, DIVISION)
    fill(root / "a" / "deep", 0)
    for place in (root / "a" / "deep", root / "a"):
        if (place / target).exists():
            (place / "back").symlink_to(target, target_is_directory=True)
    # No image of another class, and none twice.
    assert load_folder(root, DIVISION) == expected


@pytest.mark.parametrize("place", ["val", "train/gone", "val/gone", "train/a/gone"])
@pytest.mark.parametrize("target", ["nowhere", "gone"])
def test_broken_links_are_refused(tmp_path: Path, place: str, target: str) -> None:
    # The link may point to a drive that is not mounted: its images must not be ignored silently.
    classes(tmp_path / "train", "a", "b")
    if place != "val":
        classes(tmp_path / "val", "a", "b")
    (tmp_path / place).symlink_to(target if place != "val" else "nowhere")
    refuse(tmp_path, f"{tmp_path / place} is a broken link; fix or remove it")


def test_images_in_unexpected_places_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        classes(tmp_path / part, "a", "b")
    (tmp_path / "notes").mkdir()
    load_folder(tmp_path, DIVISION)
    fill(tmp_path / "train", 1)
    refuse(tmp_path, f"{tmp_path}/train/000.png is not in a class folder")
    (tmp_path / "train" / "000.png").unlink()
    fill(tmp_path / "extra" / "a", 1)
    assert load_folder(tmp_path, DIVISION).warnings == ("warning: ignored beside train/: extra/",)
    # Without a test folder, the other images may be those to test on.
    for path in sorted((tmp_path / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "val").rmdir()
    refuse(tmp_path, f"{tmp_path}/extra has images but is not a split", "--train-folder train")


def test_the_current_folder_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "train", "a", "b")
    classes(tmp_path / "val", "a", "b")
    monkeypatch.chdir(tmp_path)
    dataset = load_folder(Path("."), DIVISION)
    assert files(dataset.train) == files(load_folder(tmp_path, DIVISION).train)
    assert quietly(dataset, "error") == (dataset, [])


def test_a_link_to_the_root_is_an_empty_class(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    # Following the link would add all images again, with another label.
    (tmp_path / "whole").symlink_to(".", target_is_directory=True)
    assert "class 'whole' is empty" in refusal(lambda: load_folder(tmp_path, DIVISION))


# ---- unreadable files ----


def unreadable(folder: Path) -> dict[str, str]:
    """Writes one unreadable file of each kind. Returns their names with a part of the reason."""
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    fill(folder / "folder.jpg", 1)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "short.png").write_bytes(picture(1)[:45])
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(1 << 42)
    (folder / ("long" * 50 + ".jpg")).write_bytes(b"\xff\xd8\xff")
    reasons = {
        "gone.jpg": "No such file",
        "self.jpg": "symbolic links",
        "folder.jpg": "a folder, not a file",
        "pipe.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        "empty.jpg": "empty file",
        "text.jpg": "unknown format",
        "short.png": "truncated",
        "huge.jpg": "4398.0 GB, expected at most 1.1 GB",
        "long" * 50 + ".jpg": "unreadable image",
    }
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        try:
            os.chdir(folder)  # the path of a socket must be short
            end.bind("socket.jpg")
            reasons["socket.jpg"] = "can't be read"
        finally:
            os.chdir(here)
    return reasons


def test_every_unreadable_file_is_reported_with_the_reason(tmp_path: Path) -> None:
    classes(tmp_path / "train", "a", "b", count=3)
    classes(tmp_path / "val", "a", "b", count=2)
    reasons = unreadable(tmp_path / "train" / "b")
    dataset = load_folder(tmp_path, DIVISION)
    assert len(dataset.train) == 6 + len(reasons)
    train, bad, labels = usable(dataset.train, 2, lambda count: None)
    assert {Path(image.where).name for image in bad} == set(reasons)
    for image in bad:
        assert image.where == str(tmp_path / "train" / "b" / Path(image.where).name)
        assert reasons[Path(image.where).name] in image.reason
        assert str(tmp_path) not in image.reason
        assert image.reason.isprintable()
    assert [train[i].image for i in range(len(train))] == [picture(i) for i in range(3)] * 2
    assert [train[i].label for i in range(len(train))] == labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_failed_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_folder(classes(tmp_path, "a", "b"), DIVISION)
    forbidden, failing, vanished = (dataset.train.where(i) for i in (0, 1, 2))
    os.unlink(vanished)
    open_file, read_file, opened = os.open, os.read, {}

    def open_or_fail(path: str, *arguments: Any) -> int:
        if str(path) == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        opened[file := open_file(path, *arguments)] = str(path)
        return file

    def read_or_fail(file: int, count: int) -> bytes:
        if opened.get(file) == failing:
            raise OSError(errno.EIO, "Input/output error")
        # A read may return fewer bytes than requested.
        return read_file(file, min(count, 10))

    monkeypatch.setattr(image_files.os, "open", open_or_fail)
    monkeypatch.setattr(image_files.os, "read", read_or_fail)
    said: list[str] = []
    _, bad, _ = usable(dataset.train, 2, lambda count: None)
    assert [(image.where, image.reason) for image in bad] == [
        (forbidden, "can't be read (Permission denied)"),
        (failing, "can't be read (Input/output error)"),
        (vanished, "can't be read (No such file or directory)"),
    ]
    with pytest.raises(InputError, match=r"3 of 8 images can't be used, the first is .*\(can't be read \(Permission"):
        verify(dataset, "error", lambda count: None, said.append)
    assert said == [f"bad image: {image.where}: {image.reason}" for image in bad]
    with pytest.raises(InputError) as caught:
        dataset.train[0]
    assert str(caught.value) == f"{forbidden}: can't be read (Permission denied)"


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_folder(classes(tmp_path, "a", "b"), DIVISION)
    path = dataset.train.where(0)
    fstat = os.fstat

    def larger(file: int) -> os.stat_result:
        status = list(fstat(file))
        status[6] += 1000
        return os.stat_result(status)

    monkeypatch.setattr(image_files.os, "fstat", larger)
    assert dataset.train[0].image == Path(path).read_bytes()


@pytest.mark.skipif(AS_ROOT, reason="root can read everything")
def test_files_without_permission_are_reported(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    (tmp_path / "a" / "000.png").chmod(0)
    assert "000.png (can't be read (Permission denied))" in refusal(
        lambda: quietly(load_folder(tmp_path, DIVISION), "error")
    )
    fill(tmp_path / "b" / "deep", 2).chmod(0)
    try:
        assert "deep can't be read (Permission denied)" in refusal(lambda: load_folder(tmp_path, DIVISION))
    finally:
        (tmp_path / "b" / "deep").chmod(0o700)


@pytest.mark.parametrize("place", ["", "b", "b/deep"])
def test_a_folder_that_cannot_be_listed_does_not_count_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    classes(tmp_path, "a", "b")
    fill(tmp_path / "b" / "deep", 2)
    scandir, listdir = os.scandir, os.listdir

    def guarded(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(path: Any = ".") -> Any:
            if Path(path) == tmp_path / place:
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return real(path)

        return call

    monkeypatch.setattr(os, "scandir", guarded(scandir))
    monkeypatch.setattr(os, "listdir", guarded(listdir))
    assert f"{tmp_path / place} can't be read (Permission denied)" in refusal(lambda: load_folder(tmp_path, DIVISION))


# ---- label faults ----


def refuse(root: Path, *words: str) -> None:
    message = refusal(lambda: load_folder(root, DIVISION))
    for word in words:
        assert word in message, message


def test_different_training_and_test_classes_are_refused(tmp_path: Path) -> None:
    for missing in ("train", "val"):
        root = tmp_path / f"without {missing}"
        classes(root / "train", "a", "b", "c")
        classes(root / "val", "a", "b", "c")
        fill(root / ("val" if missing == "train" else "train") / "x", 1)
        other = "val" if missing == "train" else "train"
        refuse(root, "class 'x'", f"is in {root / other} but not in {root / missing}", "4", "3")
    # As many classes, but one name differs in case.
    classes(tmp_path / "cased" / "train", "a", "b")
    classes(tmp_path / "cased" / "val", "A", "b")
    refuse(tmp_path / "cased", "class 'A' is in")


@pytest.mark.parametrize("part", ["train", "val", ""])
def test_an_empty_class_is_refused(tmp_path: Path, part: str) -> None:
    for place in ("train", "val") if part else ("",):
        classes(tmp_path / place, "a", "b")
    for path in (tmp_path / part / "b").iterdir():
        path.unlink()
    refuse(tmp_path, "class 'b' is empty", f"no image files in {tmp_path / part / 'b'}")
    (tmp_path / part / "b" / "notes.txt").write_text("no image")
    (tmp_path / part / "b" / ".hidden.png").write_bytes(picture(0))
    refuse(tmp_path, "class 'b' is empty")


@pytest.mark.parametrize("part", ["train", "val", ""])
def test_one_class_is_refused(tmp_path: Path, part: str) -> None:
    for place in ("train", "val") if part else ("",):
        classes(tmp_path / place, "a", *(() if place == part else ("b",)))
    refuse(tmp_path, "only one class, 'a'")


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "can't be read (No such file", "give a folder of images")
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "can't be read (Not a directory")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no class folders; expected")
    refuse(fill(tmp_path / "flat", 5), "has no class folders; expected")
    fill(tmp_path / "flat train" / "train", 5)
    refuse(tmp_path / "flat train", "only one class, 'train'")
    classes(tmp_path / "test only" / "test", "a", "b")
    refuse(tmp_path / "test only", "has test/ but no train/")
    fill(classes(tmp_path / "single", "a") / "b", 1)
    refuse(tmp_path / "single", "class 'b' has only one image")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = tmp_path / "vehicles"
    for name in ("bus", "train"):
        fill(root / name, 5)
    dataset = load_folder(root, Division(0, 0.2))
    assert dataset.class_names == ("bus", "train")
    assert "taken for classes: train" in dataset.warnings[0]
    # With val too, the labels are probably not in the folders; a flag says otherwise.
    fill(root / "val", 5)
    refuse(
        root, f"the images in {root}/train are not in class folders", "--train-folder . takes the folders themselves"
    )
    dataset = load_folder(root, Division(0, 0.2), train_folder=".")
    assert dataset.class_names == ("bus", "train", "val")
    assert len(dataset.train) + len(dataset.test) == 15


# ---- parts that are given ----


def test_the_parts_may_be_given(tmp_path: Path) -> None:
    for part, count in (("color", 5), ("grayscale", 3), ("segmented", 2)):
        classes(tmp_path / part, "a", "b", count=count)
    refuse(
        tmp_path, "color, grayscale, segmented have the same class folders (a, b)", "--train-folder", "--test-folder"
    )
    dataset = load_folder(tmp_path, DIVISION, train_folder="color", test_folder="segmented/")
    assert files(dataset.train) == [(f"color/{name}/00{i}.png", k) for k, name in enumerate("ab") for i in range(5)]
    assert files(dataset.test) == [(f"segmented/{name}/00{i}.png", k) for k, name in enumerate("ab") for i in range(2)]
    assert dataset.origins == {"test": "from segmented/"}
    alone = load_folder(tmp_path, DIVISION, train_folder="color")
    assert sorted(files(alone.train) + files(alone.test)) == files(dataset.train)
    assert alone.origins == {"test": "about 25% of each class, at least one, held out"}
    # The folders themselves can be the classes.
    assert load_folder(tmp_path, DIVISION, train_folder=".").class_names == ("color", "grayscale", "segmented")
    for folders, words in (
        ({"train_folder": "colour"}, "--train-folder colour: no such folder in"),
        ({"test_folder": "gray"}, "--test-folder gray: no such folder in"),
        ({"train_folder": "color", "test_folder": "color"}, "are test images too; give two folders"),
        ({"train_folder": "color/a", "test_folder": "color"}, "are test images too; give two folders"),
    ):
        assert words in refusal(lambda folders=folders: load_folder(tmp_path, DIVISION, **folders))  # type: ignore[misc]


def test_a_test_folder_may_lie_beside_the_classes(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b", count=5)
    classes(tmp_path / "test" / "test", "a", "b", count=2)
    refuse(tmp_path, "has test/ but no train/", "--train-folder")
    for train in (".", None):
        dataset = load_folder(tmp_path, DIVISION, train_folder=train, test_folder="test")
        assert (dataset.class_names, len(dataset.train), len(dataset.test)) == (("a", "b"), 10, 4)
        assert all(name.startswith("test/test/") for name, _ in files(dataset.test))


def test_parts_may_be_named_or_found(tmp_path: Path) -> None:
    for count, part in enumerate(("train", "val", "test", "more"), 2):
        classes(tmp_path / part, "a", "b", count=count)
    all_parts = {"train": 4, "val": 6, "test": 8}
    for options, expected in (
        ({}, all_parts),
        ({"test_folder": "more"}, all_parts | {"test": 10}),
        ({"val_folder": "more"}, all_parts | {"val": 10}),
        ({"train_folder": "more", "val_folder": "val"}, {"train": 10, "val": 6}),
        ({"train_folder": "more", "val_folder": "val", "test_folder": "test"}, all_parts | {"train": 10}),
    ):
        dataset = load_folder(tmp_path, DIVISION, **options)  # type: ignore[arg-type]
        assert {part: len(source) for part, source in dataset.parts.items()} == expected, options
    assert "has no val images, only train, test; choose another part" in refusal(
        lambda: load_folder(tmp_path, DIVISION, train_folder="train").judged("val")
    )
    with pytest.raises(InputError, match="are the same, for val and for test; give two folders"):
        load_folder(tmp_path, DIVISION, val_folder="test", test_folder="test")


def test_test_images_alone_are_enough_for_an_evaluation(tmp_path: Path) -> None:
    for count, part in enumerate(("val", "test"), 2):
        classes(tmp_path / part, "a", "b", count=count)
    refuse(tmp_path, "but no train/")
    dataset = load_folder(tmp_path, DIVISION, only_test=True)
    assert (len(dataset.judged("val")), len(dataset.judged("test")), dataset.train) == (4, 6, dataset.test)
    dataset = load_folder(tmp_path, DIVISION, only_test=True, val_folder="val")
    assert (dataset.val, dataset.test) == (dataset.train, None)
    assert len(load_folder(tmp_path / "test", DIVISION, only_test=True, test_folder=".").judged()) == 6


def test_the_path_may_lead_up_and_down(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b", count=5)
    classes(tmp_path / "holdout", "a", "b", count=2)
    dataset = load_folder(tmp_path / "a" / "..", DIVISION, test_folder="holdout")
    assert (dataset.class_names, len(dataset.test), dataset.warnings) == (("a", "b"), 4, ())
    assert "are test images too" in refusal(lambda: load_folder(tmp_path / "a" / "..", DIVISION, test_folder="."))


def test_the_other_parts_are_not_used_in_silence(tmp_path: Path) -> None:
    for part in ("Training", "Testing"):
        classes(tmp_path / part, "a", "b", count=5)
    (warning,) = load_folder(tmp_path, DIVISION, train_folder="Training").warnings
    assert warning == "warning: Testing/ is not used; to use it, give --test-folder Testing"


def test_a_picture_beside_the_classes(tmp_path: Path) -> None:
    classes(tmp_path / "set", "cats", "dogs")
    fill(tmp_path / "set", 1)
    refuse(tmp_path, "only one class, 'set'", f"move its loose images away or give {tmp_path / 'set'}")


@pytest.mark.parametrize("inner", ["", "train", "images"])
def test_an_empty_class_is_not_a_wrapper(tmp_path: Path, inner: str) -> None:
    """One class has all the images, in folders by year; the other one is still empty."""
    for year in ("2021", "2022"):
        fill(tmp_path / inner / "cat" / year, 3)
    (tmp_path / inner / "dog").mkdir()
    refuse(tmp_path, "class 'dog' is empty")


def test_classes_with_the_same_subfolders(tmp_path: Path) -> None:
    """By year, they look like parts of a data set; by patient, they do not."""
    for name in ("cat", "dog"):
        for year in ("2021", "2022"):
            fill(tmp_path / "years" / name / year, 3)
            fill(tmp_path / "patients" / name / f"{name} {year}", 3)
    refuse(tmp_path / "years", "cat, dog have the same class folders (2021, 2022)")
    assert load_folder(tmp_path / "years", DIVISION, train_folder=".").class_names == ("cat", "dog")
    dataset = load_folder(tmp_path / "patients", DIVISION)
    assert dataset.class_names == ("cat", "dog")
    assert "cat/ is one class with the images of all its folders (cat 2021, cat 2022)" in dataset.warnings[0]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "trainSet", "training_set", "seg_train", "trn")),
        *(
            (name, "train")
            for name in ("asl_alphabet_train", "train_images", "Final_Training", "train2017", "traindata")
        ),
        *((name, "val") for name in ("val", "VAL", "valid", "Validation", "dev", "eval_set", "val2017", "seg-val")),
        *((name, "test") for name in ("test", "Testing", "test_set", "tst", "TestImages", "test1", "rps-test-set")),
        *((name, None) for name in ("trainer", "strain", "contest", "tested", "device", "valley", "latest", "retrain")),
        *((name, None) for name in ("train_test", "train_val2018", "Train-Valid", "", "123", "火车", "evaluator")),
    ],
)
def test_part_names(name: str, part: str | None) -> None:
    assert part_of(name) == part


# ---- fingerprints ----


def test_a_copy_has_the_same_fingerprint(tmp_path: Path) -> None:
    original = classes(tmp_path / "original", "a", "b")
    (original / "a" / "é.png").write_bytes(picture(9))
    shutil.copytree(original, tmp_path / "moved" / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "moved" / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    (tmp_path / "moved" / "copy" / "a" / "é.png").rename(tmp_path / "moved" / "copy" / "a" / "e\u0301.png")
    datasets = [load_folder(folder, DIVISION) for folder in (original, tmp_path / "moved" / "copy")]
    assert datasets[0].train.fingerprint() == datasets[1].train.fingerprint()
    assert datasets[0].test.fingerprint() == datasets[1].test.fingerprint()
    assert datasets[0].train.fingerprint() != datasets[0].test.fingerprint()


@pytest.mark.parametrize("read_before", [False, True])
def test_changes_change_the_fingerprint(tmp_path: Path, read_before: bool) -> None:
    def fingerprint() -> str:
        source = load_folder(tmp_path, DIVISION, train_folder=".").train
        if read_before:
            usable(source, 2, lambda count: None)
        return source.fingerprint()

    # Large enough that the change is far from both ends of the file.
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    classes(tmp_path, "a", "b", count=8)
    path = next(tmp_path / name for name, _ in files(load_folder(tmp_path, DIVISION).train))
    Image.fromarray(pixels).save(path, "BMP")
    status, before = path.stat(), fingerprint()
    assert fingerprint() == before
    pixels[45, 45, 1] ^= 1
    Image.fromarray(pixels).save(path, "BMP")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    changed = fingerprint()
    path.rename(path.with_name("new name.png"))
    assert len({before, changed, fingerprint()}) == 3


def test_a_skipped_file_has_a_fingerprint_too(tmp_path: Path) -> None:
    """A file that can't be read is not asked for a second time."""
    classes(tmp_path, "a", "b", count=200)
    whole = load_folder(tmp_path, DIVISION).train
    path = Path(whole.where(0))
    path.unlink()
    path.mkdir()
    dataset, bad = quietly(load_folder(tmp_path, DIVISION), "skip")
    assert [image.where for image in bad] == [str(path)]
    assert dataset.train.fingerprint() not in (whole.fingerprint(), load_folder(tmp_path, DIVISION).train.fingerprint())


def test_each_process_reads_its_share_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process gets the contents of the others for the fingerprint."""
    classes(tmp_path, "a", "b")
    expected = load_folder(tmp_path, DIVISION).train.fingerprint()
    parts: list[object] = []
    for index in (1, 0):

        def gather(part: object, index: int = index) -> list[object]:
            parts.append(part)
            return [part, parts[0]] if index == 0 else [part, part]

        source = load_folder(tmp_path, DIVISION).train
        usable(source, 2, lambda count: None, index, 2, gather)
    monkeypatch.setattr("jaxnets.data.folder.read_file", lambda path: pytest.fail(f"{path} was read again"))
    assert source.fingerprint() == expected


def test_two_training_folders_are_refused(tmp_path: Path) -> None:
    for part in ("train", "Train", "val"):
        classes(tmp_path / part, "a", "b")
    refuse(tmp_path, "has both Train/ and train/; rename or remove one")


# ---- bad images ----


def with_bad(count: int, bad: Sequence[int]) -> Dataset:
    """Pictures that show their numbers, with label number % 2. The pictures in `bad` are empty files."""

    class Pictures:
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:
            return Record(b"" if index in bad else picture(index), index % 2)

        def where(self, index: int) -> str:
            return f"picture {index}"

    test = ArraySource(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]))
    return Dataset("pictures", ("even", "odd"), Pictures(), test)


def test_good_images_are_unchanged() -> None:
    counted: list[int] = []
    said: list[str] = []
    dataset = with_bad(30, ())
    assert verify(dataset, "error", counted.append, said.append) == (dataset, [])
    assert counted == list(range(1, 33))
    assert said == []


@pytest.mark.parametrize(("count", "bad"), slow_except([(98, 1), (198, 2)], [(98, 1), (198, 2), (698, 7), (2898, 29)]))
def test_at_most_one_percent_may_be_bad(count: int, bad: int) -> None:
    indices = list(range(3, 3 + bad))
    dataset, skipped = quietly(with_bad(count, indices), "skip")
    assert [image.where for image in skipped] == [f"picture {index}" for index in indices]
    good = [number for number in range(count) if number not in indices]
    assert [dataset.train[i] for i in range(len(dataset.train))] == [(picture(k), k % 2) for k in good]
    assert [dataset.train.where(i) for i in range(len(dataset.train))] == [f"picture {k}" for k in good]
    one_more = [*indices, count - 1]
    message = refusal(lambda: quietly(with_bad(count, one_more), "skip"))
    assert f"{bad + 1} of {count + 2} images can't be used, the first is picture 3 (empty file)" in message
    assert "at most 1%" in message
    # Two test images count too. With one image less, the bad ones are more than 1 %.
    assert "at most 1%" in refusal(lambda: quietly(with_bad(count - 1, indices), "skip"))


def test_one_bad_image_is_an_error_by_default() -> None:
    said: list[str] = []
    with pytest.raises(InputError) as caught:
        verify(with_bad(1000, [500]), "error", lambda count: None, said.append)
    message = str(caught.value)
    assert message.startswith("1 of 1002 images can't be used, the first is picture 500 (empty file)")
    assert "--on-bad-image skip" in message
    assert said == ["bad image: picture 500: empty file"]


def test_at_most_twenty_bad_images_are_printed() -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="50 of 102 images"):
        verify(with_bad(100, range(50)), "error", lambda count: None, said.append)
    assert said == [f"bad image: picture {k}: empty file" for k in range(20)] + ["... and 30 more"]


def test_bad_test_images_are_reported() -> None:
    dataset = with_bad(500, [7])
    dataset = replace(dataset, test=with_bad(10, [3]).train)
    usable_data, bad = quietly(dataset, "skip")
    assert [image.where for image in bad] == ["picture 7", "picture 3"]
    assert [usable_data.test[i].label for i in range(9)] == [0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_a_class_or_a_test_split_without_good_images_is_refused() -> None:
    class Odd(ArraySource):
        def __getitem__(self, index: int) -> Any:
            return Record(b"" if self.labels[index] else picture(index), int(self.labels[index]))

    labels = np.zeros(300, np.int64)
    labels[5] = 1
    dataset = with_bad(300, ())
    train = Odd(np.zeros((300, 2, 2), np.uint8), labels)
    assert "class 'odd' has no training images" in refusal(lambda: quietly(replace(dataset, train=train), "skip"))
    test = Odd(np.zeros((2, 2, 2), np.uint8), np.ones(2, np.int64))
    assert "all test images are bad" in refusal(lambda: quietly(replace(dataset, test=test), "skip"))


def test_labels_without_a_class_are_bad() -> None:
    labels = np.array([0, 1, 2, -1])
    source = ArraySource(np.zeros((4, 2, 2), np.uint8), labels)
    kept, bad, good = usable(source, 2, lambda count: None)
    assert (len(kept), good.tolist()) == (2, [0, 1])
    assert [image.reason for image in bad] == ["label 2; expected 0 to 1", "label -1; expected 0 to 1"]
