"""The commands as a user types them."""

import json
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.loading import RunBefore
from jaxnets.data.datasets import digits
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.recipes import recipe_for
from tests.experiments.commands import Refuses, command, refused
from tests.training.tiny import Tiny

# Small and quick, but the whole way: a real network on the real data.
QUICK = ("--arch", "resnet20_cifar", "--image-size", "8", "--epochs", "2", "--batch-size", "100")
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run, made in an empty folder with no --workdir given."""
    folder = tmp_path_factory.mktemp("trained")
    done = command("train", *QUICK, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "epoch 2/2: train loss" in done.stderr
    assert "images/s" in done.stderr
    assert "left" in done.stderr
    return folder / "runs" / "resnet20_cifar-digits"


def metrics(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_contract_says(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["arch"] == "resnet20_cifar"
    assert config["recipe"]["batch_size"] == 100
    result = json.loads((trained / "result.json").read_text())
    assert result["num_params"] == 269_722
    assert (result["epochs"], result["steps"], result["dataset"]) == (2, 26, "digits")
    assert result["train_images_per_second"] > 0
    assert 0 < result["compile_seconds"] < result["seconds"]
    assert result["device"]
    assert (result["devices"], result["parallel"]) == (1, "jit")
    assert result["best_val_accuracy"] == max(line["accuracy"] for line in metrics(trained) if line["split"] == "val")
    assert 0 <= result["waiting_for_data_seconds"] < result["seconds"]
    assert [line["count"] for line in metrics(trained) if line["split"] == "val"] == [142, 142]
    (test,) = [line for line in metrics(trained) if line["split"] == "test"]
    assert metrics(trained)[-1] == test
    assert (test["count"], test["accuracy"], test["epoch"]) == (360, result["test_accuracy"], result["best_epoch"])
    assert sum(line["count"] for line in metrics(trained) if line["split"] == "train") == 2600
    assert result["class_names"] == list("0123456789")
    page = (trained / "report.html").read_text()
    assert f"<b>{100 * result['test_accuracy']:.1f}\N{NO-BREAK SPACE}%</b>" in page
    # Self-contained: nothing is loaded from elsewhere.
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded
    assert all(target.startswith(("data:", "#")) for target in loaded)
    assert "<script" not in page
    assert any((trained / "checkpoints").iterdir())


def test_predictions_agree_with_the_accuracy(trained: Path) -> None:
    rows = [line.split(",") for line in (trained / "predictions.csv").read_text().splitlines()[1:]]
    result = json.loads((trained / "result.json").read_text())
    assert len(rows) == 360
    assert np.mean([row[3] == row[4] for row in rows]) == pytest.approx(result["test_accuracy"])
    assert [row[3] for row in rows] == [str(label) for label in digits().judged().labels]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_evaluate_repeats_the_accuracy_exactly(trained: Path) -> None:
    done = command("evaluate", trained, folder=trained)
    result = json.loads((trained / "result.json").read_text())
    right = round(result["test_accuracy"] * 360)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{right} of 360 test images are right\n")
    for title, name in (("top-5", "top5_accuracy"), ("balanced", "balanced_accuracy"), ("macro F1", "macro_f1")):
        assert re.search(rf"^{title}.* {100 * result[f'test_{name}']:.1f} % \(", done.stdout, re.MULTILINE), title
    assert re.search(rf"^test loss  +{result['test_loss']:.4f} \(", done.stdout, re.MULTILINE)
    error = result["test_expected_calibration_error"]
    assert re.search(rf"^calibration error  +{100 * error:.1f} % \(", done.stdout, re.MULTILINE)
    rows = [line.replace(" %", "").split() for line in done.stdout.splitlines()[-10:]]
    for row, expected in zip(rows, result["test_per_class"], strict=True):
        numbers = [f"{100 * expected[name]:.1f}" for name in ("precision", "recall", "f1")]
        assert row == [expected["class"], *numbers, str(expected["support"])]
    assert done.stderr == "360 test images (the fixed split of jaxnets)\n"
    # The same weights, without the run's configuration.
    arguments = ("--arch", "resnet20_cifar", "--weights", trained, "--dataset", "digits", "--batch-size", 100)
    again = command("evaluate", *arguments, folder=trained)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


def test_evaluate_needs_a_data_set_of_the_same_classes(trained: Path, refuses: Refuses) -> None:
    weights = ("--arch", "resnet20_cifar", "--weights", trained)
    refuses("evaluate", *weights, words=("needs a data set", "--dataset"))
    refuses("evaluate", trained, trained, words=("unexpected", "one run"))
    for size in (-1, 0):
        refuses("evaluate", trained, "--batch-size", size, words=(f"--batch-size {size}; expected at least 1",))
    refuses("evaluate", words=("the folder of a run, or a network as --arch",))


@pytest.mark.slow
def test_predict_gives_the_top_five_of_each_image(trained: Path) -> None:
    images = sorted((trained / "samples").glob("*.png"))[:3]
    done = command("predict", trained, *images, folder=trained)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(image) for image in images]
    classifier = load_classifier(trained)
    expected = classifier.model.apply(
        classifier.variables,
        classifier.preprocessing.normalise(np.asarray(Image.open(images[0]))[None]),
        train=False,
    )[0]
    shares = np.exp(expected - expected.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5]
    assert lines[1:6] == [f"  {shares[i]:7.2%}  {classifier.class_names[i]}" for i in best]


def test_the_report_can_be_made_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = trained / "report.html"
    before = page.read_text()
    page.unlink()
    monkeypatch.setattr(sys, "argv", ["report", str(trained)])
    report.main()
    # With a heat map of each mistake that is shown.
    shown = len(list((trained / "mistakes").glob("*-map.png")))
    assert shown > 0
    again = page.read_text()
    assert again.count("<img") == before.count("<img") + shown
    assert again.count("heat map of ") == shown


@pytest.mark.slow
def test_the_same_command_gives_the_same_metrics_in_another_folder(tmp_path: Path) -> None:
    def without_times(workdir: Path) -> list[dict[str, float]]:
        return [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(workdir)]

    first, again = (tmp_path / "runs" / f"resnet20_cifar-digits{suffix}" for suffix in ("", "-2"))
    assert command("train", *QUICK, folder=tmp_path, quickly=False).returncode == 0
    # A default workdir is never taken twice.
    before = sorted((path, path.stat().st_mtime) for path in first.rglob("*"))
    assert command("train", *QUICK, folder=tmp_path, quickly=False).returncode == 0
    assert without_times(again) == without_times(first)
    assert (again / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()
    assert sorted((path, path.stat().st_mtime) for path in first.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "resnet5"], ["unknown architecture 'resnet5'", "resnet50"]),
        (["--arch", "alexnet", "--image-size", "62"], ["62x62", "63x63"]),
        (["--arch", "resnet50", "--batch-size", "0"], ["--batch-size 0;", "at least 1"]),
        (["--arch", "resnet50", "--lr", "-0.1"], ["--lr -0.1;"]),
        (["--arch", "resnet50", "--lr", "fast"], ["--lr", "fast"]),
        (["--arch", "resnet50", "--epochs", "0"], ["--epochs 0;"]),
        (["--arch", "resnet50", "--dataset", "mnist2"], ["unknown data set 'mnist2'", "mnist"]),
        (["--arch", "resnet50", "--dtype", "float8"], ["unknown dtype 'float8'"]),
        (["--arch", "resnet50", "--optimizer", "adm"], ["unknown optimizer 'adm'"]),
        (["--arch", "resnet50", "--seed", "-1"], ["--seed -1;"]),
        (["--arch", "resnet50", "--seed", str(2**32)], ["--seed 4294967296;"]),
        (
            ["--arch", "resnet50", "--batch-size", "1296"],
            ["--batch-size 1296,", "1295 training images", "142 val and 360 test", "or hold out"],
        ),
        (["--arch", "resnet50", "--flip", "2"], ["--flip 2.0;", "at least 0 and at most 1"]),
        (["--arch", "resnet50", "--recipe", "resnet_2016"], ["unknown recipe 'resnet_2016'", "resnet_2015"]),
        (
            ["--arch", "alexnet", "--zero-init-residual"],
            ["alexnet has no zero_init", "--no-zero-init-residual"],
        ),
        (["--arch", "resnet50", "--parallel", "both"], ["--parallel", "pmap", "shard_map"]),
        (["--arch", "resnet50", "--schedule", "step"], ["--schedule step", "decay_epochs=()"]),
        (["--resume", "--arch", "resnet50"], ["--resume", "--workdir"]),
        (["--arch", "resnet50", "--test-share", "1"], ["--test-share 1.0;", "at least 0 and below 1"]),
        (["--arch", "resnet50", "--val-share", "-0.1"], ["--val-share -0.1;"]),
        (["--arch", "resnet50", "--fold", "6/5"], ["--fold 6/5;", "1/5"]),
        (["--arch", "resnet50", "--group-by", "p"], ["--group-by p is for image files"]),
        (["--arch", "resnet50", "--dataset", "no.csv"], ["no.csv can't be read"]),
        (["--arch", "resnet50", "--on-bad-image", "ignore"], ["--on-bad-image", "error", "skip"]),
        (["--arch", "resnet50", "--workdir", "x" * 300], ["can't be written"]),
        (["--arch", "resnet50", "--workdir", "/proc/nowhere/run"], ["/proc/nowhere/run", "can't be written"]),
        (["--arch", "resnet50", "--image-size", "1000000"], ["--image-size 1000000;", "at most 4096"]),
        (["--arch", "resnet50", "--train-from", "layer3"], ["--train-from layer3 needs --transfer partial"]),
        (["--arch", "resnet20_cifar", "--weights", "DEFULT"], ["'DEFULT'", "no weights are published for resnet20"]),
        (["--arch", "xyzzy"], ["unknown architecture 'xyzzy'", "jaxnets list "]),
        (["--arch", "resnet50", "--config", "."], [". is a folder", "config.json"]),
        ([], ["--arch"]),
    ],
)
def test_train_refuses_bad_input(arguments: list[str], words: list[str], refuses: Refuses, tmp_path: Path) -> None:
    refuses("train", "--parallel", "jit", *arguments, words=tuple(words))
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_a_workdir_that_holds_a_run(trained: Path, refuses: Refuses) -> None:
    before = sorted((path, path.stat().st_mtime) for path in trained.rglob("*"))
    arguments = (*QUICK, "--parallel", "jit", "--workdir", trained)
    refuses("train", *arguments, words=("already holds a run", "--resume", "--workdir"))
    refuses("train", *arguments, "--resume", "--lr", 0.5, words=("the run began with --lr 0.001, now it is 0.5",))
    assert sorted((path, path.stat().st_mtime) for path in trained.rglob("*")) == before


def test_train_leaves_a_folder_with_other_files_alone(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "predictions.csv").write_text("mine")
    refuses("train", *QUICK, "--parallel", "jit", "--workdir", ".", words=("is not empty",))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_train_stops_when_steps_are_no_longer_finite(
    tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxnets.weights.runs.create_model", lambda name, **options: Tiny(**options))
    arguments = ("--optimizer", "sgd", "--lr", "1e38", "--parallel", "jit", "--workdir", "run")
    refuses("train", *QUICK, *arguments, words=("10 steps in a row", "--lr"))
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_the_best_checkpoint_is_read_unless_the_latest_is_asked_for(
    name: str, refuses: Refuses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load(workdir: Path, which: str) -> None:
        asked.append((workdir, which))
        raise InputError("enough")

    monkeypatch.setattr("experiments.loading.load_classifier", load)
    before = RunBefore(Config("resnet20_cifar", recipe_for("resnet20_cifar")), Preprocessing(8, 8), {})
    monkeypatch.setattr("experiments.evaluate.run_of", lambda workdir: before)
    (tmp_path / "image.png").touch()
    images = ["image.png"] if name == "predict" else []
    refuses(name, "run", *images, words=("enough",))
    refuses(name, "run", *images, "--checkpoint", "latest", words=("enough",))
    assert asked == [(Path("run"), "best"), (Path("run"), "latest")]
    refuses(name, "run", *images, "--checkpoint", "worst", words=("--checkpoint", "latest", "best"))


@pytest.mark.parametrize(("dtype", "expected"), [("float64", True), ("bfloat16", False)])
def test_what_was_trained_in_64_bits_is_tested_in_64_bits(
    dtype: str, expected: bool, refuses: Refuses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    enabled = []

    def load(workdir: Path, which: str) -> None:
        enabled.append(jax.config.jax_enable_x64)
        raise InputError("enough")

    monkeypatch.setattr("experiments.loading.load_classifier", load)
    config = Config("resnet20_cifar", recipe_for("resnet20_cifar"), dtype=dtype)
    (tmp_path / "config.json").write_text(config.to_json())
    try:
        (tmp_path / "image.png").touch()
        refuses("predict", tmp_path, "image.png", words=("enough",))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert enabled == [expected]


def test_predict_and_evaluate_refuse_bad_input(trained: Path, tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "text.png").write_text("not an image")
    os.mkfifo(tmp_path / "pipe.png")
    refused(command("predict", trained, tmp_path / "none.png", folder=tmp_path), "none.png: no such file")
    refuses("predict", trained, tmp_path / "text.png", words=("text.png", "unreadable image"))
    refuses("predict", trained, tmp_path / "pipe.png", words=("pipe.png", "not a regular file"))
    refuses("predict", trained, tmp_path, words=("pipe.png", "not a regular file"))
    refuses("predict", trained, words=("image",))
    refuses("predict", tmp_path, tmp_path / "text.png", words=("holds no run",))
    refuses("evaluate", tmp_path / "nowhere", words=("nowhere", "holds no run"))
    refuses("evaluate", "x" * 300, words=("holds no run",))
    refuses("report", tmp_path, words=("holds no run; give a folder that jaxnets train wrote",))
    refuses("report", trained, trained, "--output", "both.txt", words=("--output both.txt", "ends in .html"))
    refuses("predict", "run", "image.png", "--topk", 0, words=("--topk 0; expected at least 1",))
    refuses("list", "resnet5", words=("no network matches resnet5; did you mean", "resnet50"))
    refuses("summary", "--arch", "resnet18", "--beside", "xyzzy", words=("'xyzzy'", "jaxnets list "))
    refuses("prepare", "digits", words=("nothing to do for digits", "--output"))
    refuses("prepare", "digits", "--output", tmp_path, words=("is not empty", "--output"))
    refuses("prepare", "digits", "--output", "records", "--size", 0, words=("--size 0",))
    refuses("benchmark", "--data", "./nowhere", words=("no such folder",))
