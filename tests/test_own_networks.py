"""Networks from outside of jaxnets through every command, by --arch package.module:factory."""

import json
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import jaxnets
from jaxnets.errors import InputError
from jaxnets.inference import fold
from jaxnets.models.contract import anatomy
from jaxnets.pretrained import load_pretrained
from jaxnets.training.checkpoint import load_classifier
from jaxnets.transfer import frozen_modules
from tests.examples.resnet_d import resnet18d
from tests.tiers import slow_except

narrow_resnet18d = partial(resnet18d, num_filters=8)
# Each of the eight devices has one image: smaller ones would leave a map of one pixel, whose variance is zero.
ARCHS = {
    "tests.examples.se_resnet:se_resnet20": 16,
    "tests.test_own_networks:narrow_resnet18d": 64,
    "tests.examples.plain:PlainNetwork": 16,
}
CLASSES = ("bright", "dark", "grey")


def invoke(name: str, *arguments: object) -> str:
    """A command, in this process; what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        import_module(f"experiments.{name}").main()
    return "\n".join(printed)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of three classes that any network tells apart."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(80 * label, 80 * label + 60, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def options(photos: Path) -> list[Any]:
    """Of all runs."""
    return ["--dataset", photos, "--epochs", 1, "--batch-size", 8]


@pytest.fixture(scope="module", params=slow_except(["tests.examples.se_resnet:se_resnet20"], ARCHS))
def run(request: pytest.FixtureRequest, options: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network from outside."""
    arch, workdir = request.param, tmp_path_factory.mktemp("own") / "run"
    invoke("train", "--arch", arch, *options, "--image-size", ARCHS[arch], "--workdir", workdir)
    return workdir


def arch_of(run: Path) -> str:
    arch: str = json.loads((run / "config.json").read_text())["arch"]
    return arch


@pytest.mark.slow
def test_later_commands_find_the_network_again(run: Path, photos: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["arch"] == arch_of(run) in ARCHS
    part = result["judged_on"]
    right = round(result[f"{part}_accuracy"] * result[f"{part}_images"])
    assert f"{right} of {result[f'{part}_images']} {part} images are right\n" in invoke("evaluate", run)
    image = photos / "val" / CLASSES[0] / "0.png"
    answer = json.loads(_answers("predict", run, image, "--topk", 3, "--format", "json", folder=tmp_path))
    assert {guess["class"] for guess in answer[0]["classes"]} == set(CLASSES)
    invoke("embed", run, photos / "val", "--output", tmp_path / "embedded.npz")
    with np.load(tmp_path / "embedded.npz") as file:
        width = load_classifier(run).variables["params"][anatomy(load_classifier(run).model).head]["kernel"].shape[0]
        assert file["embeddings"].shape == (12, width)
    assert result["num_params"] > 0
    assert f"{result['num_params']:,}" in invoke("summary", "--arch", arch_of(run), "--num-classes", 3)


def _answers(name: str, *arguments: object, folder: Path) -> str:
    output = folder / "answers.json"
    invoke(name, *arguments, "--output", output)
    return output.read_text()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.slow
def test_conversion_and_back_is_exact(run: Path, suffix: str, tmp_path: Path) -> None:
    arch, first, second = arch_of(run), tmp_path / f"first.{suffix}", tmp_path / "second.safetensors"
    invoke("convert", run, "--output", first)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(CLASSES))
    invoke("convert", first, "--arch", arch, "--class-names", classes, "--output", second)
    trained, loaded = load_classifier(run), load_pretrained(arch, second)
    assert loaded.categories == CLASSES
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(trained.variables)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, trained.variables)


@pytest.mark.slow
def test_folding_and_exporting(run: Path, tmp_path: Path) -> None:
    classifier = load_pretrained(arch_of(run), run)
    model: Any = classifier.model
    side = classifier.preprocess.crop_size
    images = jax.random.normal(jax.random.key(0), (4, side, side, 3))
    folded, variables, unfolded = fold(model, classifier.variables)
    expected = jax.jit(partial(model.apply, train=False))(classifier.variables, images)
    actual = jax.jit(partial(folded.apply, train=False))(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    plain = "plain" in arch_of(run)
    assert unfolded == (tuple(f"BatchNorm_{i}" for i in range(3)) if plain else ())
    invoke("export", run, "--output", tmp_path / "program.stablehlo")
    meaning = json.loads((tmp_path / "program.stablehlo.json").read_text())
    assert (meaning["arch"], meaning["class_names"]) == (arch_of(run), list(CLASSES))


@pytest.mark.parametrize("transfer", slow_except(["partial"], ["full", "partial", "head"]))
@pytest.mark.slow
def test_the_three_ways_of_transfer(run: Path, transfer: str, options: list[Any], tmp_path: Path) -> None:
    arch, before = arch_of(run), load_classifier(run)
    invoke("train", "--arch", arch, *options, "--weights", run, "--transfer", transfer, "--workdir", tmp_path / "run")
    after = load_classifier(tmp_path / "run")
    frozen = set(frozen_modules(before.model, transfer, None, before.variables["params"]))
    assert bool(frozen) == (transfer != "full")
    for kind, modules in before.variables.items():
        for name, tree in modules.items():
            leaves = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(after.variables[kind][name]), strict=True)
            changed = {jax.tree_util.keystr(path): bool((one != other).any()) for (path, one), other in leaves}
            assert set(changed.values()) == {name not in frozen}, (kind, name, changed)


