"""What training and conversion start from: the head that is kept or new, and weights that are refused."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnets.conversion import convert_run, convert_weights
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.pretrained import load_pretrained, starting_variables
from jaxnets.training.checkpoint import load_classifier
from jaxnets.weights import file_origin, to_torchvision
from jaxnets.weights.catalogue import imagenet_classes, imagenet_ids, labels_by_name, same_classes
from jaxnets.weights.runs import FOLDER, orbax_files
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensors import Spec
from tests.test_pretrained import variables_of, write

ARCH = "tests.weights.small_resnet:resnet8"
WORDNET_IDS = imagenet_ids()
FIVE = ("a", "b", "c", "d", "e")


def weights(folder: Path, names: tuple[str, ...] | None, count: int = 5) -> tuple[Path, Any]:
    """A file of weights and their variables; with `names`, the file says them."""
    _, variables = variables_of(ARCH, count)
    path = write(folder / "w.pth", ARCH, variables)
    if names is not None:
        convert_weights(ARCH, path, path := folder / "w.safetensors", class_names=names)
    return path, variables


@pytest.mark.parametrize(
    ("names", "data", "is_kept", "said"),
    [
        (FIVE, FIVE, True, "the head is kept: the weights have the same 5 classes"),
        (FIVE, FIVE[::-1], False, "the head is new: the weights have the same 5 classes in another order"),
        (FIVE, (*FIVE[:4], "x"), False, "the head is new: class 4 is 'e' for the weights, and 'x' in the data"),
        (FIVE, FIVE[:4], False, "the head is new: the weights have 5 classes, the data 4"),
        (
            None,
            FIVE,
            True,
            "the head is kept: weights and data have 5 classes each, and",
        ),
        (None, FIVE[:4], False, "the head is new: the weights have 5 classes, the data 4"),
        (imagenet_classes(), WORDNET_IDS, True, "the head is kept: the weights have the same 1000 classes"),
        (WORDNET_IDS, imagenet_classes(), True, "the head is kept: the weights have the same 1000 classes"),
        (imagenet_classes(), WORDNET_IDS[::-1], False, "the head is new: class 0 is 'tench'"),
    ],
)
def test_the_head_is_kept_where_the_classes_are_the_same(
    names: tuple[str, ...] | None,
    data: tuple[str, ...],
    is_kept: bool,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, variables = weights(tmp_path, names, len(names or FIVE))
    model = create_model(ARCH, num_classes=len(data))
    capsys.readouterr()
    start = starting_variables(model, ARCH, path, data, jax.random.key(0))
    bias, theirs = start["params"]["fc"]["bias"], variables["params"]["fc"]["bias"]
    assert np.array_equal(bias, theirs) == is_kept
    np.testing.assert_array_equal(start["params"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"starting from {path.name}"
    assert lines[1].startswith(said)
    assert len(lines) == 2


def test_imagenets_classes_are_recognised_exactly() -> None:
    assert same_classes(WORDNET_IDS, imagenet_classes())
    # The checksum of the ids in timm 1.0.31; ImageNet's order is theirs, by number.
    joined = "\n".join(WORDNET_IDS).encode()
    assert sha256(joined).hexdigest() == "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    assert sorted(WORDNET_IDS) == list(WORDNET_IDS)
    for names in (WORDNET_IDS, imagenet_classes()):
        labels = labels_by_name(names)
        # Two of Imagenette's classes.
        assert [labels[name] for name in ("n02979186", "cassette player", "n03888257", "parachute")] == [
            482,
            482,
            701,
            701,
        ]
    assert labels_by_name(WORDNET_IDS[:999]) == {name: label for label, name in enumerate(WORDNET_IDS[:999])}
    others = (*WORDNET_IDS[:-1], "n99999999")  # sorted ids of other classes
    assert not same_classes(others, imagenet_classes())
    assert not same_classes(WORDNET_IDS[:999], imagenet_classes()[:999])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> Path:
    from jaxnets.training.loop import train
    from tests.training import networks

    workdir = tmp_path_factory.mktemp("values") / "run"
    config = networks.config("tiny_resnet", **networks.STILL, epochs=1)
    train(config, workdir, replace(networks.DATASET), parallel=networks.cpus(1))
    return workdir


@pytest.mark.parametrize(
    ("collection", "leaf", "value", "said"),
    [
        ("params", "scale", np.nan, "params/bn1/scale that has 1 values that are not finite"),
        ("batch_stats", "var", np.inf, "batch_stats/bn1/var that has 1 values that are not finite"),
        ("batch_stats", "var", -1.0, "batch_stats/bn1/var that has negative variances"),
    ],
)
def test_a_run_with_values_that_no_network_can_use_is_refused(
    run: Path, collection: str, leaf: str, value: float, said: str, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    variables = jax.device_get(load_classifier(run).variables)
    array = np.array(variables[collection]["bn1"][leaf])
    array[3] = value
    variables = {
        **variables,
        collection: {**variables[collection], "bn1": {**variables[collection]["bn1"], leaf: array}},
    }
    files = orbax_files()
    with files.writer(workdir / FOLDER, lambda: None) as manager:
        number = manager.latest_step()
        metadata = {**files.read_metadata(manager, number), "best": number + 1}
        files.write(manager, number + 1, {"variables": variables}, metadata)
        manager.wait_until_finished()
    for act in (
        lambda: load_pretrained("tiny_resnet", workdir),
        lambda: load_classifier(workdir),
        lambda: convert_run(workdir, tmp_path / "x.pth"),
    ):
        with pytest.raises(InputError) as raised:
            act()
        assert str(raised.value).startswith(f"{workdir}: checkpoint {number + 1} has {said}")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_conversion_refuses_values_that_are_not_finite(suffix: str, dtype: Any, tmp_path: Path) -> None:
    _, variables = variables_of(ARCH, 3, dtype)
    variables["params"]["layer1_0"]["conv1"]["kernel"][1, 2, 3, 4] = np.nan
    tensors = to_torchvision(ARCH, variables)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        write(path, ARCH, variables)
    else:
        specs = {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}
        write_safetensors(path, specs, tensors.__getitem__, {})
    with pytest.raises(
        InputError, match=rf"w{suffix} has a tensor layer1.0.conv1.weight that has 1 values that are not"
    ):
        convert_weights(ARCH, path, tmp_path / "x.pth")
    with pytest.raises(
        InputError, match=rf"w{suffix} has a tensor layer1.0.conv1.weight that has 1 values that are not"
    ):
        load_pretrained(ARCH, path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_float64_is_converted_as_it_is_and_read_within_its_range(tmp_path: Path) -> None:
    _, variables = variables_of(ARCH, 3, np.float64)
    variables["params"]["conv1"]["kernel"][0, 0, 0, 0] = 1e300
    path = write(tmp_path / "w.pth", ARCH, variables)
    convert_weights(ARCH, path, tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=r"x.safetensors has a tensor conv1.weight that has values beyond the range of"
    ):
        load_pretrained(ARCH, tmp_path / "x.safetensors")
    with jax.enable_x64(True):
        kernel = load_pretrained(ARCH, path, dtype=np.float64).variables["params"]["conv1"]["kernel"]
        assert np.asarray(kernel)[0, 0, 0, 0] == 1e300


def test_timms_look_alikes_are_refused_where_the_file_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        file_origin, "_LOOK_ALIKES", dict.fromkeys(("resnetaa50", "resnetblur50", "resnetblur18"), ARCH)
    )
    _, variables = variables_of(ARCH, 3)
    tensors = to_torchvision(ARCH, variables)
    specs = {name: Spec(array.dtype, array.shape) for name, array in tensors.items()}
    path = tmp_path / "model.safetensors"
    for key, said in (("architecture", "resnetaa50.d_in12k"), ("arch", "timm/resnetblur50"), ("arch", "ResNetAA50")):
        write_safetensors(path, specs, tensors.__getitem__, {key: said})
        with pytest.raises(
            InputError, match=f"model.safetensors says that model.safetensors holds weights of {said}, which computes"
        ):
            load_pretrained(ARCH, path)
    for said in ("resnet", "my_network", ""):
        write_safetensors(path, specs, tensors.__getitem__, {"arch": said})
        assert load_pretrained(ARCH, path).categories == ("0", "1", "2")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18"}))
    with pytest.raises(InputError, match=r"config.json says that model.safetensors holds weights of resnetblur18"):
        load_pretrained(ARCH, path)
    # Elsewhere a config.json is of other files.
    load_pretrained(ARCH, path.rename(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").rename(path)
    for other in ("[1]", "{", '{"architecture": 3}'):
        (tmp_path / "config.json").write_text(other)
        load_pretrained(ARCH, path)


def test_names_of_classes_that_were_assumed_are_not_known_after_a_conversion(tmp_path: Path) -> None:
    model, variables = variables_of(ARCH, 3)
    convert_weights(ARCH, write(tmp_path / "w.pth", ARCH, variables), tmp_path / "x.safetensors")
    for path in ("w.pth", "x.safetensors"):
        said: list[str] = []
        names = ("a", "b", "c")
        start = starting_variables(model, ARCH, tmp_path / path, names, jax.random.key(0), say=said.append)
        np.testing.assert_array_equal(start["params"]["fc"]["bias"], variables["params"]["fc"]["bias"])
        assert "the head is kept" in said[-1]
    convert_weights(ARCH, tmp_path / "x.safetensors", tmp_path / "y.safetensors", class_names=names[::-1])
    starting_variables(model, ARCH, tmp_path / "y.safetensors", names, jax.random.key(0), say=said.append)
    assert "in another order" in said[-1]
