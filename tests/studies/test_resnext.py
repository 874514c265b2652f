"""The study of ResNeXt notices networks whose groups are ignored, and forms that differ."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.studies import grouped, resnext
from experiments.studies.data import arrays, study_data
from experiments.studies.lab import Lab
from experiments.studies.resnext import STUDY, Settings, cost_deviation
from experiments.studies.study import FAILS, HOLDS, UNDECIDED, Measured
from jaxnets.models import resnext as models
from jaxnets.models.registry import create_model

TINY = Settings(
    cardinalities=(1, 32),
    blocks=1,
    num_filters=16,
    image_size=8,
    images=100,
    test_images=50,
    epochs=1,
    batch_size=50,
    learning_rate=0.05,
)
FAIR = {"depthwise": 0.0, "block_diagonal": 0.0, "forms": 0.0}
EQUAL = [{"parameters": 1, "multiply_adds": 1, "deviation": 0.0}] * 2


@pytest.fixture(autouse=True)
def own_caches() -> Any:
    """Each test computes what others have computed with other functions."""
    grouped.costs.cache_clear()
    grouped._gradients.cache_clear()
    yield
    grouped.costs.cache_clear()
    grouped._gradients.cache_clear()


def verdicts(**measured: Any) -> dict[str, str]:
    trained = {"1x64d": {"accuracy": 0.9}, "32x4d": {"accuracy": 0.9}}
    one: Measured = {"costs": EQUAL, "differences": FAIR, "trained": trained, **measured}
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([one])}


def test_groups_save_parameters_and_the_costs_are_not_quite_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "TABLE", ((1, 64), (32, 4)))
    costs = grouped.costs()
    found = verdicts(costs=costs)
    assert (found["fewer-parameters"], found["equal-cost"]) == (HOLDS, FAILS)
    assert verdicts()["equal-cost"] == HOLDS
    # As torchvision documents them.
    assert [row["parameters"] for row in costs] == [25_557_032, 25_028_904]
    assert [round(row["multiply_adds"] / 1e9, 2) for row in costs] == [4.09, 4.23]
    assert cost_deviation({"costs": costs}) == pytest.approx(4_230_479_872 / 4_089_184_256 - 1)


def test_ignored_groups_turn_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(name: str) -> Any:
        groups, width = map(int, name.removeprefix("resnext50_").removesuffix("d").split("x"))
        return create_model("resnet50", width_per_group=groups * width)

    monkeypatch.setattr(grouped, "TABLE", ((1, 64), (4, 24)))
    monkeypatch.setattr(grouped, "create_model", dense)
    assert verdicts(costs=grouped.costs())["fewer-parameters"] == FAILS


def test_each_channel_is_an_image() -> None:
    train = study_data("digits").train
    inputs = grouped.image_channels(train, 8, images=2, channels=3)
    for index, image in enumerate(arrays(train)[0][:6]):
        np.testing.assert_allclose(inputs[index // 3, :, :, index % 3], image / 255)


def test_computations_that_should_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "FORMS", grouped.FORMS[:1] * 2)  # the others are compared by a slow test
    inputs = grouped.image_channels(study_data("digits").train, 8, channels=8)
    found = verdicts(differences=grouped.differences(inputs, 0))
    assert (found["depthwise"], found["block-diagonal"]) == (HOLDS, HOLDS)
    right = grouped.as_dense
    monkeypatch.setattr(grouped, "as_dense", lambda kernel, groups: right(kernel[..., ::-1], groups))
    conv2d = grouped.conv2d

    def mixed(images: Any, kernel: Any, *, groups: int, **options: Any) -> Any:
        return conv2d(images, kernel[..., ::-1] if kernel.shape[2] == 1 else kernel, groups=groups, **options)

    monkeypatch.setattr(grouped, "conv2d", mixed)
    found = verdicts(differences=grouped.differences(inputs, 0))
    assert (found["depthwise"], found["block-diagonal"]) == (FAILS, FAILS)


@pytest.mark.slow
def test_a_form_that_forgets_a_path_turns_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = grouped.image_channels(study_data("digits").train, 8)
    assert verdicts(differences=grouped.differences(inputs, 0))["three-forms"] == HOLDS
    right = models.added_paths

    def forgetful(images: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
        return right(images, kernel.at[:, :, :1].set(0), **options)

    monkeypatch.setattr(models, "added_paths", forgetful)
    grouped._gradients.cache_clear()
    assert verdicts(differences=grouped.differences(inputs, 0))["three-forms"] == FAILS


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, HOLDS), (0.005, UNDECIDED), (-0.005, UNDECIDED), (-0.02, FAILS)])
def test_a_small_difference_in_accuracy_decides_nothing(gain: float, verdict: str) -> None:
    trained = {"1x64d": {"accuracy": 0.9}, "4x24d": {"accuracy": 0.0}, "32x4d": {"accuracy": 0.9 + gain}}
    assert verdicts(trained=trained)["cardinality"] == verdict


@pytest.mark.slow
def test_networks_are_trained_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnext, "differences", lambda inputs, seed: FAIR)
    measured = STUDY.measure(Lab(study_data("digits"), 0), TINY)
    for groups, name in ((1, "1x64d"), (32, "32x4d")):
        kernel = np.array(measured["trained"][name]["kernel"])
        width = 16 if groups == 1 else 32
        assert kernel.shape == (width, width)
        assert ((kernel > 0) == np.kron(np.eye(groups), np.ones((width // groups,) * 2))).all()
        assert 0 <= measured["trained"][name]["accuracy"] <= 1
    (dense, _), (grouped_parameters, _) = measured["own_costs"]
    assert dense > grouped_parameters
    assert [drawn.name for drawn in STUDY.draw([measured, measured])] == ["cardinality", "kernels", "costs"]
    assert replace(TINY, cardinalities=(4,)).options(4)["width_per_group"] == 24
