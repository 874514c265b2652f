"""All numbers of an evaluation against scikit-learn, and the files that hold them."""

import csv
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from jaxnets.data.sources import ArraySource
from jaxnets.errors import InputError
from jaxnets.evaluation import all_scores, mean_interval
from jaxnets.report.scores import check_new_folder, scores_text, write_scores
from jaxnets.training.evaluation import Evaluation


def answers(classes: int, images: int, present: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Random probabilities [N, K], and labels [N] of skewed frequency, of the classes `present`."""
    random = np.random.default_rng(classes)
    among = np.arange(classes) if present is None else np.array(present)
    weights = 1.0 / (1 + np.arange(len(among)))
    labels = random.choice(among, images, p=weights / weights.sum())
    logits = random.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    shares = np.exp(logits)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("present", [None, [1, 4, 6]])
def test_scores_are_those_of_scikit_learn(present: list[int] | None) -> None:
    probabilities, labels = answers(8, 300, present)
    predicted, names = probabilities.argmax(1), [f"class {label}" for label in range(8)]
    counted = None if present is None else np.isin(np.arange(8), present)
    scores = all_scores(probabilities, labels, names, counted)
    json.dumps(scores, allow_nan=False)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true") if present else nullcontext():
        assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    hits = top_k_accuracy_score(labels, probabilities, k=5, labels=range(8))
    assert scores["top5_accuracy"] == pytest.approx(hits, abs=1e-12)
    for kind in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, labels=present, average=kind, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert scores[f"{kind}_{name}"] == pytest.approx(value, abs=1e-12)
    if present:  # wrong answers are of other classes too, which must not count
        everything = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
        assert scores["macro_f1"] > everything[2] + 0.1
        assert [row["support"] for row in scores["per_class"] if row["class"] == "class 0"] == [0]
    np.testing.assert_array_equal(scores["confusion_matrix"], confusion_matrix(labels, predicted, labels=range(8)))
    for name, (low, high) in scores["intervals"].items():
        assert low < scores[name] < high, name
        assert high - low < 0.3
    curve = scores["reliability"]
    assert len(curve["images"]) == len(curve["accuracy"]) == len(curve["confidence"]) == 15
    assert sum(curve["images"]) == 300
    assert [value is None for value in curve["accuracy"]] == [count == 0 for count in curve["images"]]


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    # For normal values, for which it is exact in large samples. The tolerance is three standard errors.
    draws = np.random.default_rng(0).normal(1, 1, (4000, 400))
    bounds = np.array([mean_interval(of.mean(), of.std(), 400) for of in draws])
    covered = np.mean((bounds[:, 0] < 1) & (bounds[:, 1] > 1))
    assert covered == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 4000) ** 0.5)


def of_part(classes: int, images: int = 200) -> tuple[dict[str, Any], Evaluation, tuple[str, ...]]:
    probabilities, labels = answers(classes, images)
    names = tuple(f"class {label} " + "x" * 60 for label in range(classes))
    scores = all_scores(probabilities, labels, names)
    loss = float(-np.log(probabilities[np.arange(images), labels]).mean())
    scores |= {"part": "test", "loss": loss, "absent_classes": 0}
    scores["intervals"]["loss"] = [loss - 0.1, loss + 0.1]
    return scores, Evaluation(probabilities, labels, {}), names


@pytest.mark.parametrize("classes", [2, 30])
def test_the_table_is_narrow_and_shows_the_worst_of_many_classes_first(classes: int) -> None:
    scores, _, _ = of_part(classes)
    text = scores_text(scores)
    assert max(map(len, text.splitlines())) < 80
    low, high = scores["intervals"]["accuracy"]
    assert f"accuracy  {' ' * 10}{100 * scores['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})" in text
    assert ("top-5 accuracy" in text) == (classes > 5)
    shown = re.findall(r"^class (\d+) .*\N{HORIZONTAL ELLIPSIS}", text, re.MULTILINE)
    by_f1 = sorted(range(classes), key=lambda label: scores["per_class"][label]["f1"])
    assert [int(label) for label in shown] == ([0, 1] if classes == 2 else by_f1[:20])
    assert ("These are the 20 of 30 classes with the lowest F1" in text) == (classes == 30)


def test_files_hold_the_scores_and_replace_none(tmp_path: Path) -> None:
    scores, evaluation, names = of_part(3)
    source = ArraySource(np.zeros((200, 2, 2), np.uint8), evaluation.labels)
    write_scores(tmp_path / "a" / "b", scores, source, names, evaluation, probabilities=True)
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "a" / "b").iterdir()}
    assert files.keys() == {"scores.json", "per-class.csv", "predictions.csv", "confusion.svg", "reliability.svg"}
    assert json.loads(files["scores.json"]) == scores
    rows = list(csv.DictReader(files["per-class.csv"].splitlines()))
    assert [(row["class"], float(row["f1"])) for row in rows] == [
        (row["class"], row["f1"]) for row in scores["per_class"]
    ]
    rows = list(csv.DictReader(files["predictions.csv"].splitlines()))
    assert len(rows) == 200
    for index, row in enumerate(rows):
        shares = [float(row[f"probability of {name}"]) for name in names]
        np.testing.assert_allclose(shares, evaluation.probabilities[index], atol=1e-6)
        assert (row["part"], row["image"], row["class"]) == (
            "test",
            source.where(index),
            names[evaluation.labels[index]],
        )
        assert row["predicted"] == names[int(np.argmax(shares))]
        assert row["class_probability"] == row[f"probability of {row['class']}"]
    for count in np.array(scores["confusion_matrix"]).ravel():
        assert f">{count}</text>" in files["confusion.svg"]
    for folder in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "scores.json"):
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            check_new_folder(folder)
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty")
