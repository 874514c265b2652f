"""A run from Python."""

import errno
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager

from jaxnets.data.sources import ArraySource, Dataset, Record
from jaxnets.errors import InputError
from jaxnets.training import trainer
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluation, Evaluator
from jaxnets.training.hooks import Hook
from jaxnets.training.interruption import Interruption
from jaxnets.training.loop import train
from jaxnets.training.parallel import Compiled, Parallel
from tests.training.tiny import GREYS, PLAIN, PREPROCESSING, Tiny, greys

JIT = Parallel.choose("jit")
# Eight steps, four an epoch.
RECIPE = replace(PLAIN, epochs=2, learning_rate=0.1)


def run(workdir: Path, dataset: Any = GREYS, *, log_every: int = 1, **changes: Any) -> dict[str, Any]:
    config = Config("resnet20_cifar", replace(RECIPE, **changes), "greys", log_every=log_every)
    return train(config, workdir, dataset, parallel=JIT)


def strict(text: str) -> dict[str, Any]:
    """JSON as its standard has it, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def lines(workdir: Path, split: str) -> list[dict[str, Any]]:
    text = (workdir / "metrics.jsonl").read_text()
    return [line for line in map(strict, text.splitlines()) if line["split"] == split]


@pytest.mark.fast
@pytest.mark.usefixtures("tiny")
def test_arrays_of_ones_own_train_a_classifier(tmp_path: Path) -> None:
    result = run(tmp_path / "run", replace(GREYS, train=greys(96)))
    assert result["test_accuracy"] == result["val_accuracy"] == result["best_val_accuracy"] == 1.0
    assert (result["test_images"], result["val_images"], result["train_images"], result["steps"]) == (13, 11, 96, 24)
    assert result["judged_on"] == "test"
    assert (result["devices"], result["parallel"]) == (1, "jit")
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["dark", "light"]
    assert 0 <= result["waiting_for_data_seconds"] < result["seconds"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ("dark",)}, "label 1; expected 0 to 0"),
        ({"class_names": ("dark", "light", "none")}, "class 'none' has no training images"),
        ({"train": greys(4)}, "batch_size=8, but greys has 4 training images"),
    ],
)
def test_data_that_cannot_train_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run(tmp_path / "run", replace(GREYS, **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
def test_metrics_are_of_the_steps_that_they_name(tmp_path: Path) -> None:
    run(tmp_path / "each", schedule="linear", warmup_epochs=0.5)
    result = run(tmp_path / "some", schedule="linear", warmup_epochs=0.5, log_every=3)
    each, some = (lines(tmp_path / name, "train") for name in ("each", "some"))
    assert [line["step"] for line in each] == list(range(1, 9))
    # The rate with which the step was made: up to the peak after one step (a fifth of eight at most), down to 0 at 8.
    expected = [0.05, *(0.1 * (8 - step) / 7 for step in range(1, 8))]
    np.testing.assert_allclose([line["learning_rate"] for line in each], expected, rtol=1e-5)
    # And at the end of each epoch.
    assert [line["step"] for line in some] == [3, 4, 6, 8]
    assert [line["epoch"] for line in some] == [1, 1, 2, 2]
    np.testing.assert_allclose([line["learning_rate"] for line in some], np.array(expected)[[2, 3, 5, 7]], rtol=1e-5)
    for line, steps in zip(some, ([0, 1, 2], [3], [4, 5], [6, 7]), strict=True):
        for name in ("loss", "accuracy"):
            assert line[name] == pytest.approx(np.mean([each[step][name] for step in steps]), rel=1e-5)
        assert line["count"] == 8 * len(steps)
    first, last = lines(tmp_path / "some", "val")
    assert (first["step"], first["epoch"], last["step"], last["epoch"]) == (4, 1, 8, 2)
    best = (first, last)[result["best_epoch"] - 1]
    assert (best["accuracy"], best["loss"], best["count"]) == (result["val_accuracy"], result["val_loss"], 11)
    (test,) = lines(tmp_path / "some", "test")
    assert (test["step"], test["epoch"]) == (best["step"], best["epoch"])
    assert (test["accuracy"], test["loss"], test["count"]) == (result["test_accuracy"], result["test_loss"], 13)


@pytest.mark.fast
@pytest.mark.usefixtures("tiny")
def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    losses = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(Config("resnet20_cifar", RECIPE, "greys", seed, log_every=1), tmp_path / name, GREYS, parallel=JIT)
        losses[name] = [line["loss"] for split in ("train", "val", "test") for line in lines(tmp_path / name, split)]
    assert losses["first"] == losses["again"]
    assert not set(losses["first"]) & set(losses["other"])


@pytest.mark.usefixtures("tiny")
def test_the_rate_is_that_of_the_steps_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where all gradients are 1, the weights go down by the rates.
    class Slope(nn.Module):
        num_classes: int = 2
        axis_name: str | None = None
        dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, images: jax.Array, train: bool) -> jax.Array:
            return jnp.zeros((len(images), 2)) + self.param("weight", nn.initializers.zeros, ())

    monkeypatch.setattr("jaxnets.weights.runs.create_model", lambda name, **options: Slope())
    monkeypatch.setattr("jaxnets.training.step.training_loss", lambda logits, *_, **__: logits[0, 0])
    run(tmp_path / "run", schedule="polynomial", power=2.0, end_share=0.1)
    rates = [line["learning_rate"] for line in lines(tmp_path / "run", "train")]
    np.testing.assert_allclose(rates, [0.1 * (0.1 + 0.9 * (1 - step / 8) ** 2) for step in range(8)], rtol=1e-5)
    weight = load_classifier(tmp_path / "run", "latest").variables["params"]["weight"]
    np.testing.assert_allclose(weight, -sum(rates), rtol=1e-5)


def scripted(monkeypatch: pytest.MonkeyPatch, *results: tuple[float, float]) -> list[Any]:
    """The evaluations of val bring these accuracies and losses; what was evaluated, last on test, is noted."""
    tested: list[Any] = []

    class Scripted(Evaluator):
        def __call__(self, variables: Any, *rest: Any) -> Evaluation:
            accuracy, loss = [*results, (0.25, 3.0)][len(tested)]
            tested.append(jax.tree.map(np.asarray, variables))
            return replace(
                super().__call__(variables, *rest), metrics={"accuracy": accuracy, "loss": loss, "count": 13}
            )

    monkeypatch.setattr(trainer, "Evaluator", Scripted)
    return tested


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("patience", "results", "best_epoch"),
    [
        pytest.param(0, [(0.5, 1.0), (0.7, 1.0), (0.6, 0.5), (0.7, 1.0), (0.7, 1.1)], 2, marks=pytest.mark.slow),
        # Of equal accuracies the smaller loss is better.
        (0, [(0.7, 1.0), (0.7, 0.9), (0.6, 0.1), (0.7, 0.8), (0.1, 0.1)], 4),
        (2, [(0.5, 1.0), (0.7, 1.0), (0.6, 1.0), (0.7, 1.0)], 2),
        pytest.param(2, [(0.5, 1.0), (0.7, 1.0), (0.6, 1.0), (0.8, 2.0), (0.8, 1.9)], 5, marks=pytest.mark.slow),
        pytest.param(1, [(0.5, 1.0), (0.5, 1.0)], 1, marks=pytest.mark.slow),
    ],
)
def test_the_best_is_kept_and_patience_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    results: list[tuple[float, float]],
    best_epoch: int,
) -> None:
    tested = scripted(monkeypatch, *results)
    result = run(tmp_path / "run", epochs=5, patience_epochs=patience, batch_size=16)
    assert result["epochs"] == len(tested) - 1 == len(results)
    assert result["steps"] == 2 * len(results) == lines(tmp_path / "run", "val")[-1]["step"]
    assert (result["best_epoch"], result["best_val_accuracy"]) == (best_epoch, results[best_epoch - 1][0])
    assert (result["val_accuracy"], result["val_loss"]) == results[best_epoch - 1]
    # The test comes once, at the end, and is of the best network.
    assert (result["test_accuracy"], result["test_loss"]) == (0.25, 3.0)
    jax.tree.map(np.testing.assert_array_equal, tested[-1], tested[best_epoch - 1])
    for which, number in (("best", best_epoch), ("latest", len(results))):
        variables = load_classifier(tmp_path / "run", which).variables
        jax.tree.map(np.testing.assert_array_equal, variables, tested[number - 1])


class Kept(Hook):
    """Keeps the network of each epoch."""

    def __init__(self) -> None:
        self.networks: list[Any] = []

    def after_val(self, epoch: int, evaluation: Evaluation, variables: Any) -> None:
        self.networks.append(jax.device_get(variables))


@pytest.mark.usefixtures("tiny")
def test_the_test_part_chooses_nothing(tmp_path: Path) -> None:
    """A test part that says the opposite of val would choose another epoch, but gets the network that val chose."""
    val = greys(11)
    opposite = ArraySource(val.images, 1 - val.labels)
    kept = Kept()
    config = Config("resnet20_cifar", replace(RECIPE, epochs=3), "greys")
    dataset = replace(GREYS, val=val, test=opposite)
    result = train(config, tmp_path / "run", dataset, hooks=[kept], parallel=JIT)
    model = load_classifier(tmp_path / "run").model
    preprocessing = load_classifier(tmp_path / "run").preprocessing
    evaluate = Evaluator(model, preprocessing, 8, JIT)
    by_val, by_test = (
        [evaluate(variables, source).metrics for variables in kept.networks] for source in (val, opposite)
    )

    def choice(evaluations: list[dict[str, float]]) -> int:
        return max(range(3), key=lambda epoch: (evaluations[epoch]["accuracy"], -evaluations[epoch]["loss"]))

    chosen = choice(by_val)
    assert chosen != choice(by_test)
    assert result["best_epoch"] == chosen + 1
    for part, evaluations in (("val", by_val), ("test", by_test)):
        assert result[f"{part}_accuracy"] == evaluations[chosen]["accuracy"]
        assert result[f"{part}_loss"] == pytest.approx(evaluations[chosen]["loss"], rel=1e-6)
    assert result["test_loss"] > by_test[choice(by_test)]["loss"] + 0.01
    best = load_classifier(tmp_path / "run").variables
    jax.tree.map(np.testing.assert_array_equal, best, kept.networks[chosen])


@pytest.mark.usefixtures("tiny")
def test_without_val_images_the_last_network_is_tested(tmp_path: Path) -> None:
    result = run(tmp_path / "run", replace(GREYS, val=None))
    assert not lines(tmp_path / "run", "val")
    (test,) = lines(tmp_path / "run", "test")
    assert (test["epoch"], test["accuracy"], result["best_epoch"]) == (2, result["test_accuracy"], 2)
    assert result["best_val_accuracy"] is None
    assert "val_accuracy" not in result
    with pytest.raises(InputError, match="patience_epochs=1 needs val images, of which greys has none"):
        run(tmp_path / "patient", replace(GREYS, val=None), patience_epochs=1)


@pytest.mark.usefixtures("tiny")
def test_without_test_images_val_is_judged(tmp_path: Path) -> None:
    result = run(tmp_path / "run", replace(GREYS, test=None))
    assert (result["judged_on"], result["test_accuracy"]) == ("val", None)
    assert not lines(tmp_path / "run", "test")
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "part,index,image,class,predicted,probability,class_probability"
    assert [row.split(",")[:2] for row in rows[1:]] == [["val", str(index)] for index in range(11)]
    for row in rows[1:]:
        *_, label, predicted, probability, own = row.split(",")
        assert float(own) <= float(probability)
        assert (label == predicted) == (own == probability)
    with pytest.raises(InputError, match="greys has neither val nor test images"):
        run(tmp_path / "none", replace(GREYS, val=None, test=None))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_each_epoch_may_have_another_image_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    call = Compiled.__call__

    def note(self: Compiled, replicated: Any, batch: Any) -> Any:
        if hasattr(replicated, "opt_state"):
            sizes.append(batch.images.shape[1])
        return call(self, replicated, batch)

    monkeypatch.setattr(Compiled, "__call__", note)
    run(tmp_path / "run", train_image_sizes=(6, 8, 12), epochs=3, batch_size=16)
    assert load_classifier(tmp_path / "run").preprocessing.crop_size == 8
    assert [line["step"] for line in lines(tmp_path / "run", "val")] == [2, 4, 6]
    assert sizes == [6, 6, 8, 8, 12, 12]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["train_image_sizes"] == [6, 8, 12]


@pytest.mark.usefixtures("tiny")
def test_metrics_are_read_while_the_next_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    call, device_get = Compiled.__call__, jax.device_get

    def dispatch(self: Compiled, replicated: Any, batch: Any) -> Any:
        if hasattr(replicated, "opt_state"):
            calls.append("step")
        return call(self, replicated, batch)

    def get(tree: Any) -> Any:
        if isinstance(tree, dict) and "skipped" in tree:
            calls.append("read")
        return device_get(tree)

    monkeypatch.setattr(Compiled, "__call__", dispatch)
    monkeypatch.setattr(jax, "device_get", get)
    run(tmp_path / "run")
    # The test at the end of an epoch needs all that was before it.
    epoch = ["step", "step", "read", "step", "read", "step", "read", "read"]
    assert calls == 2 * epoch


class Slow(ArraySource):
    """Takes its time over each image, in training alone."""

    seconds = 0.0

    def __getitem__(self, index: int) -> Record:
        time.sleep(self.seconds)
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_waiting_for_data_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxnets.data.pipeline.available_cores", lambda: 1)
    source = greys(32)
    dataset = replace(GREYS, train=Slow(source.images, source.labels))
    # Random crops, as other images are held in memory.
    quick = run(tmp_path / "quick", dataset, min_crop_area=0.9)
    monkeypatch.setattr(Slow, "seconds", 0.03)
    slow = run(tmp_path / "slow", dataset, min_crop_area=0.9)
    # Of 1.9 s some may pass while the step is compiled.
    assert quick["waiting_for_data_seconds"] + 0.3 < slow["waiting_for_data_seconds"] < slow["seconds"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("asked", [False, True])
def test_a_full_disk_is_named_even_where_the_run_was_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    save, wait = CheckpointManager.save, CheckpointManager.wait_until_finished
    failures: list[OSError] = []

    def begin(self: Any, *arguments: Any, **options: Any) -> Any:
        begun = save(self, *arguments, **options)
        failures.append(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return begun

    def full(self: Any) -> None:
        wait(self)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(CheckpointManager, "save", begin)
    monkeypatch.setattr(CheckpointManager, "wait_until_finished", full)
    interruption = Interruption()
    interruption.requested = signal.SIGTERM if asked else None
    with pytest.raises(InputError, match=r"a checkpoint can't be written to .*No space left.*free some space"):
        train(
            Config("resnet20_cifar", RECIPE, "greys"), tmp_path / "run", GREYS, parallel=JIT, interruption=interruption
        )


def failing(monkeypatch: pytest.MonkeyPatch, message: str, at: int) -> None:
    call, steps = Compiled.__call__, iter(range(100))

    def fail(self: Compiled, replicated: Any, batch: Any) -> Any:
        if hasattr(replicated, "opt_state") and next(steps) == at:
            raise jax.errors.JaxRuntimeError(message)
        return call(self, replicated, batch)

    monkeypatch.setattr(Compiled, "__call__", fail)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("at", [0, 3])
def test_too_little_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    failing(monkeypatch, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17 bytes.\nLong\nlist", at)
    with pytest.raises(
        InputError, match=r"^out of memory with batch_size=8 .*allocate 17 bytes.*--batch-size 4"
    ) as raised:
        run(tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.usefixtures("tiny")
def test_other_failures_are_not_called_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "INTERNAL: CUDNN_STATUS_EXECUTION_FAILED", 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="CUDNN"):
        run(tmp_path / "run")


class Trapped(Tiny):
    """Makes an infinite loss of a batch that holds a white image."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        trapped = (images > 0.99 / PREPROCESSING.std[0]).all((1, 2, 3)).any()
        return super().__call__(images, train) + jnp.where(trapped & train, jnp.inf, 0)


