"""The commands that take weights from elsewhere, and give them on."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxnets
from experiments import evaluate
from jaxnets.data.folder import named_images
from jaxnets.pretrained import load_pretrained
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.loop import train
from tests.experiments.commands import Refuses, command, refused
from tests.test_pretrained import lively, write
from tests.training import networks

ARCH = "resnet20_cifar"
SMALL = "small_resnet"
Invoke = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> Path:
    """A run, with its sample pictures."""
    return trained(SMALL, tmp_path_factory.mktemp("weights") / "run")


def trained(arch: str, workdir: Path) -> Path:
    config = networks.config(arch, **networks.STILL, epochs=1, crop_pct=0.8)
    train(config, workdir, networks.DATASET, parallel=networks.cpus(1))
    return workdir


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """A command, in this process; what it prints."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        import_module(f"experiments.{name}").main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures of several sizes in nested folders, and files that are none."""
    folder = tmp_path / "pictures"
    random = np.random.default_rng(0)
    for number in range(7):
        place = folder / ("deeper" if number % 2 else ".") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12 + number, 20, 3), np.uint8)).save(place)
    (folder / "notes.txt").write_text("no picture")
    return folder


def probabilities(run: Path, pictures: Path) -> dict[str, np.ndarray]:
    """Of each picture, one by one."""
    classifier, found = load_pretrained(SMALL, run), {}
    for path in sorted(pictures.rglob("*.png")):
        image = classifier.preprocess(Image.open(path))[None]
        logits: Any = classifier.model.apply(classifier.variables, image, train=False)
        found[str(path)] = np.asarray(jax.nn.softmax(logits))[0]
    return found


def test_predictions_of_any_number_of_files_and_folders(run: Path, pictures: Path, invoke: Invoke) -> None:
    expected = probabilities(run, pictures)
    assert len(expected) == 7
    names = load_classifier(run).class_names
    for batch_size in (1, 3, 100):
        answers = json.loads(invoke("predict", run, pictures, "--format", "json", "--batch-size", batch_size))
        assert [answer["image"] for answer in answers] == [named_images([pictures]).where(i) for i in range(7)]
        for answer in answers:
            shares = expected[answer["image"]]
            order = [guess["index"] for guess in answer["classes"]]
            assert order == list(np.argsort(-shares, kind="stable"))
            assert [guess["class"] for guess in answer["classes"]] == [names[index] for index in order]
            np.testing.assert_allclose([guess["probability"] for guess in answer["classes"]], shares[order], atol=2e-6)


def test_predictions_as_csv_in_a_file(run: Path, pictures: Path, invoke: Invoke, tmp_path: Path) -> None:
    one = pictures / "0.png"
    output = tmp_path / "answers.csv"
    invoke("predict", run, one, pictures / "deeper", "--topk", 2, "--output", output)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "rank", "index", "class", "probability"]
    assert [row["image"] for row in rows[::2]] == [
        str(one),
        *(str(pictures / "deeper" / f"{n}.png") for n in (1, 3, 5)),
    ]
    assert [row["rank"] for row in rows] == ["1", "2"] * 4
    expected = probabilities(run, pictures)
    for row in rows:
        assert float(row["probability"]) == pytest.approx(expected[row["image"]][int(row["index"])], abs=2e-6)
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.slow
def test_the_same_predictions_by_a_run_and_by_files_of_it(
    run: Path, pictures: Path, invoke: Invoke, tmp_path: Path
) -> None:
    wanted = invoke("predict", run, pictures, "--topk", 1)
    assert "3 classes" in invoke("convert", run, "--output", tmp_path / "run.safetensors")
    invoke("convert", run, "--output", tmp_path / "run.pth")
    names = tmp_path / "names.txt"
    names.write_text("round\nstriped\nplain\n")
    crop, resize = load_classifier(run).preprocessing.crop_size, load_classifier(run).preprocessing.resize_size
    invoke(
        "convert", tmp_path / "run.pth", "--arch", SMALL, "--output", tmp_path / "again.safetensors", "--class-names",
        names, "--crop-size", crop, "--resize-size", resize, "--mean", *[0.45] * 3, "--std", *[0.25] * 3,
    )  # fmt: skip
    for name in ("run.safetensors", "again.safetensors"):
        assert invoke("predict", "--arch", SMALL, "--weights", tmp_path / name, pictures, "--topk", 1) == wanted


def test_embeddings_of_a_folder(run: Path, pictures: Path, invoke: Invoke, tmp_path: Path) -> None:
    for stage, shape in ((None, (8,)), ("layer2", (4, 4, 8))):
        output = tmp_path / f"{stage}.npz"
        options = ["--stage", stage] if stage else []
        said = invoke("embed", run, pictures, "--output", output, "--batch-size", 3, *options)
        assert f"7 embeddings {list(shape)}" in said
        with np.load(output) as stored:
            assert str(stored["stage"]) == (stage or "pool")
            assert [str(name) for name in stored["images"]] == [named_images([pictures]).where(i) for i in range(7)]
            classifier = load_pretrained(SMALL, run)
            for name, embedding in zip(stored["images"], stored["embeddings"], strict=True):
                image = classifier.preprocess(Image.open(str(name)))[None]
                stage = stage or "pool"
                expected = jaxnets.features(classifier.model, classifier.variables, image, [stage])[stage][0]
                assert embedding.shape == shape
                np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.slow
