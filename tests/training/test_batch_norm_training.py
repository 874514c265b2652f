"""Batch normalisation over replicas, frozen, and with statistics recomputed for the test."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data.batches import training_slots
from jaxnets.data.pipeline import Batch
from jaxnets.data.sources import ArraySource
from jaxnets.errors import InputError
from jaxnets.training.batch_norm import Recalibration, small_batch_warning, with_batch_norm
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.evaluation import Evaluator
from jaxnets.training.loop import train
from jaxnets.training.parallel import Parallel
from tests.training.tiny import (
    GREYS,
    PLAIN,
    PREPROCESSING,
    Tiny,
    compiled_step,
    make_batch,
    make_state,
    make_variables,
    normalised,
    step_of,
)

BATCH = make_batch()
VARIABLES = make_variables(Tiny())
JIT = Parallel.choose("jit")


def halves() -> list[Batch]:
    return [Batch(*(array[part] for array in BATCH)) for part in (slice(4), slice(4, 8))]


def running(moments: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What one step at a momentum of 0.9 makes of the running statistics, replicas averaged."""
    old = VARIABLES["batch_stats"]["bn0"]
    mean, var = (np.mean(parts, axis=0) for parts in zip(*moments, strict=True))
    return {"mean": 0.9 * np.asarray(old["mean"]) + 0.1 * mean, "var": 0.9 * np.asarray(old["var"]) + 0.1 * var}


def moments(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    pixels = normalised(np.asarray(batch.images)).reshape(-1, 3)
    return pixels.mean(0), pixels.var(0, ddof=1)


def assert_close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=atol), actual, expected)


@pytest.mark.parametrize("kind", ["local", "synchronised", "frozen"])
@pytest.mark.slow
def test_replicas_normalise_by_the_statistics_of(kind: str) -> None:
    recipe = replace(PLAIN, batch_norm=kind)
    state = make_state(recipe, VARIABLES)
    model = with_batch_norm(Tiny(), kind, "replicas")
    step = jax.vmap(step_of(recipe, model, "replicas"), in_axes=(None, 0), axis_name="replicas")
    after, _ = jax.jit(step)(state, Batch(*(np.stack(arrays) for arrays in zip(*halves(), strict=True))))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), after)
    after = jax.tree.map(lambda leaf: leaf[0], after)
    if kind == "local":
        # Each as if it were alone.
        alone = [compiled_step(PLAIN, Tiny())(state, half)[0] for half in halves()]
        assert_close(after.params, jax.tree.map(lambda one, other: (one + other) / 2, *(s.params for s in alone)))
        expected = running([moments(half) for half in halves()])
    elif kind == "synchronised":
        whole, _ = compiled_step(PLAIN, Tiny())(state, BATCH)
        assert_close((after.params, after.batch_stats), (whole.params, whole.batch_stats))
        expected = running([moments(BATCH)])
    else:
        jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
        expected = VARIABLES["batch_stats"]["bn0"]
        # The gradients are those of the network as it is tested.
        assert_close(after.params, descended_as_tested(VARIABLES))
    assert_close(after.batch_stats["bn0"], expected)


def descended_as_tested(variables: dict[str, Any]) -> Any:
    def loss(params: Any) -> Any:
        inputs = jnp.asarray(normalised(BATCH.images), jnp.float32)
        logits: Any = Tiny().apply({**variables, "params": params}, inputs, train=False)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), BATCH.labels[:, None], axis=1).mean()

    return jax.tree.map(lambda p, g: p - g, variables["params"], jax.jit(jax.grad(loss))(variables["params"]))


def test_networks_without_norms_take_any_kind() -> None:
    for kind in ("local", "synchronised", "frozen"):
        model: Any = with_batch_norm(Tiny(norm=None), kind, "replicas")
        assert (model.network.axis_name, model.network.norm) == ("replicas", None)