def test_stages_of_a_plain_network_are_its_modules_in_the_order_of_their_calls() -> None:
    model = jaxnets.create_model("tests.examples.plain:PlainNetwork", num_classes=3)
    parts = anatomy(model)
    layers = [f"{layer}_{i}" for i in range(3) for layer in ("Conv", "BatchNorm")]
    assert list(parts.stages) == [*layers, "head_inputs", "Dense_0"]
    assert parts.stages["Conv_0"] == ("shift", "Conv_0")
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3)), train=False)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    outputs = jaxnets.features(model, variables, images, ["BatchNorm_2", "head_inputs", "Dense_0"])
    pooled = np.maximum(outputs["BatchNorm_2"], 0).mean(axis=(1, 2))
    np.testing.assert_allclose(outputs["head_inputs"], pooled, rtol=1e-6)
    head = variables["params"]["Dense_0"]
    np.testing.assert_allclose(outputs["Dense_0"], pooled @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)


def test_synchronised_statistics_need_an_axis(options: list[Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"PlainNetwork has no field axis_name.*use --batch-norm local"):
        invoke("train", "--arch", "tests.examples.plain:PlainNetwork", *options, "--batch-norm", "synchronised",
               "--image-size", 16, "--workdir", tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "line"),
    {
        "tests.exampels:net": "there is no module tests.exampels; did you mean .*examples",
        "tests.examples.se_resnet:se_resnet": "has no function se_resnet; did you mean se_resnet20",
        "tests.test_own_networks:invoke": r"does not take num_classes and dtype; expected factory\(num_classes=",
        "tests.test_own_networks:a_dict": "returned dict; expected a flax.linen module",
        "tests.test_own_networks:an_error": r"a_failure|failed",
        "tests.examples:": "expected package.module:factory",
    }.items(),
)
def test_a_factory_that_can_not_be_used_is_refused_in_one_line(arch: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        jaxnets.create_model(arch)
    assert "\n" not in str(caught.value)


def a_dict(num_classes: int, dtype: Any) -> Any:
    return {"num_classes": num_classes, "dtype": dtype}


def an_error(num_classes: int, dtype: Any) -> Any:
    raise TypeError("a_failure")


def test_registered_networks_have_a_name_and_a_family() -> None:
    import_module("tests.examples.se_resnet")
    assert "se_resnet20" in jaxnets.list_models("se_*")
    model: Any = jaxnets.create_model("se_resnet20", num_classes=4, num_filters=4)
    assert (model.num_classes, model.num_filters) == (4, 4)
    with pytest.raises(InputError, match="there is a network 'resnet50' already"):
        jaxnets.register_model("resnet50", narrow_resnet18d)
    with pytest.raises(InputError, match="family='vgg'; expected one of alexnet"):
        jaxnets.register_model("mine", narrow_resnet18d, family="vgg")


def test_the_current_folder_is_searched(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from jaxnets.models.alexnet import AlexNet\n"
        "def small(num_classes, dtype):\n    return AlexNet(num_classes, 8, dtype=dtype)\n"
    )
    program = (
        "import sys; sys.path.remove(''); import jaxnets; print(jaxnets.create_model('mine:small').hidden_features)"
    )
    root = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=root)
    assert done.stdout == "8\n", done.stderr


class Staged(nn.Module):
    """A network whose stages leave a module out."""

    num_classes: int = 3
    dtype: Any = np.float32
    stages: ClassVar = {"pool": (), "fc": ("fc",)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes, name="fc")(nn.Conv(4, (3, 3), name="conv")(images).mean(axis=(1, 2)))


class Counting(nn.Module):
    """A network with a collection of its own, for images of 16 px alone."""

    num_classes: int = 3
    dtype: Any = np.float32
    image_size: ClassVar = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        self.variable("counts", "calls", np.zeros, ())
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@pytest.mark.parametrize(
    ("network", "size", "line"),
    [("Staged", 16, "no stage has conv; add them to Staged.stages"), ("Counting", 16, "has variables in counts"),
     ("Counting", 8, "takes images of 16 px alone; got 8, give --image-size 16")],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused_before_training(
    network: str, size: int, line: str, options: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=line):
        invoke("train", "--arch", f"tests.test_own_networks:{network}", *options, "--image-size", size,
               "--workdir", tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()