def test_all_commands_in_folders_of_unusual_names(tmp_path: Path) -> None:
    """Each name has letters that patterns, shells and encodings treat in a way of their own."""
    odd = "[a]\\*?{x}\n\udcff"
    folder = tmp_path / odd
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat [1]", "d\\og"):
            place = folder / "data" / odd / part / label
            place.mkdir(parents=True)
            for number in range(4):
                with (place / f"{number}{odd}.png").open("wb") as file:
                    Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(file, "png")

    def call(name: str, *arguments: object) -> None:
        done = command(name, *arguments, folder=folder)
        assert done.returncode == 0, (name, done.stderr)

    settings = ("--arch", ARCH, "--epochs", 1, "--batch-size", 4, "--image-size", 8)
    data = f"data/{odd}"
    call("train", *settings, "--dataset", f"./{data}", "--workdir", f"run {odd}", "--tensorboard")
    call("report", f"run {odd}")
    call("evaluate", f"run {odd}")
    call("convert", f"run {odd}", "--output", f"weights {odd}.safetensors")
    for number, weights in enumerate(([f"run {odd}"], ["--arch", ARCH, "--weights", f"weights {odd}.safetensors"])):
        call("predict", *weights, data, "--output", f"{odd}{number}.csv")
    answers = [(folder / f"{odd}{number}.csv").read_bytes() for number in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].count(b"\r\n") == 1 + 16 * 2
    call("embed", f"run {odd}", data, "--output", f"{odd}.npz")
    call("export", f"run {odd}", "--output", f"{odd}.stablehlo")
    call("prepare", f"./{data}", "--output", f"./records {odd}", "--size", 12)
    call("train", *settings, "--dataset", f"./records {odd}", "--weights", f"run {odd}", "--workdir", f"second {odd}")
    for run in (f"run {odd}", f"second {odd}"):
        assert {path.name for path in (folder / run).iterdir()} >= {"checkpoints", "predictions.csv", "report.html"}


@pytest.mark.slow
def test_an_exported_program_is_the_model(run: Path, pictures: Path, invoke: Invoke, tmp_path: Path) -> None:
    output = tmp_path / "classifier.stablehlo"
    said = invoke("export", run, "--output", output)
    classifier = load_pretrained(SMALL, run)
    side = classifier.preprocess.crop_size
    assert f"uint8 [batch, {side}, {side}, 3] -> logits [batch, 3]" in said
    program = jax.export.deserialize(bytearray(output.read_bytes()))
    images = np.stack([classifier.preprocess.pixels(Image.open(path)) for path in sorted(pictures.rglob("*.png"))])
    expected: Any = classifier.model.apply(classifier.variables, classifier.preprocess.normalise(images), train=False)
    for count in (1, 2, 7):
        np.testing.assert_allclose(program.call(images[:count]), expected[:count], rtol=1e-4, atol=1e-5)
    meaning = json.loads((tmp_path / "classifier.stablehlo.json").read_text())
    assert meaning["class_names"] == list(networks.NAMES)
    assert meaning["preprocessing"]["crop_size"] == side