def test_few_images_at_a_time_are_warned_of() -> None:
    def said(replicas: int = 1, has_norm: bool = True, **changes: Any) -> str:
        return "".join(small_batch_warning(replace(PLAIN, **changes), replicas, has_norm=has_norm))

    assert "sees only 15 images at a time" in said(batch_size=15)
    assert said(batch_size=16) == ""
    assert "sees only 8 images" in said(batch_size=32, accumulation=4)
    assert "sees only 8 images" in said(batch_size=64, replicas=8)
    assert "--batch-norm synchronised" in said(batch_size=64, replicas=8)
    assert "--batch-norm synchronised" not in said(batch_size=8)
    assert said(batch_size=64, replicas=8, batch_norm="synchronised") == ""
    assert "sees only 8 images" in said(batch_size=8, replicas=8, batch_norm="synchronised")
    assert said(batch_size=8, batch_norm="frozen") == said(batch_size=8, has_norm=False) == ""


SOURCE = ArraySource(np.random.default_rng(5).integers(0, 256, (24, 8, 8, 3)).astype(np.uint8), np.arange(24) % 3)


def brute_force(params: Any, images: np.ndarray, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
    """The population's statistics, in float64, where each batch is normalised by its own."""
    # bn0 sees the images, bn1 what the convolution makes of them.
    seen: dict[str, list[np.ndarray]] = {"bn0": [], "bn1": []}
    kernel = np.asarray(params["conv1"]["kernel"], float)
    for part in np.split(normalised(images), len(images) // batch_size):
        x = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        x = x * np.asarray(params["bn0"]["scale"], float) + np.asarray(params["bn0"]["bias"], float)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
        seen["bn0"].append(part)
        seen["bn1"].append(np.einsum("nhwcij,ijco->nhwo", windows, kernel))
    return {
        name: {"mean": np.mean(values, axis=(0, 1, 2, 3)), "var": np.var(values, axis=(0, 1, 2, 3))}
        for name, values in seen.items()
    }


@pytest.mark.parametrize(("images", "counted"), [(24, 24), (100, 24), (20, 16), (1, 8)])
def test_statistics_found_anew_are_those_of_the_population(images: int, counted: int) -> None:
    config = Config("resnet20_cifar", replace(PLAIN, precise_batch_norm_images=images), seed=3)
    done: list[int] = []
    used = np.concatenate([training_slots(3, step, 8, 24).indices for step in range(counted // 8)])
    assert len(set(used)) == counted
    # Dropout must not change them.
    network = partial(Tiny, dropout_rate=0.5)
    with jax.enable_x64(True):
        doubles = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), VARIABLES)
        exact = Recalibration(network(dtype=jnp.float64), PREPROCESSING, JIT)(doubles, SOURCE, config, done.append)
        assert_close(exact, brute_force(doubles["params"], SOURCE.images[used], 8), 1e-13)
    assert done == list(range(8, counted + 1, 8))
    recalibrate = Recalibration(network(), PREPROCESSING, JIT)
    statistics = recalibrate(VARIABLES, SOURCE, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {np.dtype(np.float32)}
    # The order of a sum over all pixels depends on the processor, and rounding with it.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(exact))
    assert_close(statistics, exact, 16 * np.finfo(np.float32).eps * largest)
    # What they were before does not matter.
    other = {**VARIABLES, "batch_stats": jax.tree.map(lambda leaf: leaf + 3, VARIABLES["batch_stats"])}
    jax.tree.map(np.testing.assert_array_equal, recalibrate(other, SOURCE, config), statistics)


def test_statistics_found_anew_are_exact_where_the_mean_is_large() -> None:
    # White images that differ by one grey level, of which float32 would see nothing in a mean of squares.
    levels = np.random.default_rng(6).integers(254, 256, (24, 1, 1, 3))
    source = ArraySource(np.tile(levels, (1, 8, 8, 1)).astype(np.uint8), np.arange(24) % 3)
    dim = replace(PREPROCESSING, mean=(-30.0,) * 3, std=(1.0,) * 3)
    config = Config("resnet20_cifar", replace(PLAIN, precise_batch_norm_images=24), seed=3)
    for parallel, axis in ((JIT, None), (Parallel.choose("pmap", jax.devices()[:4]), "replicas")):
        model: Any = with_batch_norm(Tiny(), "local", axis)
        variables = parallel.replicate(VARIABLES)
        statistics = Recalibration(model, dim, parallel)(variables, source, config)["bn0"]
        pixels = source.images.astype(float) / 255 + 30
        np.testing.assert_allclose(statistics["mean"], pixels.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(statistics["var"], pixels.var((0, 1, 2)), rtol=0.02)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("decay", [0.0, 0.6])
@pytest.mark.slow
def test_a_run_tests_its_average_with_statistics_found_anew(decay: float, tmp_path: Path) -> None:
    recipe = replace(PLAIN, epochs=2, learning_rate=0.1, precise_batch_norm_images=32, ema_decay=decay)
    dataset = replace(GREYS, mean=PREPROCESSING.mean, std=PREPROCESSING.std)
    result = train(Config("resnet20_cifar", recipe, "greys"), tmp_path / "run", dataset, parallel=JIT)
    # What is saved is what was tested: weights, averaged or not, with the statistics of the population for them.
    variables = load_classifier(tmp_path / "run").variables
    images = np.repeat(np.asarray(dataset.train.images)[..., None], 3, axis=-1)[  # type: ignore[attr-defined]
        np.concatenate([training_slots(0, step, 8, 32).indices for step in range(4)])
    ]
    assert_close(variables["batch_stats"], brute_force(variables["params"], images, 8), 1e-5)
    test = Evaluator(Tiny(num_classes=2), PREPROCESSING, 8, JIT)(variables, dataset.test)
    assert result["test_loss"] == pytest.approx(test.metrics["loss"], rel=1e-6)
    # Training keeps its own statistics: the weights are those of a run without recalibration.
    plain = replace(recipe, precise_batch_norm_images=0)
    train(Config("resnet20_cifar", plain, "greys"), tmp_path / "plain", dataset, parallel=JIT)
    without = load_classifier(tmp_path / "plain").variables
    jax.tree.map(np.testing.assert_array_equal, variables["params"], without["params"])
    assert np.abs(without["batch_stats"]["bn0"]["mean"] - variables["batch_stats"]["bn0"]["mean"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_run_leaves_frozen_statistics_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, learning_rate in (("frozen", 0.05), ("local", 0.06)):
        recipe = replace(PLAIN, epochs=1, learning_rate=learning_rate, batch_norm=kind)
        train(Config("resnet20_cifar", recipe, "greys"), tmp_path / kind, GREYS, parallel=JIT)
        said = [line for line in capsys.readouterr().err.splitlines() if "normalisation sees only 8 images" in line]
        assert len(said) == (kind == "local")
    frozen, trained = (load_classifier(tmp_path / kind).variables for kind in ("frozen", "local"))
    for norm in ("bn0", "bn1"):
        np.testing.assert_array_equal(frozen["batch_stats"][norm]["mean"], 0)
        np.testing.assert_array_equal(frozen["batch_stats"][norm]["var"], 1)
        assert trained["batch_stats"][norm]["mean"].all()
    assert (frozen["params"]["fc"]["kernel"] != trained["params"]["fc"]["kernel"]).all()


@pytest.mark.parametrize("change", [{"batch_norm": "frozen"}, {"precise_batch_norm_images": 16}])
def test_networks_without_norms_refuse_what_is_about_norms(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxnets.weights.runs.create_model", lambda name, **options: Tiny(norm=None, **options))
    with pytest.raises(InputError, match="has no batch normalisation; leave out --batch-norm"):
        train(Config("resnet20_cifar", replace(PLAIN, **change), "greys"), tmp_path / "run", GREYS, parallel=JIT)
    assert not (tmp_path / "run").exists()
