"""Confidence intervals of scores: how far another test set of the same size could have been."""

import math
from statistics import NormalDist

import numpy as np

from jaxnets.evaluation.scores import Scores

REPLICATES = 2000
_CELLS_AT_ONCE = 2_000_000


def share_interval(right: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, such as accuracy: `right` of `count` images.

    The bootstrap would give no width to a share of 0 or 1. Source: Wilson 1927, "Probable Inference, the Law of
    Succession, and Statistical Inference".
    """
    if not count:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf((1 + level) / 2), right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(mean: float, deviation: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """The normal interval of the mean of `count` values with a standard deviation, such as the loss of images.

    It is approximate: the means of a few hundred skewed values, as losses are, lie in it less often than `level`. Of
    400 exponential values it covers the mean in about 93.5 % of the cases, not in 95 %.
    """
    half = NormalDist().inv_cdf((1 + level) / 2) * deviation / math.sqrt(count)
    return mean - half, mean + half


def bootstrap_intervals(
    confusion: np.ndarray,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    counted: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of all `Scores.averages` of a confusion matrix [K, K].

    To draw images with replacement is to draw the cells of the matrix from a multinomial distribution. The intervals
    are the same for the same seed. `counted` [K] are the classes of macro averages. Source: Efron and Tibshirani 1993,
    "An Introduction to the Bootstrap", chapter 13.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(confusion)
    cells = confusion[rows, columns]
    if not len(cells):
        raise ValueError("the confusion matrix is empty; expected at least one image")
    classes = len(confusion)
    diagonal = rows == columns
    at_once = max(_CELLS_AT_ONCE // len(cells), 1)
    averages = []
    for start in range(0, replicates, at_once):
        drawn = rng.multinomial(cells.sum(), cells / cells.sum(), size=min(at_once, replicates - start))
        counts = (_sums(drawn[:, diagonal], rows[diagonal], classes), _sums(drawn, rows, classes))
        averages.append(Scores(*counts, _sums(drawn, columns, classes), counted).averages())
    tails = (50 * (1 - level), 50 * (1 + level))
    intervals = {}
    for name in averages[0]:
        low, high = np.percentile(np.concatenate([part[name] for part in averages]), tails)
        intervals[name] = (float(low), float(high))
    return intervals


def _sums(counts: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums counts [R, C] of cells over the class [C] of each cell, to [R, num_classes]."""
    sums = np.zeros((num_classes, len(counts)), counts.dtype)
    np.add.at(sums, classes, counts.T)
    return sums.T
