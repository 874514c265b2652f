"""Accuracy, precision, recall and F1 from labels and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scores:
    """The scores of predictions, from counts of images by class [K].

    `right` counts right answers, `support` labels, and `predictions` predictions. They may have leading axes, such as
    those of bootstrap replicates; the scores then have the same. Everything equals scikit-learn's functions with
    `zero_division=0`: a quotient of 0 by 0 is 0. Macro averages leave out classes whose `counted` [K] is false.
    """

    right: np.ndarray
    support: np.ndarray
    predictions: np.ndarray
    counted: np.ndarray | None = None

    @property
    def precision(self) -> np.ndarray:
        """The share of right answers among the predictions of each class [K]."""
        return self.right / np.maximum(self.predictions, 1)

    @property
    def recall(self) -> np.ndarray:
        """The share of right answers among the images of each class [K]."""
        return self.right / np.maximum(self.support, 1)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall [K]."""
        return 2 * self.right / np.maximum(self.predictions + self.support, 1)

    @property
    def accuracy(self) -> np.ndarray:
        """The share of right answers."""
        return self.right.sum(-1) / np.maximum(self.support.sum(-1), 1)

    @property
    def balanced_accuracy(self) -> np.ndarray:
        """The mean recall of the classes that have images."""
        return _mean(self.recall, self.support > 0)

    def macro(self, name: str) -> np.ndarray:
        """The mean of "precision", "recall" or "f1" over the classes that occur as a label or a prediction."""
        occurs = self.predictions + self.support > 0
        return _mean(getattr(self, name), occurs if self.counted is None else occurs & self.counted)

    def weighted(self, name: str) -> np.ndarray:
        """The mean of "precision", "recall" or "f1", weighted by the number of images of each class."""
        return _mean(getattr(self, name), self.support)

    def averages(self) -> dict[str, np.ndarray]:
        """All scores that are one number for all classes, by name."""
        names = ("precision", "recall", "f1")
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            **{f"macro_{name}": self.macro(name) for name in names},
            **{f"weighted_{name}": self.weighted(name) for name in names},
        }

    def per_class(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each class: "class", "support", "precision", "recall" and "f1"."""
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return [
            {"class": name, "support": int(self.support[i])} | {key: float(of[i]) for key, of in columns.items()}
            for i, name in enumerate(class_names)
        ]


def class_scores(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, counted: np.ndarray | None = None
) -> Scores:
    """The scores of predictions [N] for labels [N]; `counted` [K] are the classes of macro averages."""
    right, support, predictions = (
        np.bincount(classes, minlength=num_classes) for classes in (labels[labels == predicted], labels, predicted)
    )
    return Scores(right, support, predictions, counted)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of images of each label (row) that each class was predicted for (column), [K, K]."""
    cells = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of images whose label is among the `k` most probable classes; probabilities [N, K], labels [N].

    Of equal probabilities, the class with the higher index counts as more probable, as in scikit-learn.
    """
    return float(in_top_k(probabilities, labels, k).mean())


def in_top_k(probabilities: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether each label [N] is among the `k` most probable classes."""
    of_label = np.take_along_axis(probabilities, labels[:, None], 1)
    before = (probabilities == of_label) & (np.arange(probabilities.shape[1]) > labels[:, None])
    return ((probabilities > of_label) | before).sum(1) < k


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (values * weights).sum(-1) / np.maximum(weights.sum(-1), 1)
