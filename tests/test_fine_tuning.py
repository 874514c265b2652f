"""From Python as from the command: the same options give the same run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import experiments.train
import jaxnets
from jaxnets.data.datasets import digits
from jaxnets.data.division import Division
from jaxnets.fine_tuning import Run
from jaxnets.training.checkpoint import load_classifier

# A ResNet of 4 layers.
SMALL: dict[str, Any] = {"stage_sizes": [1], "num_filters": 4}
TYPED = ["--arch", "resnet20_cifar", "--image-size", "8", "--batch-size", "20", "--seed", "3", "--parallel", "jit"]
WORDS: dict[str, Any] = {"arch": "resnet20_cifar", "image_size": 8, "batch_size": 20, "seed": 3, "parallel": "jit"}
SET = ["--set", "stage_sizes=1", "--set", "num_filters=4"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zeros, ones and twos as PNG files: 20 of each class for training, 8 for the test."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    data = digits(Division(val_share=0))
    for part, source, count in (("train", data.train, 20), ("test", data.test, 8)):
        for label in range(3):
            (folder / part / f"number {label}").mkdir(parents=True)
            for index in np.flatnonzero(source.labels == label)[:count]:
                Image.fromarray(source.images[index]).save(folder / part / f"number {label}" / f"{index}.png")
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Path:
    """Trains as a command line says, in an empty folder, and returns the workdir."""
    monkeypatch.setattr(sys, "argv", ["jaxnets train", *map(str, arguments)])
    experiments.train.main()
    (workdir,) = Path("runs").iterdir()
    return workdir.absolute()


def numbers(workdir: Path) -> dict[str, Any]:
    """The result of a run without what differs from one process to the next."""
    result = json.loads((workdir / "result.json").read_text())
    return {key: value for key, value in result.items() if not key.endswith(("seconds", "images_per_second"))}


@pytest.fixture(scope="module")
def first(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run from Python, from random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        run = jaxnets.train(dataset=photos, epochs=2, network_options=SMALL, **WORDS)
        yield Run(run.workdir.absolute(), run.result)


def test_training_from_random_weights(
    first: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = command(monkeypatch, *TYPED, *SET, "--dataset", photos, "--epochs", 2)
    assert typed.name == first.workdir.name == "resnet20_cifar-photos"
    assert (typed / "config.json").read_text() == (first.workdir / "config.json").read_text()
    assert numbers(typed) == numbers(first.workdir)
    assert (typed / "predictions.csv").read_text() == (first.workdir / "predictions.csv").read_text()
    assert {name: first.result[name] for name in numbers(first.workdir)} == numbers(first.workdir)
    # The recipe of photos, as the folder is no data set of digits.
    assert json.loads((typed / "config.json").read_text())["recipe"]["flip"] == 0.5


@pytest.mark.parametrize("transfer", ["head", pytest.param("partial", marks=pytest.mark.slow), "full"])
def test_transfer(transfer: str, first: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = command(
        monkeypatch,
        *TYPED[:2],
        "--dataset",
        photos,
        "--weights",
        first.workdir,
        "--transfer",
        transfer,
        "--epochs",
        1,
        "--batch-size",
        20,
        "--parallel",
        "jit",
    )
    run = jaxnets.fine_tune(
        photos, "resnet20_cifar", weights=first.workdir, transfer=transfer, epochs=1, batch_size=20, parallel="jit"
    )
    assert run.workdir.name == "resnet20_cifar-photos-2"
    assert (typed / "config.json").read_text() == (run.workdir / "config.json").read_text()
    assert numbers(typed) == numbers(run.workdir)
    config = json.loads((typed / "config.json").read_text())
    # The recipe of transfer, with the images of the weights; the network has the options of the weights.
    assert config["recipe"]["optimizer"] == ("adam" if transfer == "head" else "momentum")
    assert config["recipe"]["image_size"] == 8
    assert run.result["num_params"] == first.result["num_params"]


def test_a_run_predicts(first: Any, photos: Path) -> None:
    predictions = first.predict(photos / "test", top=2)
    rows = (first.workdir / "predictions.csv").read_text().splitlines()[1:]
    assert [prediction.guesses[0].name for prediction in predictions] == [row.split(",")[4] for row in rows]
    assert all(len(prediction.guesses) == 2 for prediction in predictions)
    one = first.predict(photos / "test" / "number 0" / Path(predictions[0].image).name)
    assert [guess.name for guess in one[0].guesses[:2]] == [guess.name for guess in predictions[0].guesses]
    probabilities = [guess.probability for guess in one[0].guesses]
    assert probabilities[:2] == pytest.approx([guess.probability for guess in predictions[0].guesses])
    assert sum(probabilities) == pytest.approx(1)
    assert first.classifier.categories == ("number 0", "number 1", "number 2")
    assert repr(first) == (
        f"Run(resnet20_cifar on {photos}: test accuracy {first.result['test_accuracy']:.2%}, files in {first.workdir})"
    )


def test_options_of_a_run_come_back_with_its_weights(first: Any, tmp_path: Path) -> None:
    network = jaxnets.create_model("resnet20_cifar", num_classes=3, stage_sizes=(1,), num_filters=4)
    assert load_classifier(first.workdir).model == network
    pretrained = jaxnets.load_pretrained("resnet20_cifar", first.workdir)
    assert pretrained.model == network
    # And through a file of weights.
    from jaxnets.conversion import convert_run

    convert_run(first.workdir, tmp_path / "weights.safetensors")
    again = jaxnets.load_pretrained("resnet20_cifar", tmp_path / "weights.safetensors")
    assert again.model == network
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        again.model.apply(again.variables, images, train=False),
        pretrained.model.apply(pretrained.variables, images, train=False),
    )


def test_options_that_the_weights_do_not_fit_are_refused(first: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(jaxnets.InputError) as raised:
        jaxnets.fine_tune(
            photos,
            "resnet20_cifar",
            weights=first.workdir,
            workdir=tmp_path / "run",
            network_options={"num_filters": 8},
            batch_size=20,
            parallel="jit",
        )
    assert "does not fit resnet20_cifar with num_filters=8: " in str(raised.value)
    assert "is (4,) in the weights, and (8,) in the network" in str(raised.value)


def test_nothing_is_written_for_wrong_settings(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jaxnets.InputError, match="unknown setting 'epoch'; did you mean epochs"):
        jaxnets.fine_tune(photos, "resnet18", epoch=3)
    with pytest.raises(jaxnets.InputError, match="batch_size=64, but"):
        jaxnets.train("resnet20_cifar", photos, batch_size=64, parallel="jit", network_options=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_parts_are_there_after_import_and_load_late() -> None:
    program = (
        "import sys, jaxnets;"
        "late = [m for m in sys.modules if m in ('optax', 'orbax.checkpoint', 'jaxnets.inference')];"
        "print(late, jaxnets.transfer.TRANSFERS, jaxnets.inference.fold.__name__, jaxnets.init.__name__,"
        "jaxnets.fine_tune.__name__, jaxnets.training.Recipe.__name__, 'fine_tune' in dir(jaxnets))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ('full', 'partial', 'head') fold initial_variables fine_tune Recipe True\n"
    assert done.stderr == ""
    with pytest.raises(AttributeError, match="has no attribute 'fine_tun'"):
        _ = jaxnets.fine_tun  # type: ignore[attr-defined]


def test_orbax_is_quiet_and_other_users_of_absl_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    import orbax.checkpoint
    from absl import logging

    import jaxnets.weights.checkpoint_files  # noqa: F401

    def say(file: str) -> None:
        exec(compile("logging.warning('from ' + where)", file, "exec"), {"logging": logging, "where": Path(file).name})

    level = logging.get_verbosity()  # which commands change
    try:
        logging.set_verbosity(logging.WARNING)
        say(str(Path(orbax.checkpoint.__file__).with_name("noisy.py")))
        say("somewhere/mine.py")
    finally:
        logging.set_verbosity(level)
    assert [record.message for record in caplog.records] == ["from mine.py"]