def with_white_images(monkeypatch: pytest.MonkeyPatch, which: slice) -> Dataset:
    """For the trapped network."""
    monkeypatch.setattr("jaxnets.weights.runs.create_model", lambda name, **options: Trapped(**options))
    source = greys(32)
    source.images[which] = 255
    return replace(GREYS, train=source, mean=(0.0,) * 3, std=PREPROCESSING.std[:1] * 3)


@pytest.mark.usefixtures("tiny")
def test_ten_steps_in_a_row_that_are_not_finite_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config("resnet20_cifar", replace(RECIPE, epochs=4), "greys", log_every=1)
    dataset = with_white_images(monkeypatch, slice(None))
    with pytest.raises(InputError, match=r"^10 steps in a row, up to step 10, .* overflow; check") as raised:
        train(config, tmp_path / "run", dataset, parallel=JIT, checkpoint_interval=0)
    assert "\n" not in str(raised.value)
    latest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    assert f"the last good checkpoint is {latest};" in str(raised.value)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "was not finite" in line]
    assert warnings == [f"warning: step {step} was not finite and was skipped" for step in range(1, 10)]
    trained = lines(tmp_path / "run", "train")
    assert [(line["step"], line["count"], line["skipped"]) for line in trained] == [(n, 0, 1) for n in range(1, 10)]
    assert not any("loss" in line for line in trained)
    assert len(lines(tmp_path / "run", "val")) == 2
    # What is saved is what the run began with.
    variables = load_classifier(tmp_path / "run").variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["mean"], 0)
    np.testing.assert_array_equal(variables["params"]["bn1"]["scale"], 1)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_too_large_a_rate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^10 steps in a row, up to step 1[01], .* --lr than 1e\+38"):
        run(tmp_path / "run", epochs=4, learning_rate=1e38)
    assert lines(tmp_path / "run", "train")[-1]["skipped"] == 1
    variables = load_classifier(tmp_path / "run").variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.usefixtures("tiny")
