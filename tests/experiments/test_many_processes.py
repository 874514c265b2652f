"""One run by several processes, as on several machines; and what the command refuses of devices and processes."""

import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxnets.data.datasets import load_dataset
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from tests.experiments.commands import Refuses
from tests.training.networks import (
    FAMILIES,
    STEADY,
    STILL,
    Trainer,
    arguments,
    assert_same_run,
    checkpoints,
    config,
    cpus,
    largest_difference,
    losses,
    metrics,
    saved,
    start,
)
from tests.training.test_interruption import Process, ended, stepping, wait_until

pytestmark = pytest.mark.usefixtures("small_networks")


def launch(
    workdir: Path, *setups: Config, devices: int, kind: str = "pmap", quickly: bool = True, words: Any = ()
) -> list[Process]:
    """A process for each configuration, with so many devices each, joined over the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(
            *arguments(setup, workdir), *words, "--parallel", kind, "--coordinator", coordinator,
            "--num-processes", len(setups), "--process-id", place, quickly=quickly, JAX_NUM_CPU_DEVICES=str(devices),
        )
        for place, setup in enumerate(setups)
    ]  # fmt: skip


def all_ended(processes: list[Process], code: int, within: float) -> list[str]:
    """The last line on standard error of each."""
    ends = [ended(process, within) for process in processes]
    assert [end[0] for end in ends] == [code] * len(ends), ends
    return [lines[-1] if lines else "" for _, lines in ends]


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transfer", ["head", pytest.param("partial", marks=pytest.mark.exhaustive)])
def test_two_processes_start_from_the_same_weights(
    transfer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 reads them; each computes features of its share of the images."""
    setup = config("small_resnet", dtype="float64", **STILL, epochs=1)
    assert Trainer(setup, cpus(1), monkeypatch)(tmp_path / "trunk")
    setup = replace(setup, weights=str(tmp_path / "trunk"), transfer=transfer, seed=4)
    assert Trainer(setup, cpus(1), monkeypatch)(tmp_path / "one")
    processes = launch(tmp_path / "two", setup, setup, devices=2)
    wait_until(stepping(tmp_path / "two"), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ended_early = [ended(process, 20)[0] for process in processes]
    assert ended_early in ([143, 143], [0, 0])
    all_ended(launch(tmp_path / "two", setup, setup, devices=2, words=("--resume",)), 0, 120)
    assert largest_difference(saved(tmp_path / "two"), saved(tmp_path / "one")) < 1e-9


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_two_processes_stop_together_and_train_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = config(dtype="float64", **STILL | {"min_crop_area": 0.5, "flip": 0.5, "dropout_rate": 0.3})
    run, whole = tmp_path / "run", tmp_path / "whole"
    processes = launch(run, setup, setup, devices=1)
    wait_until(stepping(run), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    lines = all_ended(processes, 143, within=10)
    assert lines == ["SIGTERM: all is saved; the same command with --resume goes on"] * 2
    (number,) = checkpoints(run)
    assert 0 < number < 25

    # One device may take up what two processes began.
    train = Trainer(setup, cpus(1), monkeypatch)
    assert train(run, resume=True)
    assert train(whole)
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-10)
    assert largest_difference(saved(run), saved(whole)) < 1e-10


@pytest.mark.exhaustive
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_two_processes_of_four_devices_train_what_one_device_would(
    arch: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = config(arch, dtype="float64", **STEADY.get(arch, {}))
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert Trainer(setup, cpus(1), monkeypatch, quickly=False)(whole)
    all_ended(launch(run, setup, setup, devices=4, kind=kind, quickly=False), 0, within=600)
    of_losses = float(np.abs(np.subtract(losses(run), losses(whole))).max())
    of_state = largest_difference(saved(run), saved(whole))
    print(f"{arch}, {kind} on 2 processes of 4 against jit: losses {of_losses:.1e}, state {of_state:.1e}")
    assert len(losses(run)) == 20
    assert max(of_losses, of_state) < 1e-10
    assert metrics(run)[-1]["accuracy"] == metrics(whole)[-1]["accuracy"]


@pytest.mark.exhaustive
def test_two_stopped_processes_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    setup = config()
    run, whole = tmp_path / "run", tmp_path / "whole"
    all_ended(launch(whole, setup, setup, devices=2), 0, within=300)
    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGINT)):
        processes = launch(run, setup, setup, devices=2, words=["--resume"])
        wait_until(stepping(run), processes[0])
        processes[rank].send_signal(number)
        codes = {process.wait(timeout=15) for process in processes}
        # A process that was not asked itself takes it for SIGTERM.
        assert codes <= {143, 128 + number}
    all_ended(launch(run, setup, setup, devices=2, words=["--resume"]), 0, within=300)
    assert_same_run(run, whole)


