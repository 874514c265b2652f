"""Likely label errors by confident learning (Northcutt et al. 2021, JAIR 70, arXiv 1911.00068), and hard images."""

from typing import NamedTuple

import numpy as np

from jaxnets.errors import InputError


class LabelErrors(NamedTuple):
    """Images by how likely their label is wrong; arrays [N] in the order of the images, and matrices [K, K].

    `order` holds the indices of the images, the likeliest errors first: those that confident learning counts as errors
    (`likely`), then the others, each by `margin`. `margin` is the probability of the label less the highest probability
    of another class, and `suggested` is the most probable class. `loss` is the cross-entropy: the highest are the
    hardest images. `joint` is the estimated joint distribution of labels (rows) and true classes (columns).
    """

    order: np.ndarray
    likely: np.ndarray
    suggested: np.ndarray
    self_confidence: np.ndarray
    margin: np.ndarray
    loss: np.ndarray
    joint: np.ndarray


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Finds likely label errors from probabilities [N, K] of images that the classifier did not learn, and labels [N].

    An image counts as an error if a class other than its label has a probability of at least that class's threshold,
    and the highest of all classes that reach theirs (Northcutt et al. 2021, equation 1: the off-diagonal of the
    confident joint). A class's threshold is the mean probability that images with its label have for it. Raises
    InputError for arrays of other shapes, and for labels out of range.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise InputError(
            f"probabilities are {list(probabilities.shape)} and labels {list(labels.shape)}; expected [N, K] and [N]"
        )
    count, classes = probabilities.shape
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels are from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    if not np.isfinite(probabilities).all():
        raise InputError("the probabilities are not finite; give other weights")
    rows = np.arange(count)
    own = probabilities[rows, labels]
    counts = confident_joint(probabilities, labels)
    confident = _confident_class(probabilities, labels)
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    margin = own - others.max(axis=1)
    likely = (confident >= 0) & (confident != labels)
    return LabelErrors(
        order=np.lexsort((margin, ~likely)),
        likely=likely,
        suggested=probabilities.argmax(axis=1),
        self_confidence=own,
        margin=margin,
        loss=-np.log(np.maximum(own, np.finfo(np.float64).tiny)),
        joint=_calibrated(counts, labels),
    )


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of images [K, K] with each label (rows) that confidently belong to each class (columns).

    Images without a class that reaches its threshold are not counted. Northcutt et al. 2021, section 3.1.
    """
    classes = probabilities.shape[1]
    confident = _confident_class(probabilities, labels)
    counted = confident >= 0
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[counted], confident[counted]), 1)
    return joint


def _confident_class(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The most probable of the classes whose threshold an image reaches [N]; -1 if there is none."""
    classes = probabilities.shape[1]
    totals = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=classes)
    # Of a class without images nothing is known: no image is counted into it.
    thresholds = np.where(totals > 0, sums / np.maximum(totals, 1), np.inf)
    reached = probabilities >= thresholds
    best = np.where(reached, probabilities, -np.inf).argmax(axis=1)
    return np.where(reached.any(axis=1), best, -1)


def _calibrated(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The joint distribution: rows in proportion to the number of images of each label (equation 3)."""
    of_label = np.bincount(labels, minlength=len(counts))
    rows = counts.sum(axis=1)
    # A label of which no image is confident: its images count as right.
    counts = np.where((rows == 0)[:, None], np.eye(len(counts)), counts)
    joint = counts / counts.sum(axis=1, keepdims=True) * of_label[:, None]
    return joint / joint.sum()
