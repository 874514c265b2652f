"""The study of residual learning notices missing shortcuts and norms, and reads norms and kernels rightly."""

from dataclasses import replace
from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.studies import residual_runs
from experiments.studies.data import study_data, subset
from experiments.studies.lab import Lab
from experiments.studies.residual import STUDY
from experiments.studies.residual_runs import Settings, configurations, kernels, trained
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
    deep_epochs=40,
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


def verdict(name: str, *runs: str, settings: Settings = TINY, **options: Any) -> str:
    """The verdict of a claim that these runs decide, whose networks have other `options`."""
    (claim,) = (claim for claim in STUDY.claims if claim.name == name)
    measured: dict[str, Any] = {"layers": settings.layers, "guessing": log(10)}
    for run in runs:
        config, images = configurations(settings)[run]
        config = replace(config, network_options=config.network_options | options)
        measured[run] = trained(
            Lab(study_data("digits"), 0), config, subset(study_data("digits"), 0, images, val=False)
        )
    return claim.judge([measured]).verdict


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

    monkeypatch.setattr(residual_runs, "create_model", wide)
    assert claim.judge([{"kernels": kernels()}]).verdict == FAILS


PLAIN, RESIDUAL = ("plain 8", "plain 20"), ("residual 8", "residual 20")
BARE_PLAIN, BARE_RESIDUAL = ([f"{run} without norm" for run in runs] for runs in (PLAIN, RESIDUAL))


@pytest.mark.slow
def test_gradients_vanish_unless_there_are_shortcuts() -> None:
    assert verdict("vanishing", *BARE_PLAIN) == HOLDS
    assert verdict("shortcuts", *BARE_RESIDUAL) == HOLDS
    assert verdict("vanishing", *BARE_PLAIN, shortcut="A") == FAILS
    assert verdict("shortcuts", *BARE_RESIDUAL, shortcut="none") == FAILS


@pytest.mark.slow
def test_gradients_vanish_unless_there_are_norms() -> None:
    assert verdict("norm", *PLAIN) == HOLDS
    assert verdict("norm", *PLAIN, **residual_runs._NO_NORM) == FAILS
    assert verdict("both", *RESIDUAL) == HOLDS
    assert verdict("both", *RESIDUAL, shortcut="none", **residual_runs._NO_NORM) == FAILS


@pytest.mark.slow
def test_the_deep_network_has_to_learn() -> None:
    assert verdict("thousand", "deep") == HOLDS
    assert verdict("thousand", "deep", settings=replace(TINY, deep_learning_rate=1e-9)) == FAILS


@pytest.mark.parametrize(("deepest", "names"), [(2.0, {"degradation"}), (1.0, {"no-degradation"})])
def test_degradation_compares_the_deepest_with_the_second_shallowest(deepest: float, names: set[str]) -> None:
    losses = {8: 0.0, 20: 1.0, 32: 5.0, 56: deepest}
    runs = {
        f"{name} {depth}": {"losses": [9.0, loss]} for name in residual_runs.NAMES for depth, loss in losses.items()
    }
    found = [claim.judge([{"layers": list(losses), **runs}]) for claim in STUDY.claims[:2]]
    assert {one.claim.name for one in found if one.verdict == HOLDS} == names
