"""Networks with weights from files, from runs, and published, and what comes along with them."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxnets
from jaxnets import pretrained
from jaxnets.conversion import convert_run, convert_weights
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.resnet import BasicBlock, ResNet
from jaxnets.pretrained import load_pretrained, shapes_of
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.loop import train
from jaxnets.weights import file_origin, from_torchvision, to_torchvision
from jaxnets.weights.catalogue import imagenet_classes, published
from jaxnets.weights.download import sha256_of
from jaxnets.weights.tensor_file import open_tensors
from jaxnets.weights.tensors import Spec
from jaxnets.weights.torch_file import write_torch_file
from tests.references import recipe
from tests.tiers import slow_except
from tests.training import networks


class OneSize(ResNet):
    """A network that takes images of 24 pixels alone."""

    image_size: ClassVar[int] = 24


one_size = partial(OneSize, stage_sizes=(1,), block=BasicBlock, num_filters=4, stem="cifar")
PHOTO = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)


def variables_of(arch: str, num_classes: int, dtype: Any = np.float32, **options: Any) -> Any:
    """A network, and variables of it in which no two numbers are the same."""
    model, like = shapes_of(arch, num_classes, options)
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)) if len(leaf.shape) > 1 else 0.1
        values = random.standard_normal(leaf.shape, np.float32) * np.float32(scale)
        return (np.abs(values) + 0.5 if "var" in jax.tree_util.keystr(path) else values).astype(dtype)

    return model, jax.tree_util.tree_map_with_path(draw, like)


def lively(arch: str, num_classes: int) -> Any:
    """Variables that carry the image through to the logits."""
    _, like = shapes_of(arch, num_classes, {})
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.bool_), like)
    shapes = {name: array.shape for name, array in to_torchvision(arch, empty).items()}
    state = {name: array.astype(np.float32) for name, array in recipe.random_state_dict(shapes.items()).items()}
    return from_torchvision(arch, state, like)


def write(path: Path, arch: str, variables: Any, **changes: np.ndarray) -> Path:
    tensors = {**to_torchvision(arch, variables), **changes}
    specs = {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}
    write_torch_file(path, specs, tensors.__getitem__)
    return path


def assert_same(actual: Any, expected: Any) -> None:
    """Equal trees, to the last bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, np.asarray(one).tobytes()) == (other.dtype, np.asarray(other).tobytes())


@pytest.mark.parametrize(
    "arch",
    slow_except(
        ["googlenet", "resnet18"], ["alexnet", "googlenet", "resnet18", "resnext50_32x4d", "resnet164_v2_cifar"]
    ),
)
def test_variables_come_back_from_a_file_to_the_bit(arch: str, tmp_path: Path) -> None:
    model, variables = variables_of(arch, 7)
    path = write(tmp_path / "weights.pth", arch, variables)
    with open_tensors(path) as tensors:
        assert_same(from_torchvision(arch, tensors, variables), variables)
    loaded = load_pretrained(arch, path)
    assert_same(loaded.variables, variables)
    assert loaded.model == model
    # A bare file gets the network's defaults.
    assert loaded.preprocess == (Preprocessing(32, 32) if arch.endswith("_cifar") else Preprocessing(224, 256))
    assert loaded.categories == ("0", "1", "2", "3", "4", "5", "6")


@pytest.mark.fast
def test_a_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    _, variables = variables_of("resnet20_cifar", 1000)
    loaded = load_pretrained("resnet20_cifar", write(tmp_path / "w.pt", "resnet20_cifar", variables))
    assert loaded.categories == imagenet_classes()
    assert loaded.categories[207] == "golden retriever"


@pytest.mark.parametrize(
    ("arch", "crop", "resize"),
    [
        ("resnet20_cifar", 32, 32),
        ("resnet164_v2_cifar", 32, 32),
        ("resnet18", 224, 256),
        ("tests.test_pretrained:one_size", 24, 24),
    ],
)
def test_a_bare_file_gets_the_size_of_its_network_and_says_it(
    arch: str, crop: int, resize: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, like = shapes_of(arch, 5, {})
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), like)
    path = write(tmp_path / "w.pth", arch, variables)
    assert load_pretrained(arch, path).preprocess == Preprocessing(crop, resize)
    said = f"w.pth: it does not say its preprocessing: images are resized to {resize} px, cropped to {crop} px and"
    assert capsys.readouterr().err.startswith(said)
    # A converted file says it.
    convert_weights(arch, path, tmp_path / "w.safetensors", preprocessing=Preprocessing(40, 48))
    capsys.readouterr()
    assert load_pretrained(arch, tmp_path / "w.safetensors").preprocess == Preprocessing(40, 48)
    assert capsys.readouterr().err == ""