@pytest.mark.slow
def test_an_export_that_differs_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxnets import export
    from jaxnets.errors import InputError

    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(InputError, match="the exported program differs from the model"):
        export.write_export(load_pretrained(SMALL, run), SMALL, tmp_path / "x.stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("transfer", "more"),
    [
        ("head", ("--epochs", 4)),
        pytest.param("partial", ("--train-from", "layer3.1", "--epochs", 1), marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.slow
def test_a_run_starts_from_another_and_keeps_how_it_sees(
    transfer: str, more: tuple[object, ...], tmp_path: Path
) -> None:
    """As a user types it, with the recipes that are meant for it."""
    run = trained(ARCH, tmp_path / "run")
    arguments = ("--arch", ARCH, "--weights", run, "--batch-size", 64, "--transfer", transfer, *more)
    done = command("train", *arguments, "--workdir", "mine", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of them trained" in done.stderr
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert (config["weights"], config["transfer"]) == (str(run), transfer)
    # The images are as large as those that the weights were tested on.
    assert (config["recipe"]["image_size"], config["recipe"]["crop_pct"]) == (8, 0.8)
    after = load_classifier(tmp_path / "mine")
    assert after.preprocessing == load_classifier(run).preprocessing
    assert after.class_names == tuple("0123456789")


def test_what_commands_refuse(
    run: Path, pictures: Path, tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "there.safetensors").write_text("mine")
    (tmp_path / "none").mkdir()
    refuses("predict", words=("no images",))
    refuses("predict", run, words=("no images",))
    refuses("predict", run, tmp_path / "none", words=("none", "no image files"))
    refuses("predict", run, pictures, "--topk", 0, words=("--topk 0",))
    refuses("predict", run, pictures, "--batch-size", 0, words=("--batch-size 0",))
    refuses("predict", run, pictures, "--output", "there.csv", words=("there.csv exists already",))
    refuses("predict", run, pictures, "--output", "x.doc", words=("x.doc", ".csv or .json"))
    refuses("predict", run, pictures, "--weights", "x.pth", words=("--weights x.pth needs the network", "--arch"))
    refuses("predict", "--arch", ARCH, pictures, words=("no weights are published for resnet20_cifar",))
    refuses("embed", run, pictures, "--output", "x.npy", words=("x.npy", ".npz"))
    refuses("embed", run, pictures, "--output", "x.npz", "--stage", "layer9", words=("no stage 'layer9'",))
    refuses("export", "--output", "x", words=("give the folder of a run",))
    refuses("export", run, pictures, "--output", "x", words=("one classifier at a time",))
    refuses("export", run, "--output", "there.csv", words=("there.csv exists already",))
    refuses("convert", run, "--output", "there.safetensors", words=("there.safetensors exists already",))
    refuses("convert", "x.pth", "--arch", ARCH, "--output", "y.pth", words=("x.pth", "no such file", "a file or a run"))
    monkeypatch.setattr("jaxnets.export.find_spec", lambda _: None)
    refuses("export", "nowhere", "--output", "x", words=("needs the package flatbuffers", "jaxnets[export]"))
    refuses("convert", run, "--output", "x.bin", words=("x.bin", ".safetensors"))
    refuses("convert", "x.pth", "--output", "y.pth", words=("x.pth", "--arch"))
    refuses("convert", run, "--crop-size", 3, "--output", "y.pth", words=("a run knows",))
    refuses("convert", run, "--arch", "resnet50", "--output", "y.pth", words=(f"a run of {SMALL}, not of resnet50",))
    refuses("train", "--arch", ARCH, "--transfer", "head", words=("no weights are published",))
    refuses("train", "--arch", ARCH, "--weights", "x.pth", words=("x.pth", "no such file"))
    refuses(
        "train",
        "--arch",
        SMALL,
        "--weights",
        run,
        "--train-from",
        "layer2",
        words=("--train-from layer2 needs --transfer partial",),
    )
    refuses("train", "--arch", SMALL, "--weights", run, "--transfer", "some", words=("--transfer", "full"))
    left = {"there.csv", "there.safetensors", "none", "pictures"}
    assert {path.name for path in tmp_path.iterdir()} <= left | {"cache"}


def test_images_that_can_not_be_read(run: Path, pictures: Path, invoke: Invoke, refuses: Refuses) -> None:
    (pictures / "broken.png").write_text("nonsense")
    refuses("predict", run, pictures, words=("broken.png", "unreadable image"))
    assert len(json.loads(invoke("predict", run, pictures, "--format", "json", "--on-bad-image", "skip"))) == 7
    shutil.rmtree(pictures)
    pictures.mkdir()
    (pictures / "broken.png").write_text("nonsense")
    refuses("predict", run, pictures, "--on-bad-image", "skip", words=("none of 1 images can be read", "broken.png"))


def test_published_weights_that_are_out_of_reach_are_explained(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    done = command("predict", "--arch", "resnet18", pictures, folder=tmp_path)
    refused(done, "https://download.pytorch.org/models/resnet18-f37072fd.pth", str(tmp_path / "cache"))


def test_a_folder_of_wordnet_ids_is_judged_by_imagenets_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "w.pth", ARCH, lively(ARCH, 1000))
    random = np.random.default_rng(0)
    # Three of Imagenette's classes, in its folders; the labels are their places among ImageNet's 1000.
    classes = {"n03888257": ("parachute", 701), "n01440764": ("tench", 0), "n02979186": ("cassette player", 482)}
    for number, folder in enumerate(classes):
        for part in ("train", "val"):
            (tmp_path / "imagenette" / part / folder).mkdir(parents=True)
            for image in range(2 + number):
                pixels = random.integers(0, 256, (40, 36, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "imagenette" / part / folder / f"{image}.png")
    monkeypatch.chdir(tmp_path)
    given = ["--arch", ARCH, "--weights", "w.pth", "--dataset", "imagenette", "--json"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *given, "--split", "val"])
    evaluate.main()
    output, errors = capsys.readouterr()
    assert "the 3 classes of the data set are among the 1000 of the network" in errors
    scores = json.loads(output)
    support = {row["class"]: row["support"] for row in scores["per_class"] if row["support"]}
    assert support == {"tench": 3, "cassette player": 4, "parachute": 2}
    # The loss is that of the true labels.
    classifier = load_pretrained(ARCH, "w.pth")
    losses = []
    for folder, (_, label) in classes.items():
        for file in sorted((tmp_path / "imagenette" / "val" / folder).iterdir()):
            images = classifier.preprocess(Image.open(file))[None]
            logits = np.asarray(classifier.model.apply(classifier.variables, images, train=False), np.float64)[0]
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    assert scores["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
