"""`evaluate` and `predict --probabilities` as a user calls them, on a network without training."""

import csv
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.command import run
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.pretrained import Pretrained
from tests.experiments.commands import Refuses
from tests.training.tiny import Tiny, make_variables

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
Call = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def classifier(monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """What --arch tiny stands for: seven classes, and a margin to crop."""
    model = Tiny(num_classes=len(NAMES))
    loaded = Pretrained(model, make_variables(model), Preprocessing(8, 10), NAMES)
    monkeypatch.setattr("experiments.loading.load_pretrained", lambda *_, **__: loaded)
    return loaded


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run_here(name: str, *arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "--arch", "tiny"])
        run(import_module(f"experiments.{name}").main)
        output, errors = capsys.readouterr()
        return output, errors

    return run_here


def folder_of(root: Path, names: tuple[str, ...], count: int = 6) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(count + label):
                pixels = random.integers(0, 256, (12, 14, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def test_json_is_alone_and_is_what_the_folder_holds(tmp_path: Path, call: Call) -> None:
    data = folder_of(tmp_path / "data", NAMES)
    output, errors = call("evaluate", "--dataset", data, "--json", "--output", tmp_path / "out", "--probabilities")
    scores = json.loads(output)
    assert scores == json.loads((tmp_path / "out" / "scores.json").read_text())
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert errors == "63 test images (from test/)\n"
    assert (scores["images"], scores["part"], len(rows)) == (63, "test", 63)
    shares = np.array([[float(row[f"probability of {name}"]) for name in NAMES] for row in rows])
    labels = np.array([NAMES.index(row["class"]) for row in rows])
    assert scores["accuracy"] == np.mean(shares.argmax(1) == labels)
    assert scores["loss"] == pytest.approx(-np.log(shares[np.arange(63), labels]).mean(), abs=1e-4)
    deviation = np.log(shares[np.arange(63), labels]).std() / 63**0.5
    low, high = scores["intervals"]["loss"]
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=1e-3)
    # For any batch size, and in words.
    for size in (1, 63):
        again = json.loads(call("evaluate", "--dataset", data, "--json", "--batch-size", size)[0])
        assert again["loss"] == pytest.approx(scores["loss"], rel=1e-6)
        assert again["confusion_matrix"] == scores["confusion_matrix"]
    text, _ = call("evaluate", "--dataset", data, "--split", "train")
    assert text.splitlines()[0].endswith("of 54 train images are right")  # the others are val


def test_classes_of_the_data_set_may_be_some_of_the_network(tmp_path: Path, call: Call, refuses: Refuses) -> None:
    data = folder_of(tmp_path / "data", ("bee", "fox"), 9)
    output, errors = call("evaluate", "--dataset", data, "--json", "--output", tmp_path / "out")
    assert "the 2 classes of the data set are among the 7 of the network" in errors
    scores = json.loads(output)
    support = {row["class"]: row["support"] for row in scores["per_class"]}
    assert support == {name: {"bee": 9, "fox": 10}.get(name, 0) for name in NAMES}
    assert scores["macro_recall"] == pytest.approx(scores["balanced_accuracy"])
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [Path(row["image"]).parent.name for row in rows]
    other = folder_of(tmp_path / "other", ("bee", "yak"))
    refuses("evaluate", "--arch", "tiny", "--dataset", other, words=("other classes than the classifier (2 and 7)",))


def test_views_change_the_numbers(tmp_path: Path, call: Call) -> None:
    data = folder_of(tmp_path / "data", NAMES)
    losses = [
        json.loads(call("evaluate", "--dataset", data, "--json", *flags)[0])["loss"]
        for flags in ((), ("--tta", "flip"), ("--tta", "five-crop"))
    ]
    assert len(set(losses)) == 3


def test_the_data_set_is_read_before_the_weights(
    tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.loading.load_pretrained", lambda *_, **__: pytest.fail("weights are read"))
    refuses("evaluate", "--arch", "tiny", "--dataset", tmp_path, words=("has no class folders",))


def test_evaluate_replaces_nothing(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refuses("evaluate", "--arch", "tiny", "--dataset", "x", "--output", tmp_path, words=("--output", "not an empty"))
    refuses("evaluate", "--arch", "tiny", "--dataset", "x", "--probabilities", words=("--output",))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_predict_writes_the_probabilities_of_all_classes(tmp_path: Path, call: Call, refuses: Refuses) -> None:
    images = folder_of(tmp_path / "data", ("bee",)) / "test"
    flags = ("--probabilities", "--tta", "flip", "--topk", 50)
    text, _ = call("predict", images, "--format", "json", *flags)
    answers: list[dict[str, Any]] = json.loads(text)
    rows = list(csv.DictReader(call("predict", images, "--format", "csv", *flags)[0].splitlines()))
    assert len(answers) == len(rows) == 6
    for answer, row in zip(answers, rows, strict=True):
        shares = answer["probabilities"]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        # At most as many as there are.
        assert [(one["class"], one["probability"]) for one in answer["classes"]] == [
            (NAMES[label], shares[label]) for label in np.argsort(-np.array(shares), kind="stable")
        ]
        assert [float(row[f"probability of {name}"]) for name in NAMES] == shares
        assert (row["image"], row["class"]) == (answer["image"], NAMES[int(np.argmax(shares))])
    refuses("predict", "--arch", "tiny", images, "--probabilities", words=("--format csv",))
