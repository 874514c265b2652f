"""Likely label errors, against plain loops and where the truth is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxnets.data.datasets import digits
from jaxnets.data.sources import ArraySource
from jaxnets.errors import InputError
from jaxnets.inspection.label_errors import confident_joint, find_label_errors
from jaxnets.inspection.linear_probe import fit_logistic, out_of_sample
from jaxnets.models.features import head_inputs
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.evaluation import FeatureExtractor
from jaxnets.training.loop import train
from jaxnets.training.recipes import recipe_for

REFERENCE = Path(__file__).parents[1] / "references" / "cleanlab.npz"


def flipped(labels: np.ndarray, seed: int, share: float = 0.05, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is wrong, and which [N] those are."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[random.choice(len(labels), round(share * len(labels)), replace=False)] = True
    return np.where(wrong, (labels + random.integers(1, classes, len(labels))) % classes, labels), wrong


def noisy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [300, 4] that say something of the labels [300]; class 3 is rare."""
    random = np.random.default_rng(seed)
    labels = random.choice(4, 300, p=(0.5, 0.3, 0.18, 0.02))
    logits = random.normal(size=(300, 4)) + 2 * np.eye(4)[labels]
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def joint_by_loops(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Equation 1 of the paper, one image and one class at a time."""
    classes = probabilities.shape[1]
    pairs = list(zip(probabilities, labels, strict=True))
    thresholds = [np.mean([p[j] for p, label in pairs if label == j]) for j in range(classes)]
    joint = np.zeros((classes, classes), int)
    for p, label in pairs:
        reached = [j for j in range(classes) if p[j] >= thresholds[j]]
        if reached:
            joint[label, max(reached, key=lambda j: p[j])] += 1
    return joint


@pytest.mark.parametrize("seed", [0, 1])
def test_the_confident_joint_is_that_of_the_paper(seed: int) -> None:
    probabilities, labels = noisy(seed)
    joint = joint_by_loops(probabilities, labels)
    np.testing.assert_array_equal(confident_joint(probabilities, labels), joint)
    errors = find_label_errors(probabilities, labels)
    assert errors.likely.sum() == joint.sum() - np.trace(joint) > 10
    # The shares of the labels are those that were counted; each row is in proportion to the counts.
    np.testing.assert_allclose(errors.joint.sum(axis=1), np.bincount(labels, minlength=4) / 300)
    np.testing.assert_allclose(errors.joint / errors.joint.sum(1, keepdims=True), joint / joint.sum(1, keepdims=True))


def test_errors_are_those_that_cleanlab_finds() -> None:
    with np.load(REFERENCE) as reference:
        for seed in (0, 1):
            probabilities, labels = noisy(seed)
            np.testing.assert_allclose(probabilities[:3], reference[f"probabilities{seed}"], rtol=1e-6)
            errors = find_label_errors(probabilities, labels)
            np.testing.assert_array_equal(errors.likely, reference[f"issues{seed}"])
            np.testing.assert_array_equal(confident_joint(probabilities, labels), reference[f"joint{seed}"])
            # cleanlab's margin is scaled to 0 to 1.
            np.testing.assert_allclose((errors.margin + 1) / 2, reference[f"margin{seed}"], atol=1e-6)
            np.testing.assert_allclose(errors.self_confidence, reference[f"self_confidence{seed}"], atol=1e-6)


def test_the_order_is_likely_errors_first_then_by_margin() -> None:
    errors = find_label_errors(*noisy(0))
    assert sorted(errors.order) == list(range(300))
    count = errors.likely.sum()
    assert errors.likely[errors.order[:count]].all()
    for part in (errors.order[:count], errors.order[count:]):
        assert (np.diff(errors.margin[part]) >= 0).all()
    np.testing.assert_allclose(errors.loss, -np.log(errors.self_confidence))


def test_a_class_without_images_is_never_suggested_as_a_likely_error() -> None:
    probabilities, labels = noisy(0)
    labels = np.where(labels == 3, 0, labels)
    errors = find_label_errors(probabilities, labels)
    assert confident_joint(probabilities, labels)[:, 3].sum() == 0
    assert np.isfinite(errors.joint).all()
    with pytest.raises(InputError, match="expected 0 to 3"):
        find_label_errors(probabilities, labels + 4)
    with pytest.raises(InputError, match=r"expected \[N, K\] and \[N\]"):
        find_label_errors(probabilities, labels[:-1])


def test_the_linear_classifier_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    inputs = (random.normal(size=(200, 6)) + np.eye(3, 6)[labels]).astype(np.float32)
    weights = fit_logistic(inputs, labels, 3, penalty=5.0)
    expected = LogisticRegression(C=1 / 5.0, tol=1e-8, max_iter=1000).fit(inputs, labels)
    np.testing.assert_allclose(weights[:-1].T, expected.coef_, atol=2e-3)
    np.testing.assert_allclose(weights[-1] - weights[-1].mean(), expected.intercept_, atol=2e-3)


def test_no_image_is_judged_by_a_classifier_that_saw_it() -> None:
    # Random labels of many random features: a classifier knows those that it has learned, and guesses others.
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(120, 100)), random.integers(0, 2, 120)
    seen = fit_logistic(features.astype(np.float32), labels, 2, penalty=0.1)
    assert ((features @ seen[:-1] + seen[-1]).argmax(1) == labels).mean() > 0.95
    probabilities = out_of_sample(features, labels, 2, penalty=0.1)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(1) == labels).mean() < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_with_flipped_labels_are_found(seed: int, tmp_path: Path) -> None:
    data = digits()
    labels, wrong = flipped(data.train.labels, seed)  # type: ignore[attr-defined]
    source = ArraySource(data.train.images, labels)  # type: ignore[attr-defined]
    recipe = replace(recipe_for("resnet20_cifar", "digits"), epochs=5)
    train(Config("resnet20_cifar", recipe, seed=seed), tmp_path / "run", replace(data, train=source))
    run = load_classifier(tmp_path / "run")
    extract = FeatureExtractor(run.model, run.preprocessing, head_inputs(run.model), 128)
    features, _ = extract(run.variables, source)
    order = find_label_errors(out_of_sample(features, labels, 10), labels).order
    assert wrong[order[: len(order) // 10]].sum() >= 0.8 * wrong.sum()
