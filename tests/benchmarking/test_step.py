"""The benchmark of training steps and inference."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import benchmark
from jaxnets.benchmarking import machine, step
from jaxnets.benchmarking.flops import flops_per_image, multiply_adds
from jaxnets.benchmarking.worker import Job
from jaxnets.errors import InputError
from tests.experiments.commands import command, refused

_TINY = ("--arch", "resnet20_cifar", "--image-size", 8)
_CPU = {"platform": "cpu", "cores": 2}


# From the papers and torchvision's documentation, whose GFLOPS are multiply-adds.
@pytest.mark.parametrize(
    ("arch", "billions"), [("resnet50", 4.089), ("alexnet", 0.714), ("googlenet", 1.498), ("resnext50_32x4d", 4.23)]
)
def test_multiply_adds_match_the_literature(arch: str, billions: float) -> None:
    assert multiply_adds(arch, 224) / 1e9 == pytest.approx(billions, abs=6e-3)


@pytest.mark.fast
def test_every_repeated_block_counts() -> None:
    def total(blocks: int) -> int:
        return multiply_adds("resnet1202_cifar", 32, options={"stage_sizes": [blocks] * 3})

    # The basic blocks of all stages have equal multiply-adds: two 3x3 convolutions, of 16 channels at 32 px.
    block = 2 * 9 * 16 * 16 * 32 * 32
    assert total(7) - total(3) == 3 * (7 - 3) * block


def test_training_takes_three_passes_and_the_auxiliary_heads() -> None:
    assert flops_per_image("resnet20_cifar", 8, "train") == 6 * multiply_adds("resnet20_cifar", 8)
    # Each of the two heads: 1x1 to 128 on 4x4 pixels, 2048 to 1024, 1024 to 1000.
    heads = sum(16 * channels * 128 + 2048 * 1024 + 1024 * 1000 for channels in (512, 528))
    assert multiply_adds("googlenet", 64, train=True) - multiply_adds("googlenet", 64) == heads


@pytest.mark.fast
def test_the_window_has_as_many_steps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    now = 0.0
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: now))

    def slow() -> None:
        nonlocal now
        now += 0.01

    rate = machine.steps_per_second(slow, 0.2, lambda steps: waits.append(len(steps)))
    assert rate == pytest.approx(100)
    # One step to estimate the time, then a window that waits once at its end, as training does.
    assert waits == [1, 20]


@pytest.mark.slow
def test_the_command_prints_one_object(tmp_path: Path) -> None:
    arguments = (*_TINY, "--batch-size", 4, "--rounds", 1, "--json")
    trace = tmp_path / "trace"
    done = command("benchmark", *arguments, "--profile", trace, folder=tmp_path, quickly=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {
        key: result[key] for key in ("arch", "mode", "image_size", "batch_size", "dtype", "parallel", "rounds")
    } == {
        "arch": "resnet20_cifar",
        "mode": "train",
        "image_size": 8,
        "batch_size": 4,
        "dtype": "float32",
        "parallel": "jit",
        "rounds": 1,
    }
    assert result["images_per_second_spread"] == 2 * [result["images_per_second"]]
    assert result["images_per_second"] > 1
    assert result["step_seconds"] == pytest.approx(4 / result["images_per_second"])
    assert min(result["initial_seconds"], result["compile_seconds"]) > 0
    assert result["initial_seconds"] + result["compile_seconds"] < result["first_step_seconds"]
    assert result["peak_memory_bytes"] > result["import_memory_bytes"] > 50e6
    assert result["flops_per_image"] == flops_per_image("resnet20_cifar", 8, "train")
    used = result["images_per_second"] * result["flops_per_image"] / result["arithmetic_ceiling_flops"]
    assert result["percent_of_arithmetic"] == pytest.approx(100 * used)
    assert result["percent_of_arithmetic"] < 100
    assert 1e8 < result["bandwidth_ceiling_bytes"] < 1e14
    assert result["cores"] == len(os.sched_getaffinity(0))
    assert {"device", "jax", "python"} <= result.keys()
    assert not {"peer", "ratio"} & result.keys()
    assert "a trace of three steps is in" in done.stderr
    assert list(trace.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_inference_on_several_devices_is_printed_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    arguments = (*_TINY, "--batch-size", 4, "--rounds", 1)
    done = command(
        "benchmark", *arguments, "--mode", "inference", "--parallel", "pmap", "--dtype", "bfloat16", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("resnet20_cifar, inference, bfloat16: 8 px, batches of 4")
    assert "after the imports) of memory" in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--arch", "--data")),
        (("--arch", "resnet49"), ("unknown architecture 'resnet49'", "resnet50")),
        ((*_TINY, "--batch-size", 0), ("batch_size=0", "at least 1")),
        (("--arch", "resnet18", "--image-size", -1), ("image_size=-1", "at least 1")),
        ((*_TINY, "--rounds", 0), ("rounds=0", "at least 1")),
        ((*_TINY, "--data-dir", "here"), ("--data-dir here", "--data")),
        (("--data", "digits", "--mode", "train", "--rounds", 2), ("--mode, --rounds", "--data")),
        (("--data", "digits", "--peer", "onnxruntime"), ("onnxruntime has no loader", "--peer torch")),
        ((*_TINY, "--peer", "torch"), ("torchvision has no resnet20_cifar", "resnet18")),
        ((*_TINY, "--peer-settings", "eager"), ("peer_settings=eager", "--peer torch")),
        (("--arch", "resnet18", "--peer", "onnxruntime"), ("inference in float32", "mode=train")),
        # Refused by the measuring process.
        (("--arch", "alexnet", "--image-size", 40), ("AlexNet got images of 40x40 px", "63x63")),
    ],
)
def test_bad_input_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    with pytest.raises(InputError) as caught:
        benchmark.main()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_other_modes_are_refused(tmp_path: Path) -> None:
    refused(command("benchmark", *_TINY, "--mode", "data", folder=tmp_path), "invalid choice", "data", "inference")


def test_a_missing_peer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "find_spec", lambda package: None if package == "torchvision" else object())
    with pytest.raises(InputError, match=r"needs torchvision: pip install 'jaxnets\[peer\]'"):
        step.benchmark_step(Job("alexnet", 64), peer="torch")


def test_the_peers_rate_is_its_best_median() -> None:
    def measured(rates: list[float], memory: list[int], **more: Any) -> list[dict[str, Any]]:
        numbers = zip(rates, memory, strict=True)
        return [{"images_per_second": r, "peak_memory_bytes": m, "import_memory_bytes": 7, **more} for r, m in numbers]

    ours = measured([10.0, 12.0, 90.0], [30, 20, 99])
    theirs = {
        "eager": measured([1.0, 4.0, 99.0], [10, 10, 10], compile_seconds=0.0, torch="2"),
        "compile": measured([5.0, 8.0, 9.0], [40, 10, 90], compile_seconds=5.0, torch="2"),
    }
    result = step._compared("torch", ours, theirs)
    assert (result["peer_peak_memory_bytes"], result["memory_ratio"]) == (40, 0.75)
    assert (result["peer_setting"], result["peer_images_per_second"]) == ("compile", 8.0)
    assert (result["ratio"], result["ratio_spread"]) == (2.0, [1.5, 10.0])
    assert result["peer_settings"]["compile"] == {
        "images_per_second": 8.0,
        "compile_seconds": 5.0,
        "spread": [5.0, 9.0],
        "peak_memory_bytes": 40,
        "import_memory_bytes": 7,
    }


@pytest.mark.torch
def test_torch_is_measured_in_turns(tmp_path: Path) -> None:
    arguments = ("--arch", "alexnet", "--image-size", 64, "--batch-size", 2, "--rounds", 1, "--json")
    done = command("benchmark", *arguments, "--peer", "torch", "--peer-settings", "eager", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["peer"], result["peer_setting"], list(result["peer_settings"])) == ("torch", "eager", ["eager"])
    assert result["peer_images_per_second"] > 0
    assert result["peer_peak_memory_bytes"] > result["peer_import_memory_bytes"] > 50e6
    assert result["ratio"] == pytest.approx(result["images_per_second"] / result["peer_images_per_second"])


@pytest.mark.torch
@pytest.mark.parametrize(("mode", "differs"), [("train", "different loss"), ("inference", "different logits")])
def test_different_outputs_are_not_compared(tmp_path: Path, mode: str, differs: str) -> None:
    job = Job("resnet18", 64, 2, mode)
    expected = step._ours("weights", job, str(tmp_path))
    step.check_same(job, _CPU, "eager", tmp_path, expected)
    with np.load(tmp_path / "weights.npz") as file:
        weights = dict(file)
    if mode == "train":
        # Training does not use the running statistics.
        expected["loss"] *= 1.01
    else:
        weights["layer1.0.bn1.running_var"] *= 1.01
        np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(InputError, match=differs):
        step.check_same(job, _CPU, "eager", tmp_path, expected)


@pytest.mark.torch
def test_onnxruntime_inference_is_measured(tmp_path: Path) -> None:
    job = Job("resnet18", 33, 2, "inference", seconds=0.1)
    result = step.benchmark_step(job, rounds=1, peer="onnxruntime")
    assert (result["peer"], list(result["peer_settings"])) == ("onnxruntime", ["onnxruntime"])
    assert result["ratio"] > 0
