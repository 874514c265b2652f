"""The study of layouts notices a kernel that is not transposed."""

from typing import Any

import pytest

from experiments.studies import layout
from experiments.studies.data import study_data
from experiments.studies.lab import Lab
from experiments.studies.layout import STUDY, Settings
from experiments.studies.study import FAILS, HOLDS

pytestmark = pytest.mark.slow


def verdicts() -> dict[str, str]:
    measured = STUDY.measure(Lab(study_data("digits"), 0), Settings(images=1))
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


def test_both_layouts_are_one_network() -> None:
    assert verdicts() == {"same-network": HOLDS, "reshaping": HOLDS}


def test_a_dense_layer_that_is_not_reordered_turns_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(params: Any) -> dict[str, Any]:
        order = {4: (3, 2, 0, 1), 2: (1, 0)}
        return {
            name: {"weight": layer["kernel"].transpose(order[layer["kernel"].ndim]), "bias": layer["bias"]}
            for name, layer in params.items()
        }

    monkeypatch.setattr(layout, "channels_first", careless)
    assert verdicts()["same-network"] == FAILS
