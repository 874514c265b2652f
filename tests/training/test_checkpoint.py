"""Checkpoints: what is saved comes back exactly, and what is damaged is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxnets
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.training.checkpoint import Checkpoints, load_classifier
from jaxnets.training.config import Config
from jaxnets.training.recipes import default_recipe
from jaxnets.training.step import TrainState, create_state

PREPROCESSING = Preprocessing(8, 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
CONFIG = Config("resnet20_cifar", default_recipe("resnet20_cifar"))
# A string sort would put "10" before "2".
CLASSES = ("1", "2", "10", "naïve")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    workdir = tmp_path_factory.mktemp("run")
    state = create_state(jaxnets.create_model(CONFIG.arch, num_classes=4), optax.sgd(0.1, momentum=0.9), 0, 8)
    with Checkpoints(workdir, CONFIG, PREPROCESSING, CLASSES) as checkpoints:
        checkpoints.save(state)
        checkpoints.save(state.replace(step=state.step + 7))
    return workdir, state


def test_a_classifier_comes_back_with_all_that_it_needs(saved: tuple[Path, TrainState]) -> None:
    workdir, state = saved
    assert [folder.name for folder in (workdir / "checkpoints").iterdir()] == ["7"]
    classifier = load_classifier(workdir)
    assert (classifier.config, classifier.preprocessing, classifier.class_names) == (CONFIG, PREPROCESSING, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, classifier.variables, state.variables)


def test_a_classifier_knows_its_classes(saved: tuple[Path, TrainState]) -> None:
    classifier = load_classifier(saved[0])
    classifier.check_classes(CLASSES)
    for other, words in (
        (("1", "10", "2", "naïve"), "class 1 is '10', in training it was '2'"),
        (("1", "2", "10"), r"\(3 and 4\): class 3 is missing, in training it was 'naïve'"),
        ((*CLASSES, "zebra"), "class 4 is 'zebra', in training it was missing"),
    ):
        with pytest.raises(InputError, match=words):
            classifier.check_classes(other)


def remove(name: str) -> Callable[[Path], None]:
    return lambda step: shutil.rmtree(step / name)


def cut(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        files = [file for file in (step / name).rglob("*") if file.is_file() and file.stat().st_size]
        largest = max(files, key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

    return damage


@pytest.mark.parametrize("damage", [remove("metadata"), remove("variables"), cut("metadata"), cut("variables")])
def test_a_damaged_checkpoint_is_named(
    saved: tuple[Path, TrainState], damage: Callable[[Path], None], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(saved[0], workdir)
    damage(workdir / "checkpoints" / "7")
    with pytest.raises(InputError, match="its checkpoint is damaged") as raised:
        load_classifier(workdir)
    assert str(workdir) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_without_a_finished_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no checkpoint was finished"):
        load_classifier(tmp_path)
