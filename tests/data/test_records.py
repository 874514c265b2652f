"""Prepared records: reading returns what was written, even after interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxnets.data.datasets import digits, load_dataset
from jaxnets.data.division import Division
from jaxnets.data.folder import load_folder
from jaxnets.data.pipeline import cached_if_small
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.records import load_records, write_records
from jaxnets.data.sources import ArraySource, Dataset, Subset
from jaxnets.errors import InputError
from tests.tiers import slow_except


def quiet(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos of two classes and many sizes, in JPEG and PNG files."""
    root = tmp_path_factory.mktemp("photos") / "two photos"
    random = np.random.default_rng(0)
    for label, photo in enumerate(load_sample_images().images):
        for number in range(24):
            folder = root / ("val" if number % 6 == 5 else "train") / ("china", "flower")[label]
            folder.mkdir(parents=True, exist_ok=True)
            top, left = random.integers(0, 150), random.integers(0, 200)
            height, width = random.integers(30, 277), random.integers(30, 440)
            Image.fromarray(photo[top : top + height, left : left + width]).save(
                folder / f"{number}.{'png' if number % 4 == 0 else 'jpg'}"
            )
    return root


@pytest.fixture(scope="module")
def dataset(photos: Path) -> Dataset:
    return load_folder(photos, Division())


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of all images, written without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "records"
    write_records(dataset, folder, 64, quiet)
    return folder


@pytest.mark.fast
def test_records_contain_the_resized_images_in_order(dataset: Dataset, tmp_path: Path) -> None:
    counts: list[int] = []
    assert write_records(dataset, tmp_path / "records", 64, counts.append)
    assert counts[-1] == 48
    records = load_dataset(str(tmp_path / "records"))
    assert list(records.parts) == ["train", "val"]
    assert replace(records, train=dataset.train, val=dataset.val) == dataset
    for split in ("train", "val"):
        source, written = getattr(dataset, split), getattr(records, split)
        assert len(source) == len(written)
        for index in range(len(source)):
            image = Image.open(Path(source.where(index))).convert("RGB")
            short = min(image.size)
            if short > 64:
                image = image.resize([int(64 * side / short) for side in image.size], Image.Resampling.BILINEAR)
            pixels, label = written[index]
            np.testing.assert_array_equal(pixels, image)
            assert label == source[index].label


def test_records_and_files_are_preprocessed_alike(dataset: Dataset, tmp_path: Path) -> None:
    write_records(dataset, tmp_path / "records", 64, quiet)
    preprocessing = Preprocessing(56, 64)
    expected = cached_if_small(dataset.judged(), preprocessing)
    actual = cached_if_small(load_records(tmp_path / "records").judged(), preprocessing)
    # A file is resized and cropped in one call, a record was resized before; a few pixels round differently.
    difference = np.abs(actual.images.astype(int) - expected.images)  # type: ignore[union-attr]
    assert difference.max() <= 1
    assert difference.mean() < 0.002
    np.testing.assert_array_equal(actual.labels, expected.labels)  # type: ignore[union-attr]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("after", slow_except([7, 40, 48], [1, 7, 30, 40, 41, 47, 48]))