@pytest.mark.slow
def test_two_processes_train_on_a_folder(tmp_path: Path) -> None:
    """Each checks its share of the files; process 0 writes the fingerprints of all."""
    random = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "photos" / f"class {label}").mkdir(parents=True)
        for number in range(30):
            picture = Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8))
            picture.save(tmp_path / "photos" / f"class {label}" / f"{number}.png")

    def both(*words: object) -> list[Process]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        return [
            start(
                "--arch", "tests.training.tiny:Tiny", "--image-size", "8", "--epochs", "1", "--batch-size", "4",
                "--workdir", tmp_path / "run", "--parallel", "pmap", "--coordinator", coordinator,
                "--num-processes", "2", "--process-id", place, *words, module="experiments.train",
                JAX_NUM_CPU_DEVICES="1",
            )
            for place in range(2)
        ]  # fmt: skip

    all_ended(both("--dataset", tmp_path / "photos"), 0, within=120)
    assert load_classifier(tmp_path / "run").fingerprints == {
        part: source.fingerprint() for part, source in load_dataset(str(tmp_path / "photos")).parts.items()
    }
    # Of a finished run, process 0 compares the data, and all end.
    all_ended(both("--dataset", tmp_path / "photos", "--resume"), 0, within=60)
    (tmp_path / "photos" / "class 0" / "7.png").unlink()
    for line in all_ended(both("--dataset", tmp_path / "photos", "--resume"), 2, within=60):
        assert "images are not those that the run began with" in line


def test_processes_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    setups = config(**STILL), config(**STILL, seed=4)
    (line, other) = all_ended(launch(tmp_path / "run", *setups, devices=1), 2, within=60)
    assert line == other
    assert line.startswith("error: process 1 of 2 has another configuration or other data than process 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_several_processes_of_one_device_are_refused(tmp_path: Path) -> None:
    setup = config(**STILL)
    lines = all_ended(launch(tmp_path / "run", setup, setup, devices=1, kind="jit"), 2, within=60)
    assert all("--parallel jit uses one device, but there are 2 processes" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--coordinator", "localhost:1"], ["--coordinator HOST:PORT", "--num-processes N", "--process-id I"]),
        (["--process-id", "0"], ["--coordinator HOST:PORT"]),
        (["--coordinator", "node", "--num-processes", "2", "--process-id", "0"], ["HOST:PORT", "node1:7890"]),
        (["--coordinator", "node:1", "--num-processes", "2", "--process-id", "2"], ["--process-id 2", "0 to 1"]),
        (["--parallel", "vmap"], ["--parallel", "shard_map"]),
        (["--platform", "tpu"], ["--platform", "gpu"]),
        (["--parallel", "pmap", "--batch-size", "12"], ["--batch-size 12", "8 devices", "such as 16"]),
        (["--parallel", "shard_map", "--accumulation", "2", "--batch-size", "40"], ["2 parts", "multiple of 16"]),
        (["--resume"], ["--resume needs the --workdir"]),
    ],
)
def test_train_refuses_what_it_cannot_spread(
    arguments: list[str], words: list[str], refuses: Refuses, tmp_path: Path
) -> None:
    refuses("train", "--arch", "tiny_resnet", *arguments, words=tuple(words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(refuses: Refuses) -> None:
    refuses(
        "train", "--arch", "resnet50", "--platform", "gpu", words=("--platform gpu", "finds no GPU", "--platform cpu")
    )
