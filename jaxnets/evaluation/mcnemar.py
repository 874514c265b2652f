"""McNemar's test: do two classifiers differ on the same images?"""

from typing import NamedTuple

import numpy as np


class McNemar(NamedTuple):
    """The images that the first or the second classifier alone has right, and the p-value of equal accuracies."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """The exact two-sided test for answers of two classifiers [N] that are right or wrong, image by image.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages";
    exact form by the binomial distribution.
    """
    from scipy.special import bdtr

    first_right, second_right = np.asarray(first_right, bool), np.asarray(second_right, bool)
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    p_value = min(1.0, 2 * float(bdtr(min(only_first, only_second), differing, 0.5)))
    return McNemar(only_first, only_second, p_value)
