"""The study of optimisers notices an Adagrad that forgets and an RMSProp that does not."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from experiments.studies.data import study_data
from experiments.studies.lab import Lab
from experiments.studies.optimizers import STUDY
from experiments.studies.optimizers_runs import _best, _steps
from experiments.studies.rates import AtRates
from experiments.studies.study import FAILS, HOLDS
from jaxnets.training import optimizers

SMALL = replace(STUDY.quick, images=100, batch_size=10, epochs=15, whole_images=50, whole_steps=20, rates=3)
_CLAIMS = ("adagrad-falls", "adagrad-never-rises", "rmsprop-bounded")


def verdicts() -> dict[str, str]:
    measured = STUDY.measure(Lab(study_data("digits"), 0), SMALL)
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


@pytest.mark.slow
def test_exchanging_adagrad_and_rmsprop_turns_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts()
    assert {name: found[name] for name in _CLAIMS} == dict.fromkeys(_CLAIMS, HOLDS)
    adagrad, rms = optimizers._scale_by_adagrad, optax.scale_by_rms

    def exchanged(*arguments: Any, **options: Any) -> optax.GradientTransformation:
        return adagrad()

    monkeypatch.setattr(optimizers, "_scale_by_adagrad", lambda: rms(0.99, eps_in_sqrt=False))
    monkeypatch.setattr(optax, "scale_by_rms", exchanged)
    jax.clear_caches()  # the programs of the true optimisers
    found = verdicts()
    jax.clear_caches()
    assert found["adagrad-never-rises"] == found["rmsprop-bounded"] == FAILS


def test_rates_are_tuned_on_the_run_that_tunes() -> None:
    tuning, final = (
        AtRates(
            losses=np.array(losses),
            epoch_losses=np.array(losses),
            effective=np.zeros(0),
            val_accuracies=np.array([[1.0, 0, 0], [0.5, 0.9, 0.9]]),
            test_accuracies=np.zeros(3),
            steps_an_epoch=1,
        )
        for losses in ([[0.5, 0.05, 0.5], [0.5, 0.3, 0.2]], [[0.05, 0.5, 0.5], [0.5, 0.05, 0.5]])
    )
    assert _best(tuning) == 2  # of the last quarter's best two, that of the lower loss
    assert _steps(tuning, final, 0.1) == 2  # rate 1 is fastest in the run that tunes
