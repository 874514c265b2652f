"""The commands that list images of a data set, and what they say of a run on another one."""

import csv
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import duplicates
from experiments.command import run
from jaxnets.data.datasets import digits
from jaxnets.training.loop import train
from tests.experiments.commands import Refuses
from tests.training.networks import STILL, config, cpus


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("duplicates", ["digits"]), ("label_errors", ["run"]), ("neighbours", ["run", "image.png"])],
)
def test_files_are_not_overwritten(name: str, arguments: list[str], refuses: Refuses, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("mine")
    refuses(name, *arguments, "--output", "list.csv", words=("list.csv exists already", "another name"))
    assert (tmp_path / "list.csv").read_text() == "mine"
    refuses(name, *arguments, "--output", "list.txt", words=("list.txt", ".csv or .html"))
    refuses(name, *arguments, "--output", "nowhere/list.csv", words=("no folder", "nowhere"))


def test_embed_refuses_before_it_computes(refuses: Refuses, tmp_path: Path) -> None:
    arguments = ("run", "image.png", "--output", "features.npz")
    refuses("embed", *arguments, "--plot", "plot.gif", words=("--plot plot.gif", ".png or .svg"))
    refuses("embed", *arguments, "--method", "umap", words=("--method umap", "--plot"))


def test_copies_across_parts_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    pets = tmp_path / "pets"
    Image.open(pets / "train" / "cat" / "0.png").save(pets / "train" / "cat" / "again.bmp")
    Image.open(pets / "train" / "dog" / "1.png").save(pets / "test" / "cat" / "copy.bmp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["duplicates", "pets", "--output", "pairs.csv"])
    duplicates.main()
    assert "1 pairs of duplicates across parts, 1 within a part" in capsys.readouterr().out
    with (tmp_path / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["image"]).name, Path(row["other_image"]).name, row["exact"]) for row in rows] == [
        ("1.png", "copy.bmp", "yes"),
        ("0.png", "again.bmp", "yes"),
    ]
    assert [(row["part"], row["other_part"], row["class"], row["other_class"]) for row in rows] == [
        ("train", "test", "dog", "cat"),
        ("train", "train", "cat", "cat"),
    ]


@pytest.fixture(scope="module")
def runs(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the digits, on others under the name of the digits, and under a name that nothing has."""
    root = tmp_path_factory.mktemp("runs")
    whole = digits()
    few = whole.train.subset(np.arange(64))  # type: ignore[attr-defined]
    data = {
        "same": whole,
        "other": replace(whole, train=few, val=None),
        "nowhere": replace(whole, train=few, name="in-memory"),
    }
    for name, dataset in data.items():
        train(config(**STILL, epochs=1, batch_size=64), root / name, dataset, parallel=cpus(1))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "image.png")
    return root


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("evaluate", ["--split", "train"], ["train"]),
        # The run on others had no val images.
        ("evaluate", ["--split", "val"], ["val"]),
        ("duplicates", [], ["train", "val"]),
        ("label_errors", [], ["train"]),
        ("neighbours", ["image.png"], ["train"]),
    ],
)
def test_all_say_that_the_images_are_not_those_of_the_run(
    runs: Path,
    name: str,
    arguments: list[str],
    parts: list[str],
    refuses: Refuses,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr(duplicates, "find_duplicates", lambda *_: [])  # which takes seconds
    for data, others in (("same", []), ("other", parts)):
        monkeypatch.setattr("sys.argv", [name, data, *arguments])
        run(import_module(f"experiments.{name}").main)
        errors = capsys.readouterr().err
        lines = [line for line in errors.splitlines() if "warning" in line]
        assert len(lines) == len(others)
        for part, line in zip(others, lines, strict=True):
            assert line.startswith(f"warning: these are not the {part} images of the run: some were added")
    words = ("the data set of the run, 'in-memory', can't be loaded by its name (unknown data set", "given a Dataset")
    refuses(name, "nowhere", *arguments, words=words, folder=runs)
