"""The commands on folders of images: what is found there, what is wrong with it, and what is left behind."""

import argparse
import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, train
from experiments.command import run
from jaxnets.data.datasets import digits
from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.parallel import Parallel
from jaxnets.training.setup import set_up
from jaxnets.weights.runs import read_contents
from tests.experiments.commands import Refuses, command, refused

# By their numbers, not as text; and a name that is not ASCII.
CLASSES = ("1", "2", "10", "Ähre")
ARCH = "tests.training.tiny:Tiny"
QUICK = ("--arch", ARCH, "--image-size", "8", "--epochs", "1", "--batch-size", "20", "--parallel", "jit")


def photos(root: Path, counts: dict[str, int]) -> Path:
    """Scanned digits as PNG files, `counts` of each class in each part."""
    scans = digits().train
    labels = np.array([scans[index].label for index in range(len(scans))])
    for part, count in counts.items():
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number, index in enumerate(np.flatnonzero(labels == label)[:count]):
                Image.fromarray(scans[int(index)].image).save(root / part / name / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images, of which two, one in each part, are bad: exactly one in a hundred."""
    root = photos(tmp_path_factory.mktemp("data") / "scans of digits", {"train": 40, "val": 10})
    (root / "train" / "10" / "007.png").write_bytes(b"")
    (root / "val" / "2" / "003.png").write_bytes((root / "val" / "2" / "003.png").read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The workdir of a run that skipped the bad images."""
    place = folder.parent
    done = command("train", *QUICK, "--dataset", folder.name, "--on-bad-image", "skip", folder=place)
    assert done.returncode == 0, done.stderr
    assert f"bad image: {folder / 'train' / '10' / '007.png'}: empty file\n" in done.stderr
    assert "top-5" not in done.stdout  # of four classes
    assert done.stderr.startswith(
        "4 classes ('1', '2', '10', 'Ähre'), 160 training images, 40 val images (from val/)\n"
    )
    return place / "runs" / "tests.training.tiny-Tiny-scans-of-digits"


@pytest.mark.slow
def test_skipped_images_are_listed_and_not_used(folder: Path, trained: Path) -> None:
    with (trained / "bad-images.csv").open(encoding="utf-8", newline="") as file:
        header, first, second = csv.reader(file)
    assert header == ["image", "reason", "used"]
    assert first == [str(folder / "train" / "10" / "007.png"), "empty file", "no"]
    assert second[0] == str(folder / "val" / "2" / "003.png")
    assert "unreadable image" in second[1]
    assert second[2] == "no"
    result = json.loads((trained / "result.json").read_text())
    assert (result["train_images"], result["val_images"], result["test_accuracy"]) == (159, 39, None)
    assert result["class_names"] == json.loads((trained / "classes.json").read_text()) == list(CLASSES)
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [str(path) for name in CLASSES for path in sorted((folder / "val" / name).iterdir())]
    expected.remove(second[0])
    assert [row["image"] for row in rows] == expected
    assert [row["class"] for row in rows] == [Path(path).parent.name for path in expected]


@pytest.mark.slow
def test_evaluate_and_predict_agree_with_the_run(folder: Path, trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    # From elsewhere: the run remembers where its data set lies.
    done = command("evaluate", trained, folder=trained)
    assert done.returncode == 0, done.stderr
    right = round(result["val_accuracy"] * 39)
    assert done.stdout.startswith(f"{right} of 39 val images are right\n")
    assert re.search(rf"^val loss  +{result['val_loss']:.4f} \(", done.stdout, re.MULTILINE)
    with (trained / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::10]
    done = command("predict", trained, *(row["image"] for row in rows), folder=trained)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^(/.*)\n +([\d.]+)%  (.*)$", done.stdout, re.MULTILINE)
    assert [(path, name) for path, _, name in answers] == [(row["image"], row["predicted"]) for row in rows]
    for (_, percent, _), row in zip(answers, rows, strict=True):
        assert float(percent) == pytest.approx(100 * float(row["probability"]), abs=0.02)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The data set as `cp -r` copies it, with other times, and with a test folder beside val."""
    root = shutil.copytree(folder, tmp_path / "moved" / "set", copy_function=shutil.copyfile)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    return photos(root, {"test": 7})


def test_evaluate_on_a_moved_data_set_and_on_other_parts(
    trained: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["evaluate", str(trained), *map(str, arguments)])
        run(evaluate.main)
        output, errors = capsys.readouterr()
        return output, errors

    before, errors = evaluated()
    assert "warning" not in errors
    after, errors = evaluated("--dataset", copied, "--split", "val")
    assert after == before
    assert errors.startswith("40 val images (from val/)\n")
    for arguments in ((), ("--split", "test"), ("--test-folder", "test")):
        output, errors = evaluated("--dataset", copied, *arguments)
        assert "of 28 test images" in output
        assert errors.startswith("28 test images (from test/)\n")
    # A changed data set is said.
    (copied / "val" / "1" / "000.png").unlink()
    output, errors = evaluated("--dataset", copied, "--split", "val")
    assert "of 38 val images" in output
    assert "warning: these are not the val images of the run" in errors


def test_evaluate_refuses_parts_that_are_not_there(folder: Path, trained: Path, refuses: Refuses) -> None:
    refuses("evaluate", trained, "--split", "test", words=("has no test images, only train, val",))
    refuses("evaluate", trained, "--test-folder", "holdout", words=("--test-folder holdout: no such folder",))
    refuses(
        "evaluate", trained, "--dataset", "digits", "--train-folder", "x", words=("--train-folder x is for folders",)
    )


def test_a_run_resumes_on_a_copied_data_set_and_on_no_other(trained: Path, copied: Path) -> None:
    shutil.rmtree(copied / "test")
    config = replace(Config.read(trained / "config.json"), dataset=str(copied))
    before = read_contents(trained)
    assert before is not None
    set_up(config, None, Parallel.choose("jit")).contents.check_resumes(before)
    # Another image of the same size in bytes.
    path = copied / "train" / "1" / "000.png"
    content, times = bytearray(path.read_bytes()), path.stat()
    Image.new("L", (8, 8), 7).save(path)
    padding = len(content) - path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(max(padding, 0)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    with pytest.raises(InputError, match="the train images are not those that the run began with"):
        set_up(config, None, Parallel.choose("jit")).contents.check_resumes(before)


def test_a_finished_run_is_not_that_of_other_data(
    folder: Path,
    trained: Path,
    copied: Path,
    refuses: Refuses,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resume = (*QUICK, "--on-bad-image", "skip", "--workdir", str(trained), "--resume", "--dataset")

    def resumed(dataset: Path) -> str:
        monkeypatch.setattr("sys.argv", ["train", *resume, str(dataset)])
        run(train.main)
        output, errors = capsys.readouterr()
        assert output.startswith("val accuracy")
        return errors

    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    shutil.rmtree(copied / "test")
    assert "is finished already; this is its result\n" in resumed(folder)
    assert "is finished already; this is its result\n" in resumed(copied)
    refuses("train", *resume, copied / "nowhere", words=("holds a finished run", "nowhere: no such folder"))
    other = photos(copied.parent / "other", {"train": 1, "val": 1})
    for part in ("train", "val"):
        (other / part / "10").rename(other / part / "9")
    refuses("train", *resume, other, words=("holds a finished run", "class 2 is '9', in training it was '10'"))
    (copied / "train" / "1" / "000.png").rename(copied / "train" / "2" / "000-1.png")
    refuses("train", *resume, copied, words=("the train images are not those that the run began with",))
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_train_takes_the_parts_by_flags(tmp_path: Path, refuses: Refuses) -> None:
    photos(tmp_path / "data", {"color": 4, "grayscale": 3})
    refuses("train", *QUICK, "--dataset", "data", words=("have the same class folders", "--train-folder"))
    root, parts = str(tmp_path / "data"), ("--train-folder", "color", "--test-folder", "grayscale")
    config, _ = train.parse([*QUICK, "--batch-size", "12", "--dataset", root, *parts])
    dataset = set_up(config, None, Parallel.choose("jit")).dataset
    assert dataset.summary().endswith(
        "12 training images, 4 val images (about 10% of each class, at least one, held out), "
        "12 test images (from grayscale/)"
    )
    # Evaluation finds the parts in the configuration of the run.
    config = Config.from_dict(json.loads(config.to_json()))
    names = ("dataset", "data_dir", "split", "train_folder", "val_folder", "test_folder")
    again = evaluate.dataset_of(argparse.Namespace(**dict.fromkeys(names)), config)
    assert again.summary() == dataset.summary()


def test_a_bad_image_stops_a_run_before_it_leaves_anything(folder: Path, tmp_path: Path) -> None:
    done = command("train", *QUICK, "--dataset", folder, folder=tmp_path)
    refused(done, "2 of 200 images can't be used", str(folder / "train" / "10" / "007.png"), "(empty file)", "skip")
    # Each of them is named, one a line.
    named = [line for line in done.stderr.splitlines() if line.startswith("bad image: ")]
    assert [line.split(": ")[1] for line in named] == [
        str(folder / "train" / "10" / "007.png"),
        str(folder / "val" / "2" / "003.png"),
    ]
    assert len(done.stderr.splitlines()) == 4  # the data set, two bad images, the error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_prepare_lists_skipped_images_and_refuses_an_output_inside_the_source(
    folder: Path, tmp_path: Path, refuses: Refuses
) -> None:
    refuses("prepare", folder, "--output", folder / "train" / "records", words=("is inside the source",))
    output = tmp_path / "records"
    done = command("prepare", folder, "--output", output, "--size", 8, "--on-bad-image", "skip", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "198 images" in done.stdout
    assert "2 bad images skipped" in done.stdout
    with (output / "bad-images.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [
            str(folder / "train" / "10" / "007.png"),
            str(folder / "val" / "2" / "003.png"),
        ]


def test_more_than_one_percent_is_too_much_to_skip(folder: Path, tmp_path: Path, refuses: Refuses) -> None:
    root = shutil.copytree(folder, tmp_path / "data")
    (root / "val" / "1" / "000.png").write_text("<html>404</html>")
    arguments = (*QUICK, "--dataset", root, "--on-bad-image", "skip", "--workdir", tmp_path / "run")
    refuses("train", *arguments, words=("3 of 200 images can't be used", "at most 1%"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_evaluate_refuses_other_classes_than_were_trained(folder: Path, trained: Path, refuses: Refuses) -> None:
    for part in ("train", "val"):
        (folder / part / "10").rename(folder / part / "9")
    try:
        # As many, and in the same order: but not the same.
        refuses("evaluate", trained, words=("class 2 is '9', in training it was '10'",))
        for part in ("train", "val"):
            (folder / part / "9").rename(folder / part / "10")
            shutil.copytree(folder / part / "1", folder / part / "3")
        refuses("evaluate", trained, words=("(5 and 4)", "class 2 is '3', in training it was '10'"))
        shutil.rmtree(folder / "val" / "3")
        refuses("evaluate", trained, words=("class '3' is in",))
    finally:
        for part in ("train", "val"):
            if (folder / part / "9").exists():
                (folder / part / "9").rename(folder / part / "10")
            shutil.rmtree(folder / part / "3", ignore_errors=True)


def test_train_refuses_label_faults_and_wrong_places(tmp_path: Path, refuses: Refuses) -> None:
    root = photos(tmp_path / "data", {"train": 3, "val": 2})

    def refuse(dataset: object, *words: str) -> None:
        refuses("train", *QUICK, "--dataset", dataset, words=words)
        assert {path.name for path in tmp_path.iterdir()} == {"data", "file.png", "empty"}

    (tmp_path / "file.png").write_bytes((root / "val" / "1" / "000.png").read_bytes())
    (tmp_path / "empty").mkdir()
    refuse("file.png", "file.png is a file; expected a folder")
    refuse("./nowhere", "nowhere: no such folder")
    refuse(tmp_path / "nowhere", "no such folder; give a folder of images")
    refuse("nowhere/", "no such folder")
    refuse("nowhere", "unknown data set 'nowhere': there is no such folder or CSV file here", ".csv file")
    refuse("empty", "has no class folders; expected")
    refuse(root / "train" / "1", "has no class folders; expected")
    refuse("data", "--batch-size 20", "12 training images, beside 8 val images; choose a smaller --batch-size")
    (root / "val" / "2").rename(root / "val" / "Two")
    refuse("data", "class '2' is in", "but not in", str(root / "val"))
    (root / "val" / "Two").rename(root / "val" / "2")
    for path in (root / "train" / "Ähre").iterdir():
        path.unlink()
    refuse("data", "class 'Ähre' is empty", str(root / "train" / "Ähre"))
    for part in ("train", "val"):
        for name in CLASSES[1:]:
            shutil.rmtree(root / part / name)
    refuse("data", "only one class, '1'")