def test_what_the_network_reads_of_an_image() -> None:
    preprocess = Preprocessing(8, 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    read = preprocess(PHOTO)
    assert (read.shape, read.dtype) == ((8, 8, 3), np.float32)
    expected = (preprocess.pixels(PHOTO) / 255 - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(preprocess(PHOTO, np.float64), expected, rtol=1e-14)
    np.testing.assert_allclose(preprocess.normalise(jnp.asarray(preprocess.pixels(PHOTO))), read, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_types_of_files_and_networks(stored: Any, tmp_path: Path) -> None:
    _, variables = variables_of("resnet20_cifar", 3, stored)
    path = write(tmp_path / "w.pth", "resnet20_cifar", variables)
    for dtype, kept in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)):
        with jax.enable_x64(dtype is jnp.float64):
            loaded = load_pretrained("resnet20_cifar", path, dtype=dtype)
            assert_same(loaded.variables, jax.tree.map(lambda leaf, kept=kept: leaf.astype(kept), variables))
            logits: Any = loaded.model.apply(loaded.variables, loaded.preprocess(PHOTO)[None, ::8, ::8], train=False)
            assert logits.dtype == dtype
    with pytest.raises(InputError, match="dtype=float64"):
        load_pretrained("resnet20_cifar", path, dtype=jnp.float64)


@pytest.mark.parametrize(
    ("arch", "options"),
    slow_except([("resnet20_cifar", {})], [("resnet20_cifar", {}), ("googlenet", {"aux_logits": True})]),
)
def test_another_count_of_classes_gives_a_new_head(arch: str, options: Any, tmp_path: Path) -> None:
    _, variables = variables_of(arch, 3, **options)
    path = write(tmp_path / "w.pth", arch, variables)
    loaded = load_pretrained(arch, path, num_classes=5)
    new, _ = shapes_of(arch, 5, options)
    heads = {("fc",), *((aux, "fc2") for aux in ("aux1", "aux2") if options)}
    assert loaded.model == new
    assert loaded.categories == ("0", "1", "2", "3", "4")
    for tree, wanted in ((loaded.variables, 5), (variables, 3)):
        for place in heads:
            head = tree["params"]
            for name in place[:-1]:
                head = head[name]
            assert head.pop(place[-1])["bias"].shape == (wanted,)
    assert_same(loaded.variables, variables)
    assert load_pretrained(arch, path, num_classes=3).categories == ("0", "1", "2")
    with pytest.raises(InputError, match="num_classes=0"):
        load_pretrained(arch, path, num_classes=0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for downloads: a published file is what lies here under its name."""

    def fetch(record: Any) -> Path:
        return tmp_path / record.file_name

    def by_checksum(checksum: str) -> Any:
        found = [path for path in tmp_path.iterdir() if sha256_of(path) == checksum]
        return published("googlenet") if found and found[0].name.startswith("googlenet-") else None

    monkeypatch.setattr(pretrained, "fetch", fetch)
    monkeypatch.setattr(file_origin, "by_checksum", by_checksum)
    return tmp_path


@pytest.mark.slow
def test_published_googlenet_renormalises_its_input_and_has_no_auxiliary_heads(cache: Path) -> None:
    variables = lively("googlenet", 1000)
    path = write(cache / published("googlenet").file_name, "googlenet", variables)
    plain, _ = shapes_of("googlenet", 1000, {})
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    scaled = images * jnp.array([0.229, 0.224, 0.225]) + jnp.array([0.485, 0.456, 0.406])
    # All files give equal networks, for which this compiles once.
    apply = jax.jit(lambda model, variables, images: model.apply(variables, images, train=False), static_argnums=0)
    expected = np.asarray(apply(plain, variables, (scaled - 0.5) / 0.5))
    untouched = np.asarray(apply(plain, variables, images))
    # By its name, by its path, whose checksum is known, and through conversion.
    convert_weights("googlenet", "IMAGENET1K_V1", cache / "mine.safetensors")
    for weights in ("DEFAULT", path, cache / "mine.safetensors"):
        model, loaded, preprocess, categories = load_pretrained("googlenet", weights)
        assert "aux1" not in loaded["params"]
        assert not model.aux_logits  # type: ignore[attr-defined]
        logits = np.asarray(apply(model, loaded, images))
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
        assert np.abs(untouched - expected).max() > 1e-2 * np.abs(expected).max()
        assert preprocess == Preprocessing(224, 256)
        assert categories == imagenet_classes()
    with pytest.raises(InputError, match=r"holds the published weights of googlenet, not of resnet18|has no tensor"):
        load_pretrained("resnet18", path)


@pytest.mark.slow
def test_v1_and_v2_are_preprocessed_as_published(cache: Path) -> None:
    _, variables = variables_of("resnet50", 1000)
    for name, resize in (("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232), ("DEFAULT", 232)):
        path = cache / published("resnet50", name).file_name
        if not path.exists():
            write(path, "resnet50", variables)
        described = pretrained.describe("resnet50", name)
        assert (described.preprocessing.resize_size, described.preprocessing.crop_size) == (resize, 224)
    convert_weights("resnet50", "IMAGENET1K_V2", cache / "v2.safetensors")
    assert load_pretrained("resnet50", cache / "v2.safetensors").preprocess.resize_size == 232


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "run"
    config = networks.config("resnet20_cifar", **networks.STILL, epochs=1)
    train(config, workdir, networks.DATASET, parallel=networks.cpus(1))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_run_goes_through_files_and_comes_back_to_the_bit(run: Path, suffix: str, tmp_path: Path) -> None:
    wanted = load_classifier(run)
    path = tmp_path / f"run{suffix}"
    assert convert_run(run, path)[0] == "resnet20_cifar"
    for weights in (run, path):
        loaded = load_pretrained("resnet20_cifar", weights)
        assert_same(loaded.variables, wanted.variables)
        if weights == run or suffix == ".safetensors":
            assert loaded.categories == networks.NAMES
            assert loaded.preprocess == wanted.preprocessing
    with open_tensors(path) as tensors:
        counters = [name for name in tensors if name.endswith("num_batches_tracked")]
        assert len(counters) == sum(name.endswith("running_mean") for name in tensors) > 0
        assert {tensors.specs[name] for name in counters} == {Spec(np.dtype(np.int64), ())}
        if suffix == ".safetensors":
            assert json.loads(tensors.metadata["class_names"]) == list(networks.NAMES)
            assert tensors.metadata["arch"] == "resnet20_cifar"


def test_a_converted_file_says_what_goes_with_it(tmp_path: Path) -> None:
    _, variables = variables_of("resnet20_cifar", 2, np.float16)
    source = write(tmp_path / "w.pth", "resnet20_cifar", variables, extra_num_batches_tracked=np.array(3))
    preprocessing = Preprocessing(32, 36, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic")
    target = tmp_path / "w.safetensors"
    convert_weights("resnet20_cifar", source, target, preprocessing=preprocessing, class_names=["cat", "dög"])
    with open_tensors(target) as tensors, open_tensors(source) as originals:
        assert dict(tensors.specs) == dict(originals.specs)  # types as they were
        assert all(tensors[name].tobytes() == originals[name].tobytes() for name in originals)
        assert tensors.metadata["source"] == "w.pth"
        assert tensors.metadata["source_sha256"] == sha256_of(source)
    loaded = load_pretrained("resnet20_cifar", target)
    assert (loaded.preprocess, loaded.categories) == (preprocessing, ("cat", "dög"))
    with pytest.raises(InputError, match=r"w.safetensors holds weights of resnet20_cifar, not of resnet32_cifar"):
        load_pretrained("resnet32_cifar", target)
    for again in (target, tmp_path / "w.pth"):
        with pytest.raises(InputError, match="exists already"):
            convert_weights("resnet20_cifar", source, again)
    with pytest.raises(InputError, match="3 class names for a head of 2 classes"):
        convert_weights("resnet20_cifar", source, tmp_path / "x.pth", class_names=["a", "b", "c"])
    with pytest.raises(InputError, match=r"output .*x.bin; expected a name that ends in .safetensors, .pth, .pt"):
        convert_weights("resnet20_cifar", source, tmp_path / "x.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_names": '["a"]'}, "names 1 classes, but its head has 2"),
        ({"preprocessing": "{"}, "what it says about itself is damaged"),
        ({"preprocessing": '{"crop_size": 0}'}, "what it says about itself is damaged"),
        ({"class_names": "3"}, "what it says about itself is damaged"),
        ({"options": "[1]"}, "what it says about itself is damaged"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(change: dict[str, str], reason: str, tmp_path: Path) -> None:
    from jaxnets.weights.safetensors_file import write_safetensors

    _, variables = variables_of("resnet20_cifar", 2)
    good = tmp_path / "good.safetensors"
    convert_weights("resnet20_cifar", write(tmp_path / "w.pth", "resnet20_cifar", variables), good)
    bad = tmp_path / "bad.safetensors"
    with open_tensors(good) as tensors:
        write_safetensors(bad, tensors.specs, tensors.__getitem__, tensors.metadata | change)
    with pytest.raises(InputError, match=f"{bad}.*{reason}"):
        load_pretrained("resnet20_cifar", bad)


@pytest.mark.fast
def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _, variables = variables_of("resnet20_cifar", 2)
    path = write(tmp_path / "w.pth", "resnet20_cifar", variables)
    with pytest.raises(InputError, match=rf"{path}: .*missing \['layer1.3.*left over \[\]"):
        load_pretrained("resnet32_cifar", path)
    with pytest.raises(InputError, match=r"no tensor classifier.6.weight \[classes, C\]; are these weights of alexnet"):
        load_pretrained("alexnet", path)
    other = write(tmp_path / "o.pth", "resnet20_cifar", variables, **{"more.weight": np.zeros(3)})
    with pytest.raises(InputError, match=r"missing \[\], left over \['more.weight'\]"):
        convert_weights("resnet20_cifar", other, tmp_path / "x.safetensors")
    short = write(tmp_path / "s.pth", "resnet20_cifar", variables, **{"bn1.bias": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=rf"{short}: bn1.bias has shape \(3,\); resnet20_cifar expects \(16,\)"):
        load_pretrained("resnet20_cifar", short)
    with pytest.raises(InputError, match="unknown architecture 'resnet21'"):
        load_pretrained("resnet21", path)
    with pytest.raises(
        InputError, match=r"'IMAGENET1K_V2': there is no such file.*weights published: IMAGENET1K_V1, DEFAULT"
    ):
        load_pretrained("resnet18", "IMAGENET1K_V2")
    with pytest.raises(InputError, match="no weights are published for resnet20_cifar"):
        load_pretrained("resnet20_cifar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no run; give a folder that jaxnets train wrote"):
        load_pretrained("resnet20_cifar", tmp_path / "empty")


@pytest.mark.exhaustive
def test_a_run_of_float64_is_used_in_float32(run: Path, tmp_path: Path) -> None:
    config = replace(networks.config("resnet20_cifar", **networks.STILL, epochs=1), dtype="float64")
    with jax.enable_x64(True):
        train(config, tmp_path / "run", networks.DATASET, parallel=networks.cpus(1))
        assert load_pretrained("resnet20_cifar", tmp_path / "run", dtype=jnp.float64).variables["params"]
        loaded = load_pretrained("resnet20_cifar", tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert loaded.model.dtype == jnp.float32  # type: ignore[attr-defined]


def test_it_is_all_in_the_package() -> None:
    assert jaxnets.load_pretrained is load_pretrained
    assert {"load_pretrained", "features", "Pretrained"} <= set(jaxnets.__all__)


_MEASURED = """
import sys
from pathlib import Path
from jaxnets.conversion import convert_weights
convert_weights("resnet152", Path(sys.argv[1]), Path(sys.argv[2]))
# Not the system's count of a process, which begins with that of the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_conversion_takes_little_memory(tmp_path: Path) -> None:
    """Of ResNet-152, whose tensors take 241 MB: the whole process, imports included."""
    _, like = shapes_of("resnet152", 1000, {})
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.bool_), like)
    specs = {n: Spec(np.dtype(np.float32), a.shape) for n, a in to_torchvision("resnet152", empty).items()}
    write_torch_file(tmp_path / "w.pth", specs, lambda name: np.ones(specs[name].shape, np.float32))
    size = sum(spec.nbytes for spec in specs.values())
    assert 240e6 < size < 242e6
    paths = [str(tmp_path / name) for name in ("w.pth", "w.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *paths], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.2 * size + 300e6
    # Nearly all of it is what importing JAX takes.
    assert int(done.stdout) <= 0.5 * size + 300e6
