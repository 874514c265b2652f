"""The catalogue equals torchvision's metadata in tests/references/published_weights.json."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.errors import InputError
from jaxnets.models.registry import list_models
from jaxnets.weights.catalogue import by_checksum, imagenet_classes, list_weights, published

REFERENCE = json.loads((Path(__file__).parents[1] / "references" / "published_weights.json").read_text())
ENTRIES: list[dict[str, Any]] = REFERENCE["published"]
DEFAULTS: dict[str, str] = REFERENCE["defaults"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['arch']}-{entry['name']}")
def test_every_field_is_torchvisions(entry: dict[str, Any]) -> None:
    weights = published(entry["arch"], entry["name"])
    assert entry["crop_size"] == [weights.preprocessing.crop_size]
    assert entry["antialias"], "Preprocessing knows no other way"
    assert weights.preprocessing == Preprocessing(
        crop_size=entry["crop_size"][0],
        resize_size=entry["resize_size"][0],
        mean=tuple(entry["mean"]),
        std=tuple(entry["std"]),
        interpolation=entry["interpolation"],
    )
    for field in ("arch", "name", "url", "megabytes", "top1", "top5", "recipe", "transform_input"):
        assert getattr(weights, field) == entry[field], field
    # torch.hub reads the checksum from the file name with this expression.
    found = re.search(r"-([a-f0-9]*)\.", weights.file_name)
    assert found is not None
    assert weights.sha256_prefix == found[1]
    assert len(weights.sha256_prefix) >= 8
    assert weights.url.endswith(f"/{weights.file_name}")
    assert weights.licence.startswith("BSD-3-Clause")
    assert "non-commercial" in weights.licence


def test_the_networks_and_names_are_torchvisions() -> None:
    ours = [(arch, name) for arch in list_models() for name in list_weights(arch)]
    assert sorted(ours) == sorted((entry["arch"], entry["name"]) for entry in ENTRIES)
    assert {arch: published(arch).name for arch, _ in ours} == DEFAULTS
    assert {arch: published(arch, "DEFAULT").name for arch, _ in ours} == DEFAULTS


def test_the_reference_has_the_exceptional_entries() -> None:
    sizes = {(entry["arch"], entry["name"]): entry["resize_size"] for entry in ENTRIES}
    assert sizes["resnet50", "IMAGENET1K_V1"] == [256]
    assert sizes["resnet50", "IMAGENET1K_V2"] == [232]
    assert sizes["resnext101_64x4d", "IMAGENET1K_V1"] == [232]
    assert [entry["arch"] for entry in ENTRIES if entry["transform_input"]] == ["googlenet"]


def test_megabytes_are_of_1024_times_1024_bytes() -> None:
    for entry in ENTRIES:
        if entry["arch"] != "googlenet":  # its file includes the auxiliary heads, which num_params does not count
            half = entry["arch"].startswith("wide") and entry["name"] == "IMAGENET1K_V1"
            size = entry["num_params"] * (2 if half else 4) / 1024**2
            assert published(entry["arch"], entry["name"]).megabytes == pytest.approx(size, rel=0.01)


def test_weights_are_found_by_checksum() -> None:
    for entry in ENTRIES:
        weights = published(entry["arch"], entry["name"])
        assert by_checksum(weights.sha256_prefix + "0" * 56) == weights
        assert by_checksum(weights.sha256_prefix.upper() + "0" * 56) == weights
    assert len({published(entry["arch"], entry["name"]).sha256_prefix for entry in ENTRIES}) == len(ENTRIES)
    assert by_checksum("0" * 64) is None
    assert by_checksum("") is None


def test_the_error_for_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(InputError, match=r"'IMAGENET1K_V3'.*resnet50; expected IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        published("resnet50", "IMAGENET1K_V3")
    with pytest.raises(InputError, match=r"'IMAGENET1K_V2'.*resnet18; expected IMAGENET1K_V1, DEFAULT"):
        published("resnet18", "IMAGENET1K_V2")


@pytest.mark.parametrize("arch", [arch for arch in list_models() if arch not in DEFAULTS])
def test_the_error_for_a_network_without_weights_lists_the_others(arch: str) -> None:
    assert list_weights(arch) == []
    with pytest.raises(InputError) as raised:
        published(arch)
    assert f"for {arch};" in str(raised.value)
    assert all(other in str(raised.value) for other in DEFAULTS)


def test_the_class_names_are_torchvisions() -> None:
    classes = imagenet_classes()
    assert hashlib.sha256("\n".join(classes).encode()).hexdigest() == REFERENCE["classes_sha256"]
    assert len(classes) == 1000
    assert (classes[0], classes[207], classes[999]) == ("tench", "golden retriever", "toilet tissue")
    # Older lists give two pairs of classes the same name.
    assert (classes[134], classes[517]) == ("crane bird", "crane")
    assert (classes[638], classes[639]) == ("maillot", "maillot tank suit")
    assert len(set(classes)) == 1000
