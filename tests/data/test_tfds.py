"""TFDS data sets are read without TensorFlow, and every error says what to do."""

import io
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxnets.data.division import Division
from jaxnets.data.tfds import load_tfds, prepare_tfds
from jaxnets.errors import InputError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCANS = load_digits()
PIXELS = np.round(SCANS.images * (255 / 16)).astype(np.uint8)
DIVISION = Division(val_share=0, test_share=0.2)
LABELS = [int(label) for label in SCANS.target]

# Split -> (index of the scan, label).
Splits = dict[str, Sequence[tuple[int, int]]]
PARTS: Splits = {
    "train": list(enumerate(LABELS))[:1500],
    "test": list(enumerate(LABELS))[1500:],
}


def encoded(place: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[place]).save(file, kind)
    return file.getvalue()


def prepared(
    root: Path,
    name: str = "digits_of_ours",
    splits: Splits = PARTS,
    features: dict[str, Any] | None = None,
    example: Callable[[int, int], dict[str, Any]] | None = None,
    kind: str = "png",
    file_format: str = "array_record",
    configs: Sequence[str] = (),
    shards: int = 1,
) -> Path:
    """Stores the scans with a builder that is not registered, and returns its folder."""
    features = features or {
        "name": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 1), encoding_format=kind),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    make = example or (
        lambda place, label: {"name": f"scan {place}", "image": io.BytesIO(encoded(place, kind)), "label": label}
    )

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if {"image", "label"} <= features.keys() else None,
            disable_shuffling=True,
        )

    def generate(records: Sequence[tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (place, label) in enumerate(records):
            yield key, make(place, label)

    attributes = {
        "VERSION": tfds.core.Version("1.2.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config) for config in configs],
        "name": name,
        "pkg_dir_path": root,
        "_info": info,
        "_split_generators": lambda self, _: {split: generate(records) for split, records in splits.items()},
        "_generate_examples": lambda self: iter(()),
    }
    ours = type("Ours", (tfds.core.GeneratorBasedBuilder,), attributes, skip_registration=True)
    builder = ours(data_dir=root)
    builder.download_and_prepare(
        file_format=file_format,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards),
    )
    return Path(builder.data_dir)


def as_tfrecord(folder: Path) -> None:
    """Rewrites ArrayRecord files as TFRecord. The checksums are zero; only TensorFlow verifies them."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in folder.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        records = reader.read(list(range(reader.num_records())))
        content = [struct.pack("<QI", len(record), 0) + record + bytes(4) for record in records]
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(content))
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    prepared(root)
    return root


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_reading_returns_the_stored_images_and_labels(kind: str, tmp_path: Path) -> None:
    prepared(tmp_path, kind=kind)
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert (dataset.name, dataset.class_names) == ("digits_of_ours", CLASSES)
    assert (len(dataset.train), len(dataset.test)) == (1500, 297)
    for source, first in ((dataset.train, 0), (dataset.test, 1500)):
        for index in range(len(source)):
            record = source[index]
            assert record == (encoded(first + index, kind), LABELS[first + index])
            assert type(record[1]) is int
    image = dataset.test[7].image
    assert isinstance(image, bytes)
    if kind == "png":
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), PIXELS[1507])
    with pytest.raises(IndexError):
        dataset.test[297]


def test_official_data_sets_are_read_and_converted_without_tensorflow(tmp_path: Path) -> None:
    prepared(tmp_path, name="cifar10")
    as_tfrecord(prepared(tmp_path, name="mnist"))
    # The process can't import TensorFlow and has no custom builders.
    program = f"""
import sys
from pathlib import Path
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Without, sys.meta_path)
from jaxnets.data.division import Division
from jaxnets.data.tfds import load_tfds, prepare_tfds
assert "tensorflow_datasets" not in sys.modules, "slow to import"
root = Path({str(tmp_path)!r})
assert prepare_tfds("mnist", root) == "converted from TFRecord"
for name in ("cifar10", "mnist"):
    data = load_tfds(name, root, Division(0, 0.2))
    print(data.class_names, len(data.train), [data.test[i].label for i in range(297)])
"""
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == f"{CLASSES} 1500 {LABELS[1500:]}\n" * 2, run.stderr


def test_threads_can_read_concurrently(ours: Path) -> None:
    order = np.random.default_rng(0).integers(1500, size=6000)
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(load_tfds("digits_of_ours", ours, DIVISION).train.__getitem__, order, chunksize=50))
    assert records == [(encoded(place), LABELS[place]) for place in order]


@pytest.mark.parametrize("name", ["digits_of_ours:1.2.0", "digits_of_ours:1.*.*", "DigitsOfOurs"])
def test_a_name_may_have_a_version(name: str, ours: Path) -> None:
    assert len(load_tfds(name, ours, DIVISION).train) == 1500


def test_a_name_may_have_a_config(tmp_path: Path) -> None:
    prepared(tmp_path, configs=["v4", "v6"])
    for name in ("digits_of_ours", "digits_of_ours/v4", "digits_of_ours/v4:1.2.0"):
        assert len(load_tfds(name, tmp_path, DIVISION).test) == 297
    with pytest.raises(InputError, match=r"digits_of_ours/v6 is not prepared"):
        load_tfds("digits_of_ours/v6", tmp_path, DIVISION)


def test_validation_replaces_a_test_split_without_labels(tmp_path: Path) -> None:
    scans = PARTS["train"]
    prepared(tmp_path, splits={"train": scans[:50], "validation": scans[50:80], "test": [(90, -1), (91, -1)]})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert [dataset.judged("val")[index].label for index in range(30)] == LABELS[50:80]
    # Without a validation split, a share of the training images is held out.
    shutil.rmtree(tmp_path)
    prepared(tmp_path, splits={"train": scans[:50], "test": [(90, -1)]})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    sizes = np.bincount(LABELS[:50])
    assert len(dataset.test) == sum(round(0.2 * size) or 1 for size in sizes.tolist())
    assert "the split test of digits_of_ours has images without labels" in dataset.warnings[0]


@pytest.mark.parametrize("first", [True, False])
def test_one_record_does_not_tell_whether_a_split_has_labels(first: bool, tmp_path: Path) -> None:
    """The first record alone has a label, or it alone has none: neither split can be tested on."""
    scans = PARTS["train"]
    test = [(90 + number, LABELS[90 + number] if (number == 0) == first else -1) for number in range(30)]
    prepared(tmp_path, splits={"train": scans[:50], "validation": scans[50:80], "test": test})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert [dataset.judged("val")[index].label for index in range(30)] == LABELS[50:80]
    assert "the split test of digits_of_ours has images without labels" in dataset.warnings[0]
    assert dataset.test is None


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation", "eval", "testing", "test_set"])
def test_test_splits_are_known_by_many_names(name: str, tmp_path: Path) -> None:
    scans = PARTS["train"]
    prepared(tmp_path, splits={"train": scans[:50], name: scans[50:80], "extra": scans[80:90]})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    part = "test" if "test" in name else "val"
    assert (len(dataset.train), dataset.origins, dataset.warnings) == (50, {part: f"split {name}"}, ())
    assert [dataset.judged(part)[index].label for index in range(30)] == LABELS[50:80]


def test_all_three_splits_are_used(tmp_path: Path) -> None:
    scans = PARTS["train"]
    splits = {"train": scans[:50], "dev": scans[50:80], "test": scans[80:95], "train_mini": scans[:5]}
    prepared(tmp_path, splits=splits)
    dataset = load_tfds("digits_of_ours", tmp_path, Division())
    assert {part: len(source) for part, source in dataset.parts.items()} == {"train": 50, "val": 30, "test": 15}
    with pytest.raises(InputError, match="digits_of_ours has a val part"):
        load_tfds("digits_of_ours", tmp_path, Division(fold="1/5"))
    shutil.rmtree(tmp_path)
    prepared(tmp_path, splits={"train": scans[:50], "test": scans[80:95]})
    dataset = load_tfds("digits_of_ours", tmp_path, Division())
    assert sorted(record_labels(dataset.train) + record_labels(dataset.judged("val"))) == sorted(LABELS[:50])
    assert [len(source) for source in dataset.parts.values()] == [
        50 - len(dataset.judged("val")),
        len(dataset.judged("val")),
        15,
    ]
    # Five folds, each image once.
    folds = [load_tfds("digits_of_ours", tmp_path, Division(fold=f"{k}/3")).judged("val") for k in (1, 2, 3)]
    assert sorted(label for fold in folds for label in record_labels(fold)) == sorted(LABELS[:50])


def record_labels(source: Any) -> list[int]:
    return [source[index].label for index in range(len(source))]


def test_a_moved_data_set_has_the_same_fingerprint(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "moved", copy_function=shutil.copyfile)
    before, after = (load_tfds("digits_of_ours", root, DIVISION) for root in (ours, tmp_path / "moved"))
    assert before.train.fingerprint() == after.train.fingerprint()
    (path,) = (tmp_path / "moved").rglob("*-train.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 9] ^= 1
    path.write_bytes(content)
    assert before.train.fingerprint() != after.train.fingerprint()
    assert before.test.fingerprint() == after.test.fingerprint() != before.train.fingerprint()


def test_rare_classes_have_test_images(tmp_path: Path) -> None:
    """Two images of each class but the first; one image of the last."""
    by_class = [[scan for scan in enumerate(LABELS) if scan[1] == label] for label in range(10)]
    scans = [scan for label, all_scans in enumerate(by_class) for scan in all_scans[: {0: 100, 9: 1}.get(label, 2)]]
    prepared(tmp_path, splits={"train": scans})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    train, test = ([source[i].label for i in range(len(source))] for source in (dataset.train, dataset.test))
    assert np.bincount(test, minlength=10).tolist() == [20, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert np.bincount(train, minlength=10).tolist() == [80, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def splitmix64(number: int) -> int:
    mask = 2**64 - 1
    number = (number + 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)


def test_the_split_of_a_data_set_without_a_test_split_is_fixed(tmp_path: Path) -> None:
    # Sorted by class, the worst case.
    scans = sorted(enumerate(LABELS), key=lambda scan: scan[1])
    prepared(tmp_path, splits={"train": scans})
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    train, test = (list(map(source.__getitem__, range(len(source)))) for source in (dataset.train, dataset.test))
    assert sorted(train + test) == sorted((encoded(place), label) for place, label in scans)
    # A fifth of each class: the records whose indices have the smallest hashes.
    expected: list[int] = []
    for label in range(10):
        members = [index for index, scan in enumerate(scans) if scan[1] == label]
        expected += sorted(members, key=splitmix64)[: round(0.2 * len(members))]
    held_out = [index for index, (place, label) in enumerate(scans) if (encoded(place), label) in set(test)]
    assert held_out == sorted(expected)
    # Each class keeps an image on both sides.
    for share in (0.0001, 0.9999):
        dataset = load_tfds("digits_of_ours", tmp_path, Division(0, share))
        assert 10 in (len(dataset.train), len(dataset.test))


def test_features_under_other_names_are_found(tmp_path: Path) -> None:
    features = {
        "scan": tfds.features.Image(shape=(None, None, 1)),
        "digit": tfds.features.ClassLabel(names=CLASSES),
        "mask": tfds.features.LabeledImage(labels=2, shape=(None, None, 1)),
    }

    def example(place: int, label: int) -> dict[str, Any]:
        return {"scan": io.BytesIO(encoded(place)), "digit": label, "mask": io.BytesIO(encoded(0))}

    prepared(tmp_path, features=features, example=example)
    assert load_tfds("digits_of_ours", tmp_path, DIVISION).train[3] == (encoded(3), LABELS[3])


def test_supervised_features_have_precedence(tmp_path: Path) -> None:
    features = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "another": tfds.features.Image(shape=(None, None, 1)),
        "coarse": tfds.features.ClassLabel(names=["even", "odd"]),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }

    def example(place: int, label: int) -> dict[str, Any]:
        images = {"image": io.BytesIO(encoded(place)), "another": io.BytesIO(encoded(0))}
        return {**images, "coarse": label % 2, "label": label}

    prepared(tmp_path, features=features, example=example)
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert dataset.class_names == CLASSES
    assert dataset.train[3] == (encoded(3), LABELS[3])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}, "it has 0 ClassLabel features"),
        ({"a": tfds.features.ClassLabel(num_classes=2)}, "it has 0 Image features"),
        (
            {key: tfds.features.ClassLabel(num_classes=2) for key in "ab"} | {"image": tfds.features.Image()},
            "it has 2 ClassLabel features a b; expected one",
        ),
        (
            {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16), "a": tfds.features.ClassLabel(names="xy")},
            "are uint16; expected uint8",
        ),
    ],
)
def test_data_sets_for_other_tasks_are_refused(features: dict[str, Any], message: str, tmp_path: Path) -> None:
    def example(place: int, label: int) -> dict[str, Any]:
        return {key: io.BytesIO(encoded(place)) if key == "image" else 1 for key in features}

    prepared(tmp_path, splits={"train": [(0, 0)]}, features=features, example=example)
    with pytest.raises(InputError, match=message) as error:
        load_tfds("digits_of_ours", tmp_path, DIVISION)
    one_line(error)


def test_a_data_set_without_training_images_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path, splits={"test": PARTS["test"]})
    with pytest.raises(InputError, match="digits_of_ours has no split train, only test"):
        load_tfds("digits_of_ours", tmp_path, DIVISION)


@pytest.mark.parametrize("act", [lambda name, root: load_tfds(name, root, DIVISION), prepare_tfds])
@pytest.mark.parametrize(
    "name",
    ["", " ", "..", "../x", "/", "a/b/c", "a\0b", "cifar10\n", "é", "x=1", "cifar10/data_dir=3", "cifar10:1",
     "huggingface:x", "kaggle:x/y", "robotics:cifar10", "no_such_data"],
)  # fmt: skip
def test_an_unknown_name_is_refused(name: str, act: Callable[[str, Path], object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set") as error:
        act(name, tmp_path)
    assert repr(name) in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_similar_names_are_suggested(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown data set 'cifar_10'.*did you mean .*cifar10"):
        load_tfds("cifar_10", tmp_path, DIVISION)


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "tf_flowers", "cifar10_1/v4:1.0.0"])
def test_the_error_for_an_unprepared_data_set_has_the_command(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_tfds(name, tmp_path, DIVISION)
    command = f"python -m experiments.prepare {name} --data-dir {tmp_path}"
    assert one_line(error) == f"{name} is not prepared in {tmp_path}; run {command}"
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_that_of_tfds(monkeypatch: pytest.MonkeyPatch, ours: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_tfds("cifar10", None, DIVISION)
    assert one_line(error) == f"cifar10 is not prepared in {tmp_path}; run python -m experiments.prepare cifar10"
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(ours))
    assert len(load_tfds("digits_of_ours", None, DIVISION).train) == 1500


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:70000] + b"x" * 9000 + data[79000:]],
    ids=["truncated", "empty", "overwritten"],
)
def test_a_damaged_file_is_reported(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    path = folder / "digits_of_ours-train.array_record-00000-of-00001"
    path.write_bytes(damage(path.read_bytes()))
    source = load_tfds("digits_of_ours", tmp_path, DIVISION).train
    with pytest.raises(InputError, match=r"can't be read .* prepare the data set again") as error:
        assert [source[index] for index in range(1500)] == []
    assert one_line(error).startswith(f"{path} record ")


def test_records_may_be_in_many_files(tmp_path: Path) -> None:
    folder = prepared(tmp_path, shards=4)
    as_tfrecord(folder)
    prepare_tfds("digits_of_ours", tmp_path)
    train = load_tfds("digits_of_ours", tmp_path, DIVISION).train
    assert [train[index] for index in range(1500)] == [(encoded(i), LABELS[i]) for i in range(1500)]
    path = folder / "digits_of_ours-train.array_record-00002-of-00004"
    assert [train.where(index) for index in (750, 1124)] == [f"{path} record 0", f"{path} record 374"]
    path.write_bytes(b"")
    train = load_tfds("digits_of_ours", tmp_path, DIVISION).train
    assert train[749] == (encoded(749), LABELS[749])
    with pytest.raises(InputError, match=f"{path} record 1: can't be read"):
        train[751]


def test_a_missing_file_is_reported_at_once(tmp_path: Path) -> None:
    path = prepared(tmp_path) / "digits_of_ours-train.array_record-00000-of-00001"
    path.unlink()
    with pytest.raises(InputError) as error:
        load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert one_line(error).startswith(f"{path} is missing; ")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{}", '{"name": '])
def test_damaged_metadata_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (prepared(tmp_path) / name).write_text(content)
    for act in (
        lambda: load_tfds("digits_of_ours", tmp_path, DIVISION),
        lambda: prepare_tfds("digits_of_ours", tmp_path),
    ):
        with pytest.raises(InputError, match=r"digits_of_ours can't be read \(.*move this folder away") as error:
            act()
        one_line(error)


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path, splits={"train": [(0, 0), (1, -1)], "test": [(2, 2)]})
    train = load_tfds("digits_of_ours", tmp_path, DIVISION).train
    with pytest.raises(InputError, match=r"00000-of-00001 record 1: label -1; expected 0 to 9"):
        train[1]


def test_a_prepared_data_set_is_not_changed(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    before = snapshot(folder)
    assert prepare_tfds("digits_of_ours", tmp_path) == "already prepared"
    assert snapshot(folder) == before


@pytest.mark.parametrize("cut_off_at", range(3))
def test_an_interrupted_conversion_resumes_and_keeps_the_tfrecords(
    cut_off_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(tmp_path)
    as_tfrecord(folder)
    before = snapshot(folder)
    moves: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        if len(moves) == cut_off_at:
            raise OSError("no space left")
        moves.append(source.rename(target))

    with monkeypatch.context() as patch:
        patch.setattr("jaxnets.data.tfds.os.replace", replace)
        with pytest.raises(InputError, match=r"can't be converted \(no space left\)"):
            prepare_tfds("digits_of_ours", tmp_path)
    assert len(snapshot(folder)) == len(before) + cut_off_at
    with pytest.raises(
        InputError, match=r"stored as tfrecord.* experiments.prepare digits_of_ours --data-dir"
    ) as error:
        load_tfds("digits_of_ours", tmp_path, DIVISION)
    one_line(error)
    finished = [(path, path.stat().st_ino) for path in moves]
    assert prepare_tfds("digits_of_ours", tmp_path) == "converted from TFRecord"
    assert [(path, path.stat().st_ino) for path in moves] == finished
    after = snapshot(folder)
    assert {name: after[name] for name in before if name != "dataset_info.json"} == {
        name: content for name, content in before.items() if name != "dataset_info.json"
    }
    assert len(after) == len(before) + 2
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert [dataset.train[index] for index in range(1500)] == [(encoded(i), LABELS[i]) for i in range(1500)]
    assert [dataset.test[index].label for index in range(297)] == LABELS[1500:]
    assert prepare_tfds("digits_of_ours", tmp_path) == "already prepared"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"\xff" * len(data), None]
)
def test_damaged_tfrecord_is_not_converted(damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    as_tfrecord(folder)
    path = folder / "digits_of_ours-train.tfrecord-00000-of-00001"
    first = 16 + struct.unpack_from("<Q", path.read_bytes())[0]
    path.write_bytes(damage(path.read_bytes()) if damage else path.read_bytes()[:first])
    before = snapshot(folder)
    with pytest.raises(InputError, match="restore the file") as error:
        prepare_tfds("digits_of_ours", tmp_path)
    assert str(path) in one_line(error)
    assert snapshot(folder) == before


def test_files_for_manual_download_are_named(tmp_path: Path) -> None:
    pytest.importorskip("importlib_resources")
    with pytest.raises(InputError, match=r"imagenet2012 can't be prepared .*downloads/manual.*train\.tar") as error:
        prepare_tfds("imagenet2012", tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ModuleNotFoundError("No", name="tensorflow"), r"needs TensorFlow once: pip install 'jaxnets\[tfds\]'"),
        (ModuleNotFoundError("No", name="importlib_resources"), r"pip install 'jaxnets\[tfds\]'"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), r"needs another package \(No .* 'scipy'\)"),
        (requests.ConnectionError("no\nnetwork"), r"can't be prepared \(no network\); fix this"),
        (OSError("Not enough disk space"), "can't be prepared .Not enough disk space."),
        (RuntimeError(), r"can't be prepared \(RuntimeError\)"),
    ],
)
def test_a_failed_preparation_says_what_to_do(
    raised: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        print("a banner")
        raise raised

    monkeypatch.setattr("tensorflow_datasets.core.DatasetBuilder.download_and_prepare", fail)
    with pytest.raises(InputError, match=message) as error:
        prepare_tfds("cifar10", tmp_path)
    assert one_line(error).endswith("then run the same command again")
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_missing_tensorflow_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An empty file for the manual download makes TFDS run the data set's code.
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(InputError) as error:
        prepare_tfds("imagenet2012", tmp_path)
    assert one_line(error) == (
        "preparing imagenet2012 needs TensorFlow once: pip install 'jaxnets[tfds]', then run the same command again"
    )
    assert capsys.readouterr().out == ""


def test_an_unrelated_folder_is_kept(tmp_path: Path) -> None:
    stray = tmp_path / "cifar10" / "3.0.2" / "mine.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("mine")
    with pytest.raises(InputError, match=r"cifar10/3\.0\.2 is not cifar10; move it away"):
        prepare_tfds("cifar10", tmp_path)
    assert stray.read_text() == "mine"


def test_real_tfrecord_is_converted(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    folder = prepared(tmp_path, file_format="tfrecord")
    assert prepare_tfds("digits_of_ours", tmp_path) == "converted from TFRecord"
    dataset = load_tfds("digits_of_ours", tmp_path, DIVISION)
    assert [dataset.train[index] for index in range(1500)] == [(encoded(i), LABELS[i]) for i in range(1500)]
    # TFDS can still read the folder.
    labels = [int(label) for _, label in tfds.builder_from_directory(folder).as_dataset("test", as_supervised=True)]
    assert labels == LABELS[1500:]
    assert tensorflow.io.gfile.exists(str(folder))


def test_invalid_examples_are_not_converted(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    as_tfrecord(folder)
    (path,) = folder.glob("*-train.tfrecord-*")
    content = bytearray(path.read_bytes())
    content[12:40] = b"\xff" * 28
    path.write_bytes(content)
    before = snapshot(folder)
    with pytest.raises(InputError, match="can't be converted") as error:
        prepare_tfds("digits_of_ours", tmp_path)
    one_line(error)
    assert snapshot(folder) == before
