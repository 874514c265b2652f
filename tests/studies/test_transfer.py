"""The study of transfer learning splits classes and images rightly, and notices a network that was not pretrained."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.studies import transfer_runs
from experiments.studies.data import arrays, labels_of, of_classes, study_data
from experiments.studies.lab import Lab, Programs, Trained
from experiments.studies.study import FAILS, HOLDS
from experiments.studies.transfer import STUDY
from experiments.studies.transfer_runs import RANGE, Settings
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.models.initialization import initial_variables
from jaxnets.training.config import Config
from jaxnets.training.recipe import Recipe

TINY = Settings(
    blocks=2,
    image_size=8,
    images=(5,),
    few=5,
    plenty=5,
    batch_size=25,
    epochs=15,
    plenty_epochs=1,
    trunk_epochs=2,
)


def test_classes_are_divided_and_relabelled() -> None:
    data = study_data("digits")
    new = of_classes(data, range(5, 10))
    assert new.class_names == tuple("56789")
    for part, source in new.parts.items():
        images, labels = arrays(data.parts[part])
        expected = [(image, label - 5) for image, label in zip(images, labels, strict=True) if label >= 5]
        assert len(source) == len(expected)
        for index in range(0, len(source), 7):
            assert (source[index].image == expected[index][0]).all()
            assert source[index].label == expected[index][1]


def test_few_images_are_repeated_to_a_whole_epoch() -> None:
    new = of_classes(study_data("digits"), range(5, 10))
    settings = replace(TINY, images=(2, 20))
    few = transfer_runs.new_images(new, 3, 2, settings)
    assert len(few.train) == 100
    assert len({few.train[index].image.tobytes() for index in range(100)}) == 10  # type: ignore[union-attr]
    assert (np.bincount(labels_of(few.train)) == 20).all()
    assert few.val is few.test is new.test
    assert len(transfer_runs.new_images(new, 3, 30, settings).train) == 150


def test_values_from_0_to_255() -> None:
    data = study_data("digits")
    mean, std = transfer_runs.normalisations_of(data)[RANGE]
    image = data.train[0].image
    found = Preprocessing(8, 8, mean, std)(image)[..., 0]
    np.testing.assert_allclose(found, (image.astype(float) - data.mean[0]) / data.std[0], rtol=1e-5)  # type: ignore[union-attr]


def test_the_early_gain_is_that_of_the_first_third() -> None:
    few = {"full": [0.5, 0.7, 0.9, 0.9, 0.9, 0.9], "scratch": [0.1, 0.2, 0.9, 1.0, 1.0, 1.0]}
    more = {"full": [0.6, 0.8, 0.0, 0.0, 0.0, 0.0], "scratch": [0.5, 0.8, 1.0, 1.0, 1.0, 1.0]}
    found = transfer_runs.early_gain({"curves": {"2": few, "5": more}})
    assert found == pytest.approx((0.4 + 0.5 + 0.1 + 0.0) / 4)


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_the_lab_starts_from_variables() -> None:
    lab = Lab(study_data("digits"), 0)
    known, new = (of_classes(lab.dataset, classes) for classes in (range(4), range(4, 10)))
    recipe = Recipe(image_size=8, epochs=1, batch_size=200, optimizer="momentum", learning_rate=0.02, weight_decay=0.0)
    config = Config("small_resnet", recipe)
    start = lab.train(config, known).variables
    head = replace(config, weights="start", transfer="head")
    still = replace(head, recipe=replace(recipe, learning_rate=1e-12))
    trained, untrained = (lab.train(config, new, start=start) for config in (head, still))
    for kind in ("params", "batch_stats"):
        for name, module in trained.variables[kind].items():
            if name != "fc":
                jax.tree.map(np.testing.assert_array_equal, module, start[kind][name])
    kernels = [run.variables["params"]["fc"]["kernel"] for run in (trained, untrained)]
    assert {kernel.shape for kernel in kernels} == {(8, 6)}
    assert not np.array_equal(*kernels)


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_programs_are_not_shared_by_other_preprocessing() -> None:
    data, programs = study_data("digits"), Programs()
    recipe = Recipe(image_size=8, epochs=1, batch_size=200, optimizer="sgd", learning_rate=0.02, weight_decay=0.0)
    config = Config("tiny_plain", recipe)
    other = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    shared = [Lab(data, 0, programs=programs).train(config, each).losses for each in (data, other)]
    assert shared == [Lab(data, 0).train(config, each).losses for each in (data, other)]
    assert shared[0] != shared[1]


@pytest.mark.slow
def test_a_network_that_was_not_pretrained_turns_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    data, programs = study_data("digits"), Programs()
    right = transfer_runs.pretrain

    def verdicts() -> dict[str, str]:
        measured = STUDY.measure(Lab(data, 0, programs=programs), TINY)
        assert [drawn.name for drawn in STUDY.draw([measured])] == ["curves", "preprocessing"]
        return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}

    def checked(lab: Lab, *arguments: Any) -> Trained:
        trained = right(lab, *arguments)
        own = transfer_runs.accuracies_as_it_is(trained, {"own": (data.mean, data.std)})
        assert own["own"] == pytest.approx(trained.on("test").metrics["accuracy"])
        return trained

    def untrained(lab: Lab, *arguments: Any) -> Trained:
        trained = right(lab, *arguments)
        run = trained.run
        return replace(trained, variables=initial_variables(run.network, jax.random.key(0), 8, run.declared))

    monkeypatch.setattr(transfer_runs, "pretrain", checked)
    found = verdicts()
    assert {found[name] for name in ("sooner", "preprocessing")} == {HOLDS}
    monkeypatch.setattr(transfer_runs, "pretrain", untrained)
    found = verdicts()
    assert {found[name] for name in ("sooner", "preprocessing")} == {FAILS}
