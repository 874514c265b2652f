"""The study of activation functions notices a network that is not linear, and one that has to be."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from experiments.studies.activations import STUDY, Settings, epochs_to, matrix_distance, parity
from experiments.studies.data import arrays, study_data, subset
from experiments.studies.lab import Lab
from experiments.studies.study import FAILS, HOLDS

TINY = Settings(images=32, epochs=1)


@pytest.mark.parametrize(
    ("errors", "epochs"),
    [
        ([0.9, 0.5, 0.1], 2.625),
        ([0.2, 0.1], 1.0),
        ([0.9, 0.25], 2.0),
        ([0.9, 0.8, 0.7], 3.0),
        ([0.9, 0.5, 0.0], 2.5),
    ],
)
def test_the_epoch_of_an_error_is_on_the_line_between_two(errors: list[float], epochs: float) -> None:
    assert epochs_to(0.25, errors) == pytest.approx(epochs)
    fine = np.linspace(1, len(errors), 10_001)  # the same by looking along the whole line
    reached = np.interp(fine, np.arange(1, len(errors) + 1), errors) <= 0.25
    assert epochs_to(0.25, errors) == pytest.approx(fine[reached][0] if reached.any() else len(errors), abs=1e-3)


def test_no_linear_classifier_tells_even_digits_from_odd_ones() -> None:
    data = parity(subset(study_data("digits"), 0, 1000, val=False))
    images, labels = arrays(data.train)
    digits = arrays(subset(study_data("digits"), 0, 1000, val=False).train)[1]
    assert labels.tolist() == [digit in (1, 3, 5, 7, 9) for digit in digits]
    assert data.class_names == ("even", "odd")
    flat = images.reshape(len(images), -1) / 255.0
    assert LogisticRegression(max_iter=1000, C=100.0).fit(flat, labels).score(flat, labels) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "linear"),
    [
        ({"activation": "identity", "pooling": "average"}, True),
        ({"activation": "identity", "pooling": "max"}, False),
        ({"activation": "leaky_relu", "pooling": "average"}, False),
    ],
)
def test_a_network_without_activations_is_one_matrix(options: dict[str, str], linear: bool) -> None:
    distance = matrix_distance(arrays(study_data("digits").test)[0][:8], options, 0)
    assert distance < 1e-10 if linear else distance > 1e-3


@pytest.mark.slow
def test_a_hidden_activation_turns_the_verdicts() -> None:
    found = []
    for settings in (TINY, replace(TINY, without="tanh")):
        measured = STUDY.measure(Lab(study_data("digits"), 0), settings)
        verdicts = {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}
        found.append([verdicts[name] for name in ("collapse", "learning")])
    assert found == [[HOLDS, HOLDS], [FAILS, FAILS]]
