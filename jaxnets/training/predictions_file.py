"""predictions.csv: a row for each image of an evaluation."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnets.data.sources import Source
from jaxnets.training.evaluation import Evaluation


def write_predictions_file(
    path: Path,
    part: str,
    source: Source,
    class_names: Sequence[str],
    evaluation: Evaluation,
    *,
    probabilities: bool = False,
) -> None:
    """Writes the label and the prediction of each image of a part, and with `probabilities` those of all classes."""
    labels = evaluation.labels
    own = evaluation.probabilities[np.arange(len(labels)), labels]
    header = ["part", "index", "image", "class", "predicted", "probability", "class_probability"]
    if probabilities:
        header += probability_columns(class_names)
    numbers = zip(labels, evaluation.predicted, evaluation.confidence, own, strict=True)
    rows = (
        (part, i, source.where(i), class_names[label], class_names[guess], f"{most:.6f}", f"{share:.6f}")
        + (tuple(f"{value:.6f}" for value in evaluation.probabilities[i]) if probabilities else ())
        for i, (label, guess, most, share) in enumerate(numbers)
    )
    write_csv(path, header, rows)


def probability_columns(class_names: Sequence[str]) -> list[str]:
    """The names of the columns with the probability of each class."""
    return [f"probability of {name}" for name in class_names]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file in UTF-8. Names of files may have bytes that are not UTF-8; they are kept."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
