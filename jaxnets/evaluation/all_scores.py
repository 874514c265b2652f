"""All numbers by which a classifier's answers are judged."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnets.evaluation.calibration import brier_score, calibration, calibration_interval
from jaxnets.evaluation.intervals import bootstrap_intervals, share_interval
from jaxnets.evaluation.scores import class_scores, confusion_matrix, in_top_k

TOP = 5


def all_scores(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], counted: np.ndarray | None = None
) -> dict[str, Any]:
    """Scores, 95 % intervals, calibration and the confusion matrix of probabilities [N, K] and labels [N], as JSON.

    `intervals` has the bounds of scores by name. The top-5 accuracy is there with more than five classes. Macro
    averages are over the classes `counted` [K], by default all that occur. Bins of the reliability curve without
    images are null. ValueError without images.
    """
    count, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    right = predicted == labels
    confusion = confusion_matrix(labels, predicted, classes)
    scores = class_scores(labels, predicted, classes, counted)
    values = {name: float(value) for name, value in scores.averages().items()}
    intervals = bootstrap_intervals(confusion, counted=counted)
    intervals["accuracy"] = share_interval(int(right.sum()), count)
    if classes > TOP:
        hits = int(in_top_k(probabilities, labels, TOP).sum())
        values["top5_accuracy"], intervals["top5_accuracy"] = hits / count, share_interval(hits, count)
    curve = calibration(probabilities.max(1), right)
    intervals["expected_calibration_error"] = calibration_interval(probabilities.max(1), right)
    return {
        "images": count,
        "right": int(right.sum()),
        **values,
        "expected_calibration_error": curve.expected_error,
        "brier_score": brier_score(probabilities, labels),
        "intervals": {name: list(bounds) for name, bounds in intervals.items()},
        "per_class": scores.per_class(class_names),
        "confusion_matrix": confusion.tolist(),
        "reliability": {
            "confidence": _numbers(curve.confidence),
            "accuracy": _numbers(curve.accuracy),
            "images": curve.counts.tolist(),
        },
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
