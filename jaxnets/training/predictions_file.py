"""predictions.csv: a row for each image of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnets.csv_file import write_csv
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
