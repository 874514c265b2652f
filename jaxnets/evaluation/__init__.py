"""Judges predictions: scores, calibration, confidence intervals and paired tests, in NumPy."""

from jaxnets.evaluation.all_scores import all_scores
from jaxnets.evaluation.calibration import Calibration, brier_score, calibration, calibration_interval
from jaxnets.evaluation.intervals import bootstrap_intervals, mean_interval, share_interval
from jaxnets.evaluation.mcnemar import McNemar, mcnemar
from jaxnets.evaluation.scores import Scores, class_scores, confusion_matrix, in_top_k, top_k_accuracy

__all__ = [
    "Calibration",
    "McNemar",
    "Scores",
    "all_scores",
    "bootstrap_intervals",
    "brier_score",
    "calibration",
    "calibration_interval",
    "class_scores",
    "confusion_matrix",
    "in_top_k",
    "mcnemar",
    "mean_interval",
    "share_interval",
    "top_k_accuracy",
]
