"""Scores, calibration and tests of predictions, against scikit-learn, SciPy and plain loops."""

import warnings

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from jaxnets.evaluation import (
    bootstrap_intervals,
    brier_score,
    calibration,
    calibration_interval,
    class_scores,
    confusion_matrix,
    mcnemar,
    share_interval,
    top_k_accuracy,
)

# Classes that have no image, that are never predicted, and both.
CASES = ["random", "skewed", "absent", "never predicted", "neither", "one class", "all right", "all wrong"]


def predictions(case: str, classes: int = 7, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, K] and labels [N]."""
    rng = np.random.default_rng(CASES.index(case))
    shares = {"skewed": [0.9, *[0.1 / (classes - 1)] * (classes - 1)], "one class": [1, *[0] * (classes - 1)]}
    labels = rng.choice(classes, count, p=shares.get(case))
    if case in ("absent", "neither"):
        labels[labels == 2] = 3
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    if case == "all right":
        logits += 100 * np.eye(classes)[labels]
    if case == "all wrong":
        logits -= 100 * np.eye(classes)[labels]
    if case in ("never predicted", "neither"):
        logits[:, 2] = -50
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    return probabilities / probabilities.sum(1, keepdims=True), labels


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case: str) -> None:
    probabilities, labels = predictions(case)
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    scores = class_scores(labels, predicted, classes)
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(getattr(scores, name), values, rtol=1e-12)
    averages = scores.averages()
    assert averages["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prediction of a class that has no image
        assert averages["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted), rel=1e-12)
    for average in ("macro", "weighted"):
        expected = sk.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        actual = [averages[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        np.testing.assert_allclose(actual, expected[:3], rtol=1e-12)
    matrix = confusion_matrix(labels, predicted, classes)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predicted, labels=range(classes)))
    for k in (1, 3, classes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # k equal to the number of classes
            share = sk.top_k_accuracy_score(labels, probabilities, k=k, labels=range(classes))
        assert top_k_accuracy(probabilities, labels, k) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_ties_count_as_in_scikit_learn(k: int) -> None:
    probabilities, labels = np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])
    expected = sk.top_k_accuracy_score(labels, probabilities, k=k)
    assert 0 < expected < 1
    assert top_k_accuracy(probabilities, labels, k) == expected


@pytest.mark.parametrize("case", CASES)
def test_the_brier_score_is_that_of_a_loop(case: str) -> None:
    probabilities, labels = predictions(case)
    total = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        total += sum((p - (k == label)) ** 2 for k, p in enumerate(row))
    assert brier_score(probabilities, labels) == pytest.approx(total / len(labels), rel=1e-9)


def test_the_reliability_curve_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 3000)
    right = rng.uniform(size=3000) < confidence**2
    curve = calibration(confidence, right, bins=10)
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=10)
    occupied = curve.counts > 0
    np.testing.assert_allclose(curve.accuracy[occupied], accuracy, rtol=1e-12)
    np.testing.assert_allclose(curve.confidence[occupied], mean_confidence, rtol=1e-12)
    assert not occupied[0]
    # The expected error of confidence p and accuracy p^2 is the mean of p - p^2.
    assert curve.expected_error == pytest.approx((confidence - confidence**2).mean(), abs=0.02)


def test_the_expected_calibration_error_is_that_of_a_loop() -> None:
    # Confidences on the bounds of bins belong to the bin below: (0.2, 0.4] holds 0.4.
    confidence = np.array([0.2, 0.4, 0.4, 0.41, 1.0, 1.0, 0.0])
    right = np.array([1, 0, 1, 1, 1, 0, 0], bool)
    error = 0.0
    for b in range(5):
        inside = (confidence > b / 5) & (confidence <= (b + 1) / 5) | ((confidence == 0) & (b == 0))
        if inside.any():
            error += inside.sum() * abs(confidence[inside].mean() - right[inside].mean())
    curve = calibration(confidence, right, bins=5)
    assert curve.expected_error == pytest.approx(error / 7, rel=1e-12)
    assert curve.counts.tolist() == [2, 2, 1, 0, 2]


def sure(random: np.random.Generator, count: int, excess: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers that are right less often than their confidence says by `excess`: their true calibration error."""
    confidence = random.uniform(0.3, 0.95, count)
    return confidence, random.random(count) < confidence - excess


@pytest.mark.parametrize("excess", [0.0, 0.02, 0.1])
def test_the_interval_of_the_calibration_error_covers_it(excess: float) -> None:
    random = np.random.default_rng(0)
    bounds = np.array([calibration_interval(*sure(random, 400, excess)) for _ in range(300)])
    covered = np.mean((bounds[:, 0] <= excess) & (excess <= bounds[:, 1]))
    # Three standard errors below what the function promises.
    assert covered >= 0.925 - 3 * (0.925 * 0.075 / 300) ** 0.5


def test_the_interval_of_a_large_calibration_error_is_as_wide_as_a_bootstrap_over_images() -> None:
    random = np.random.default_rng(1)
    confidence, right = sure(random, 2000, 0.2)
    low, high = calibration_interval(confidence, right)
    drawn = random.integers(0, 2000, (1000, 2000))
    errors = [calibration(confidence[rows], right[rows]).expected_error for rows in drawn]
    least, most = np.percentile(errors, [2.5, 97.5])
    assert high - low == pytest.approx(most - least, rel=0.1)
    assert low < calibration(confidence, right).expected_error < high
    # Certain and right: no error, and no chance to show one.
    assert calibration_interval(np.ones(9), np.ones(9, bool)) == (0.0, 0.0)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (83, 100), (9_999, 10_000)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int) -> None:
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert share_interval(right, count) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_bootstrap_intervals_have_the_width_of_the_binomial_distribution() -> None:
    """Resampled right answers are binomial; F1 and the others are compared with a bootstrap over images."""
    probabilities, labels = predictions("skewed")
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    matrix = confusion_matrix(labels, predicted, classes)
    intervals = bootstrap_intervals(matrix, replicates=8000)
    share = (labels == predicted).mean()
    expected = binom.ppf([0.025, 0.975], len(labels), share) / len(labels)
    np.testing.assert_allclose(intervals["accuracy"], expected, atol=1.01 / len(labels))
    rng = np.random.default_rng(1)
    by_images = []
    for _ in range(800):
        drawn = rng.integers(0, len(labels), len(labels))
        by_images.append(class_scores(labels[drawn], predicted[drawn], classes).averages())
    for name in ("macro_f1", "balanced_accuracy", "weighted_f1"):
        low, high = np.percentile([averages[name] for averages in by_images], [2.5, 97.5])
        np.testing.assert_allclose(intervals[name], (low, high), atol=0.15 * (high - low))
    assert bootstrap_intervals(matrix) == bootstrap_intervals(matrix)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemars_test_is_the_binomial_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.uniform(size=60) < share for share in (0.8, 0.8 - 0.1 * seed))
    only_first, only_second, p_value = mcnemar(first, second)
    assert (only_first, only_second) == (sum(first > second), sum(second > first))
    assert p_value == pytest.approx(binomtest(only_first, only_first + only_second).pvalue, rel=1e-9)


def test_equal_answers_do_not_differ() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1.0)