def test_an_interrupted_writer_resumes(
    dataset: Dataset, whole: Path, tmp_path: Path, after: int, zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxnets.data.records._RECORDS_PER_FLUSH", 6)

    def interrupt(count: int) -> None:
        if count >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_records(dataset, tmp_path / "cut", 64, interrupt)
    with pytest.raises(InputError, match="unfinished records; run the same prepare command"):
        load_records(tmp_path / "cut")
    # After a power failure the end of a file may be missing, or zero.
    for name in ("train.pixels", "train.index"):
        path = tmp_path / "cut" / name
        size = path.stat().st_size
        os.truncate(path, max(0, size - 11))
        if zeros:
            os.truncate(path, size + 2000)
    counts: list[int] = []
    write_records(dataset, tmp_path / "cut", 64, counts.append)
    assert contents(tmp_path / "cut") == contents(whole)
    # At most the records of one flush are written twice.
    assert counts[0] >= min(after, 40) - 6
    assert not write_records(dataset, tmp_path / "cut", 64, quiet)


@pytest.mark.slow
@pytest.mark.parametrize("shares", slow_except([[0.4]], [[0.4], [0.0, 0.2, 0.4, 0.6, 0.8]]))
def test_a_killed_writer_resumes(shares: list[float], photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.prepare", photos, "--output", tmp_path / "records", "--size", "200"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    whole = tmp_path / "whole"
    write_records(load_folder(photos, Division()), whole, 200, quiet)
    size = (whole / "train.pixels").stat().st_size
    killed = 0
    for share in shares:
        writer = subprocess.Popen(
            [sys.executable, "-c", _SLOW_WRITER, *map(str, command[3:])], env=environment, stderr=subprocess.PIPE
        )
        pixels = tmp_path / "records" / "train.pixels"
        while writer.poll() is None and not (pixels.exists() and pixels.stat().st_size > share * size):
            time.sleep(0.002)
        writer.send_signal(signal.SIGKILL)
        killed += writer.wait() == -signal.SIGKILL
    assert killed >= max(1, len(shares) - 1)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "48 images" in run.stdout
    assert contents(tmp_path / "records") == contents(whole)


# The prepare command with a flush and a pause after each record.
_SLOW_WRITER = """
import sys, time
import jaxnets.data.records as records
records._RECORDS_PER_FLUSH = 1
to_disk = records._to_disk
records._to_disk = lambda file: (to_disk(file), time.sleep(0.01))
from experiments.prepare import main
sys.argv = ["prepare", *sys.argv[1:]]
main()
"""


def flip_pixel(folder: Path) -> None:
    with (folder / "train.pixels").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def flip_label(folder: Path) -> None:
    data = bytearray((folder / "val.index").read_bytes())
    data[16] ^= 1
    (folder / "val.index").write_bytes(data)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        info = json.loads((folder / "records.json").read_text())
        (folder / "records.json").write_text(json.dumps({**info, **changes}))

    return change


@pytest.mark.fast
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_pixel, r"train\.pixels record \d+: does not match its checksum"),
        (flip_label, r"val\.index does not match its checksum"),
        (
            lambda folder: os.truncate(folder / "val.pixels", 1000),
            r"val\.pixels has a different length than its index",
        ),
        (lambda folder: (folder / "val.pixels").unlink(), r"damaged records .*val\.pixels"),
        (lambda folder: (folder / "records.json").write_text("{"), "damaged records"),
        (edit(format=2), "records of format 2; expected 1"),
        (edit(class_names=["b", "a"]), r"records\.json does not match its checksum"),
    ],
)
def test_damaged_records_are_reported(whole: Path, tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "records")
    damage(folder)

    def read_all() -> None:
        records = load_records(folder)
        for source in records.parts.values():
            for index in range(len(source)):
                source[index]

    with pytest.raises(InputError, match=words) as raised:
        read_all()
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_other_records_and_other_files_are_never_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    write_records(dataset, tmp_path / "records", 64, quiet)
    before = contents(tmp_path / "records")
    for other, size in ((dataset, 65), (digits(), 64), (replace(dataset, class_names=("a", "b")), 64)):
        with pytest.raises(InputError, match="has records of other images or of another size"):
            write_records(other, tmp_path / "records", size, quiet)
    assert contents(tmp_path / "records") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty"):
        write_records(dataset, tmp_path / "mine", 64, quiet)
    assert list(contents(tmp_path / "mine")) == ["letter.txt"]


def test_a_second_call_detects_damage(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    write_records(dataset, folder, 64, quiet)
    assert not write_records(dataset, folder, 64, quiet)
    flip_pixel(folder)
    with pytest.raises(InputError, match="does not match its checksum"):
        write_records(dataset, folder, 64, quiet)


def test_a_partial_start_file_is_ignored(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "started.partial").write_bytes(b"")
    assert write_records(dataset, tmp_path / "records", 64, quiet)


def test_changed_images_are_detected(photos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    write_records(load_folder(root, Division()), tmp_path / "records", 64, quiet)
    (root / "train" / "china" / "1.jpg").write_bytes((root / "train" / "flower" / "2.jpg").read_bytes())
    with pytest.raises(InputError, match="records of other images"):
        write_records(load_folder(root, Division()), tmp_path / "records", 64, quiet)
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    sources = [ArraySource(images, labels), ArraySource(images, 1 - labels), ArraySource(images + 1, labels)]
    sources += [Subset(sources[0], np.array(order)) for order in ([0, 1], [1, 0])]  # type: ignore[arg-type]
    assert len({source.fingerprint() for source in sources}) == 5


def test_a_full_disk_is_reported_before_writing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage)
    with pytest.raises(InputError, match=r"needs about 0\.0 GB, but only 0\.0 GB are free"):
        write_records(dataset, tmp_path / "records", 64, quiet)
    assert not list((tmp_path / "records").glob("*.pixels"))


class _Usage:
    free = 1000


def test_a_size_of_zero_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size=0"):
        write_records(dataset, tmp_path / "records", 0, quiet)
