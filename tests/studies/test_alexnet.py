"""The study of AlexNet notices dropout that drops nothing, and measures a GPU only where there is one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.studies import alexnet
from experiments.studies.alexnet import STUDY, Settings, gpu_speedup
from experiments.studies.data import study_data
from experiments.studies.lab import Lab
from experiments.studies.study import FAILS, HOLDS, UNDECIDED
from jaxnets.data.sources import ArraySource

TINY = Settings(
    num_filters=8, hidden_features=64, images=40, test_images=60, epochs=25, batch_size=20, learning_rate=3e-3
)
SOURCE = ArraySource(np.zeros((2, 8, 8), np.uint8), np.arange(2))


@pytest.mark.slow
def test_dropout_that_drops_nothing_turns_the_verdict() -> None:
    found = []
    for settings in (TINY, replace(TINY, dropout_rate=0.0)):
        measured = STUDY.measure(Lab(study_data("digits"), 0), settings)
        found.append({verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])})
    honest, sabotaged = found
    assert honest["gap"] == HOLDS
    assert {sabotaged[name] for name in ("gap", "accuracy", "slower")} == {FAILS}


def _run(accuracies: list[float], test_loss: float, train_loss: float) -> dict[str, Any]:
    return {
        "test_accuracies": accuracies,
        "test_accuracy": accuracies[-1],
        "test_loss": test_loss,
        "train_loss": train_loss,
    }


def test_numbers_of_the_claims() -> None:
    measured = {
        "dropout and LRN": _run([0.1, 0.2, 0.74, 0.9], 0.5, 0.3),
        "without dropout": _run([0.1, 0.75, 0.7, 0.8], 0.9, 0.1),
        "without LRN": _run([0.1, 0.2, 0.3, 0.95], 0.5, 0.3),
        "gpu": 7.0,
    }
    found = {verdict.claim.name: verdict for verdict in STUDY.judge([measured])}
    values = {name: verdict.values[0] for name, verdict in found.items()}
    assert values == pytest.approx({"gap": 0.6, "accuracy": 10.0, "slower": 2.0, "lrn": -5.0, "gpu": 7.0})
    assert {name for name, verdict in found.items() if verdict.verdict == FAILS} == {"lrn"}


def test_without_a_gpu_there_is_no_verdict_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(platform: str) -> list[Any]:
        if platform == "gpu":
            raise RuntimeError("Unknown backend: 'gpu' requested")
        return jax.local_devices()

    monkeypatch.setattr(jax, "devices", devices)
    gain = gpu_speedup(SOURCE, 2)
    (claim,) = (claim for claim in STUDY.claims if claim.name == "gpu")
    assert gain is None
    assert claim.judge([{"gpu": gain}]).verdict == UNDECIDED


@pytest.mark.slow
def test_the_speedup_is_the_ratio_of_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = jax.local_devices()
    monkeypatch.setattr(jax, "devices", lambda platform: [second if platform == "gpu" else first])
    # Six seconds on the first device and two on the second, in each of six rounds.
    clock = iter(np.cumsum([0, 6, 0, 2] * 6).tolist())
    monkeypatch.setattr(alexnet, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert gpu_speedup(SOURCE, 2, 63, num_filters=6, hidden_features=8) == pytest.approx(3)
