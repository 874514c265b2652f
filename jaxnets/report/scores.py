"""The scores of an evaluation: a table for the terminal, and files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.csv_file import write_csv
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.report import figures
from jaxnets.training.evaluation import Evaluation
from jaxnets.training.predictions_file import write_predictions_file

_TITLES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    **{
        f"{kind}_{score}": f"{kind} {score.replace('f1', 'F1')}"
        for kind in ("macro", "weighted")
        for score in ("precision", "recall", "f1")
    },
}
_COLUMNS = ("precision", "recall", "f1")
# More classes than this are not all shown.
_MANY_CLASSES = 20
_LONGEST_NAME = 40


def scores_text(scores: Mapping[str, Any]) -> str:
    """The scores of `jaxnets.evaluation.all_scores`, with `part` and `loss`, as a table for the terminal.

    Of more than 20 classes, the 20 with the lowest F1 are shown, the worst first.
    """
    loss = "{:.4f} ({:.4f} to {:.4f})".format(scores["loss"], *scores["intervals"]["loss"])
    numbers = {title: _percent(scores, name) for name, title in _TITLES.items() if name in scores}
    numbers |= {
        f"{scores['part']} loss": loss,
        "calibration error": _percent(scores, "expected_calibration_error"),
    }
    width = max(map(len, numbers))
    lines = [f"{scores['right']:,} of {scores['images']:,} {scores['part']} images are right"]
    lines += [f"{title:{width}}  {number}" for title, number in numbers.items()]
    lines += ["In brackets: 95 % confidence intervals.", ""]
    rows = [row for row in scores["per_class"] if row["support"] or not scores["absent_classes"]]
    many = len(rows) > _MANY_CLASSES
    shown = sorted(rows, key=lambda row: row["f1"])[:_MANY_CLASSES] if many else rows
    names = [figures.shortened(row["class"], _LONGEST_NAME) for row in shown]
    width = max(len("class"), *map(len, names))
    lines.append(f"{'class':{width}}  precision   recall       F1  images")
    for name, row in zip(names, shown, strict=True):
        shares = "  ".join(f"{100 * row[column]:{size}.1f} %" for column, size in zip(_COLUMNS, (7, 5, 5), strict=True))
        lines.append(f"{name:{width}}  {shares}  {row['support']:6}")
    if many:
        lines.append(f"These are the {len(shown)} of {len(rows)} classes with the lowest F1; --output writes all.")
    return "\n".join(lines)


def _percent(scores: Mapping[str, Any], name: str) -> str:
    low, high = scores["intervals"][name]
    return f"{100 * scores[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def check_new_folder(folder: Path) -> None:
    """Raises InputError unless the folder is new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"--output {folder} exists and is not an empty folder; give another name or empty it")


def write_scores(
    folder: Path,
    scores: Mapping[str, Any],
    source: Source,
    class_names: Sequence[str],
    evaluation: Evaluation,
    *,
    probabilities: bool,
) -> None:
    """Writes scores.json, per-class.csv, predictions.csv, confusion.svg and reliability.svg to a new or empty folder.

    predictions.csv has the columns of a run's file, and with `probabilities` one more for each class.
    """
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = ("class", "support", *_COLUMNS)
    write_csv(folder / "per-class.csv", columns, ([row[name] for name in columns] for row in scores["per_class"]))
    write_predictions_file(
        folder / "predictions.csv", scores["part"], source, class_names, evaluation, probabilities=probabilities
    )
    curve = {name: np.array(values, float) for name, values in scores["reliability"].items()}
    confusion = np.array(scores["confusion_matrix"])
    if scores["absent_classes"]:
        occurring = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
        confusion, class_names = (
            confusion[np.ix_(occurring, occurring)],
            [class_names[label] for label in occurring.tolist()],
        )
    drawings = {
        "confusion.svg": figures.confusion_image(confusion, class_names),
        "reliability.svg": figures.reliability(
            curve["confidence"], curve["accuracy"], curve["images"], scores["expected_calibration_error"]
        ),
    }
    for name, drawing in drawings.items():
        # On its own a drawing has no page behind it.
        drawing = drawing.replace("<svg ", '<svg style="background: white" ', 1)
        (folder / name).write_text(drawing, encoding="utf-8", errors="backslashreplace")
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
