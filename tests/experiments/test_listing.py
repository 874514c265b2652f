"""The commands that list images of a data set."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import duplicates
from tests.experiments.commands import Refuses


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
