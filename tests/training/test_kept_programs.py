"""Compiled steps that are found again without being traced, where all that they follow from is the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data.sources import Dataset
from jaxnets.training import kept_programs, loop
from jaxnets.training.config import Config
from jaxnets.training.kept_programs import KeptPrograms
from jaxnets.training.parallel import Parallel
from jaxnets.training.setup import set_up
from tests.training.networks import DATASET, STILL, config, cpus, images

pytestmark = pytest.mark.usefixtures("small_networks")


def step(state: Any, batch: Any) -> Any:
    return {"total": state["total"] + batch.sum()}, state["count"] + 1


def traced(state: Any, batch: Any) -> Any:
    raise AssertionError("traced")


def arguments(size: int = 3, device: int = 0) -> Any:
    return jax.device_put(({"total": jnp.ones(2), "count": 0}, jnp.arange(float(size))), jax.devices()[device])


def taken(
    folder: Path, function: Callable[..., Any] = step, made_of: str = "it", device: int = 0, size: int = 3
) -> Any:
    parallel = Parallel.choose("jit", jax.devices()[device : device + 1])
    kept = KeptPrograms(folder, made_of, jax.devices()[device])
    return parallel.wrap(function, kept=kept)(*arguments(size, device))


@pytest.mark.parametrize("device", [0, 1])
def test_is_found_without_tracing(device: int, tmp_path: Path) -> None:
    first, again = taken(tmp_path, device=device), taken(tmp_path, traced, device=device)
    np.testing.assert_array_equal(again[0]["total"], [4, 4])
    assert int(again[1]) == int(first[1]) == 1
    assert again[0]["total"].devices() == {jax.devices()[device]}


def test_uses_up_what_it_is_given(tmp_path: Path) -> None:
    def double(state: Any, batch: Any) -> Any:
        return state * batch

    for function in (double, traced):
        kept = KeptPrograms(tmp_path, "", jax.devices()[0])
        state = jnp.arange(6.0)
        result = cpus(1, "jit").wrap(function, donate=True, kept=kept)(state, jnp.float32(2))
        np.testing.assert_array_equal(result, 2 * np.arange(6.0))
        assert state.is_deleted()


def test_is_another_of_other_arguments_and_other_ends(tmp_path: Path) -> None:
    taken(tmp_path)
    for changes in ({"made_of": "another"}, {"device": 1}, {"size": 4}):
        with pytest.raises(AssertionError, match="traced"):
            taken(tmp_path, traced, **changes)


@pytest.mark.parametrize("what", ["source", "version", "environment", "processor", "onednn"])
def test_is_another_where_anything_else_differs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(tmp_path)
    match what:
        case "environment":
            monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
        case "onednn":
            monkeypatch.setattr(kept_programs.onednn, "usable", lambda: True)
        case _:
            monkeypatch.setattr(kept_programs, f"_{what}", lambda *_: "another")
    with pytest.raises(AssertionError, match="traced"):
        taken(tmp_path, traced)


def test_is_another_by_other_settings(tmp_path: Path) -> None:
    taken(tmp_path)
    with jax.default_matmul_precision("highest"), pytest.raises(AssertionError, match="traced"):
        taken(tmp_path, traced)


def test_knows_every_file_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ops").mkdir()
    for name in ("__init__.py", "ops/conv.py"):
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(kept_programs.jaxnets, "__file__", str(tmp_path / "__init__.py"))
    digests = set()
    for change in ("a = 1\n", "a = 2\n"):
        (tmp_path / "ops" / "conv.py").write_text(change)
        digests.add(kept_programs._read_source())
    (tmp_path / "ops" / "conv.py").rename(tmp_path / "ops" / "convolution.py")
    digests.add(kept_programs._read_source())
    assert len(digests) == 3


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    taken(tmp_path / "other", lambda state, batch: (state, state["count"]))
    taken(tmp_path)
    (path,), (other,) = tmp_path.glob("*.program"), (tmp_path / "other").iterdir()
    whole, wrong = path.read_bytes(), other.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no pickle", whole[:64] + wrong[64:]):
        path.write_bytes(damaged)
        with pytest.raises(AssertionError, match="traced"):
            taken(tmp_path, traced)
        assert int(taken(tmp_path)[1]) == 1
        assert int(taken(tmp_path, traced)[1]) == 1


def test_keeps_nothing_of_code_that_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_programs, "_read_source", lambda: "edited")
    assert int(taken(tmp_path)[1]) == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(kept_programs, "_SOURCE", "")
    assert int(taken(tmp_path)[1]) == 1


def test_trains_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert int(taken(tmp_path / "file")[1]) == 1


def test_the_longest_unused_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_programs, "_MOST_KEPT", 2)
    for time, made_of in enumerate(("a", "b")):
        taken(tmp_path, made_of=made_of)
        path = KeptPrograms(tmp_path, made_of, jax.devices()[0]).path_of(*arguments())
        os.utime(path, (time, time))
    taken(tmp_path, traced, made_of="a")
    taken(tmp_path, made_of="c")
    assert len(list(tmp_path.iterdir())) == 2
    taken(tmp_path, traced, made_of="a")
    with pytest.raises(AssertionError, match="traced"):
        taken(tmp_path, traced, made_of="b")


def test_a_run_with_kept_steps_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def metrics(name: str, seed: int, programs: Path | None = tmp_path / "programs") -> list[dict[str, float]]:
        run = config(epochs=1, seed=seed, **STILL)
        loop.train(run, tmp_path / name, DATASET, parallel=cpus(1), programs=programs)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if "second" not in key} for line in lines]

    # What JAX's cache has by then can't be kept as it comes from there.
    expected = metrics("without", 3, None)
    other = metrics("other", 4)
    monkeypatch.setattr(loop, "train_step", traced)
    assert metrics("again", 3) == expected != other == metrics("other-again", 4)


def made_of(run: Config, dataset: Dataset = DATASET, several: bool = False, held: Sequence[str] = ()) -> str:
    return set_up(run, dataset, cpus(1)).kept_steps(Path(), jax.devices()[0], several, held).made_of


def test_all_that_a_run_is_made_of_counts() -> None:
    run = config(**STILL)
    one_image_less = replace(DATASET, train=images(62))
    settings = {
        "learning_rate": 0.01,
        "label_smoothing": 0.3,
        "epochs": 2,
        "flip": 0.5,
        "remat": True,
        "optimizer": "adam",
    }
    others = [
        *(made_of(config(**{**STILL, name: value})) for name, value in settings.items()),
        made_of(config("tiny_resnext", **STILL)),
        made_of(config(dtype="bfloat16", **STILL)),
        made_of(run, replace(DATASET, mean=(0.4,) * 3)),
        made_of(run, replace(DATASET, class_names=("a", "b", "c"))),
        made_of(run, one_image_less),
        made_of(run, several=True),
        made_of(run, held=("conv1",)),
    ]
    assert len({made_of(run), *others}) == 1 + len(others)
    assert made_of(config(seed=4, **STILL)) == made_of(run)


@pytest.mark.usefixtures("native")
def test_the_command_finds_its_step_again_with_onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # as good as none
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "cache"))
    results, files = [], set()
    for name in ("first", "second"):
        options = [
            "--arch",
            "resnet20_cifar",
            "--epochs",
            "1",
            "--batch-size",
            "479",
            "--workdir",
            str(tmp_path / name),
        ]
        command = [sys.executable, "-m", "experiments.train", *options]
        subprocess.run(command, check=True, capture_output=True)
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
        (path,) = (tmp_path / "cache" / "steps").iterdir()
        files.add(path.stat().st_ino)
    assert results[0]["test_loss"] == results[1]["test_loss"]
    assert results[1]["compile_seconds"] < results[0]["compile_seconds"] / 2
    assert len(files) == 1
    assert any((tmp_path / "cache" / "compiled").iterdir())


def test_a_program_of_ones_own_keeps_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAXNETS_CACHE", str(tmp_path / "cache"))
    options = ["--arch", "tiny_resnet", "--epochs", "1", "--batch-size", "16", "--workdir", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-m", "tests.training.networks", *options], check=True, capture_output=True)
    assert not (tmp_path / "cache" / "steps").exists()