def test_a_run_goes_on_without_a_step_that_was_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = with_white_images(monkeypatch, slice(7, 8))
    result = run(tmp_path / "run", dataset, log_every=4, ema_decay=0.5)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "was not finite" in line]
    assert len(warnings) == 2
    assert [(line["count"], line["skipped"]) for line in lines(tmp_path / "run", "train")] == [(24, 1), (24, 1)]
    assert (result["steps"], result["epochs"]) == (8, 2)
    assert np.isfinite(result["test_loss"])
    variables = load_classifier(tmp_path / "run").variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.usefixtures("tiny")
def test_a_run_tests_the_moving_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Any] = []
    call = Compiled.__call__

    def note(self: Compiled, replicated: Any, batch: Any) -> Any:
        result = call(self, replicated, batch)
        if hasattr(replicated, "opt_state"):
            states.append(jax.tree.map(np.asarray, result[0]))
        return result

    monkeypatch.setattr(Compiled, "__call__", note)
    tested = scripted(monkeypatch, (0.5, 1.0), (0.6, 1.0))
    run(tmp_path / "run", ema_decay=0.8)
    for step, variables in ((4, tested[0]), (8, tested[1])):
        jax.tree.map(np.testing.assert_array_equal, variables, states[step - 1].ema)
        assert np.abs(variables["params"]["fc"]["kernel"] - states[step - 1].params["fc"]["kernel"]).max() > 1e-4
        assert np.abs(variables["batch_stats"]["bn1"]["mean"] - states[step - 1].batch_stats["bn1"]["mean"]).min() > 0
    jax.tree.map(np.testing.assert_array_equal, load_classifier(tmp_path / "run").variables, tested[1])
