"""Calibration: does a classifier that says 80 % answer right in 80 % of the cases?"""

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """A reliability curve: the mean confidence, the accuracy and the number of images of each bin [B].

    Bins without images have NaN as confidence and accuracy. `expected_error` is the expected calibration error (ECE):
    the mean distance between confidence and accuracy, weighted by images.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    expected_error: float


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """The calibration of predictions with these probabilities [N], which are right or wrong [N].

    The bins divide 0 to 1 equally and include their upper bounds. Source: Guo et al. 2017, "On Calibration of Modern
    Neural Networks", equations 2 to 5, with their 15 bins.
    """
    index = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, bins) / counts
        accuracy = np.bincount(index, right, bins) / counts
    distance = np.abs(np.nan_to_num(accuracy - mean_confidence))
    return Calibration(mean_confidence, accuracy, counts, float((counts * distance).sum() / max(counts.sum(), 1)))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean over images of the squared distance between probabilities [N, K] and one-hot labels [N], 0 to 2.

    Source: Brier 1950, "Verification of Forecasts Expressed in Terms of Probability", equation 2.
    """
    squares = np.square(probabilities, dtype=np.float64).sum(1)
    of_label = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(np.float64)
    return float((squares - 2 * of_label + 1).mean())
