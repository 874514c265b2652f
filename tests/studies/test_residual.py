"""The study of residual learning notices missing shortcuts and norms, and reads norms and kernels rightly."""

from dataclasses import replace
from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.studies import residual
from experiments.studies.data import study_data
from experiments.studies.lab import Lab
from experiments.studies.residual import STUDY, Settings, configurations, kernels, trained
from experiments.studies.study import FAILS, HOLDS
from jaxnets.models.registry import create_model
from jaxnets.training.config import Config

# Depths and steps that suffice for gradients.
TINY = Settings(
    blocks=(1, 3),
    image_size=8,
    filters=4,
    images=32,
    epochs=1,
    batch_size=32,
    deep_blocks=1,
    deep_filters=8,
    deep_images=64,
    deep_epochs=15,
    deep_learning_rate=0.1,
)


class Recorded(Lab):
    """A lab whose networks have these losses and gradients."""

    def __init__(self, losses: list[float], norms: Any) -> None:
        super().__init__(study_data("digits"), 0)
        self._losses, self._norms = losses, np.array(norms, np.float32)

    def train(self, config: Config, *_: Any, **__: Any) -> Any:
        layers = ("conv1", "bn1", "layer1_0/conv1", "fc")
        return SimpleNamespace(losses=self._losses, layers=layers, gradient_norms=self._norms)


def verdicts(lab: Lab, settings: Settings) -> dict[str, str]:
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([STUDY.measure(lab, settings)])}


def digits() -> Lab:
    return Lab(study_data("digits"), 0)


def test_norms_are_those_of_convolutions_and_all_numbers_are_finite() -> None:
    norms = [[1, 7, 10, 7], [5, 7, 5, 7], [100, 7, 0, 7], [1, 7, np.inf, 7]]
    config, _ = configurations(replace(TINY, epochs=2))["plain 8"]
    measured = trained(Recorded([float("nan"), 1.5], norms), config, study_data("digits"))
    assert measured["losses"] == [pytest.approx(10 * log(10)), 1.5]
    assert measured["first"] == pytest.approx([0, 1])
    assert measured["last"] == pytest.approx([1, 0])  # the means of 2 and 0, and of -38 and 38


def test_kernels_are_counted_and_a_block_that_does_not_reduce_turns_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (claim,) = (claim for claim in STUDY.claims if claim.name == "bottleneck")
    counted = kernels()
    assert [[size for *_, size in counted[name]] for name in ("bottleneck", "two 3x3")] == [
        [256 * 64, 3 * 3 * 64 * 64, 64 * 256],
        [3 * 3 * 256 * 256] * 2,
    ]
    assert claim.judge([{"kernels": counted}]).verdict == HOLDS

    def wide(name: str, **options: Any) -> Any:
        return create_model(name, **options | ({"width_per_group": 256} if name == "resnet50" else {}))

    monkeypatch.setattr(residual, "create_model", wide)
    assert claim.judge([{"kernels": kernels()}]).verdict == FAILS


@pytest.mark.slow
def test_gradients_vanish_without_shortcuts_and_norms_alone() -> None:
    found = verdicts(digits(), TINY)
    assert [found[name] for name in ("vanishing", "shortcuts", "norm", "both", "thousand")] == [HOLDS] * 5


@pytest.mark.slow
def test_without_shortcuts_the_gradients_of_residual_networks_vanish() -> None:
    plain = replace(TINY, shortcut="none", deep_learning_rate=1e-9)
    found = verdicts(digits(), plain)
    assert found["shortcuts"] == FAILS
    assert found["thousand"] == FAILS


@pytest.mark.slow
def test_without_norms_the_gradients_of_plain_networks_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Lab.train

    def bare(self: Lab, config: Config, *arguments: Any) -> Any:
        options = config.network_options | residual._NO_NORM
        return train(self, replace(config, network_options=options), *arguments)

    monkeypatch.setattr(Lab, "train", bare)
    assert verdicts(digits(), TINY)["norm"] == FAILS
