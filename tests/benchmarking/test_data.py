"""The data benchmark."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import jaxnets.benchmarking.data as benchmarking
from experiments import benchmark
from jaxnets.errors import InputError
from jaxnets.training.recipes import recipe_for
from tests.training.tiny import Tiny


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, photo in enumerate(load_sample_images().images):
        for number in range(20):
            folder = tmp_path / "photos" / ("train" if number < 16 else "val") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[number : number + 90, :120]).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


@pytest.mark.fast
def test_rates_are_images_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []
    monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=lambda: now))

    def slow(amount: int) -> int:
        nonlocal now
        now += 0.01 * amount
        asked.append(amount)
        return 3 * amount

    assert benchmarking._rate(slow) == pytest.approx(300)
    # Twice as many until it takes half a second.
    assert asked == [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network that compiles quickly, and short measurements."""
    monkeypatch.setattr(benchmarking, "create_model", lambda name, **options: Tiny(**options))
    monkeypatch.setattr(benchmarking, "_MIN_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_the_command_prints_one_object(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", photos, "--arch", "resnet18", "--image-size", "16", "--batch-size", "8", "--json")
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    benchmark.main()
    result = json.loads(capsys.readouterr().out)
    assert (result["mode"], result["image_size"], result["batch_size"]) == ("data", 16, 8)
    rates = {name: result[f"{name}images_per_second"] for name in ("", "decoder_", "transfer_", "compute_")}
    assert all(rate > 1 for rate in rates.values())
    low, high = result["images_per_second_spread"]
    assert low <= rates[""] <= high
    rates["data_"] = rates.pop("")
    assert result["limited_by"] == min(("data", "transfer", "compute"), key=lambda name: rates[f"{name}_"])
    assert result["compile_seconds"] > 0
    assert result["peak_memory_bytes"] > 50e6


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_arrays_have_no_decoder_and_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    # In seconds of processor time, in which other processes do not count.
    monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=time.process_time))
    recipe = recipe_for("resnet20_cifar")
    result = benchmarking.benchmark_data("digits", "resnet20_cifar", recipe, None, None)
    assert "decoder_images_per_second" not in result
    # Decoding alone takes more than 20 microseconds an image, even a small one.
    assert result["images_per_second"] > 50_000


def test_peers_that_cannot_be_measured_are_refused(photos: Path) -> None:
    recipe = recipe_for("resnet18", "photos")
    with pytest.raises(InputError, match="reads only image folders"):
        benchmarking.benchmark_data("digits", "resnet18", recipe, None, "torch")
    with pytest.raises(InputError, match="random crops"):
        benchmarking.benchmark_data(str(photos), "resnet20_cifar", recipe_for("resnet20_cifar", "x"), None, "torch")
