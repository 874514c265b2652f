"""The study of batch normalisation notices norms that do not do their work, and computes what loops compute."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.batch_norm import STUDY
from experiments.studies.batch_norm_inside import errors_at
from experiments.studies.batch_norm_runs import Settings, StudiedNorm
from experiments.studies.data import study_data, subset
from experiments.studies.lab import Lab, Programs
from experiments.studies.study import FAILS, HOLDS
from jaxnets.models import layers
from jaxnets.models.layers import BatchNorm
from jaxnets.training.parallel import Parallel

TINY = Settings(
    stage_sizes=(1, 1),
    num_filters=4,
    image_size=8,
    images=320,
    epochs=4,
    batch_size=32,
    rates=(0.1, 1.0),
    late_rates=(0.1,),
    learning_rate=0.1,
    sizes=(1, 4, 32),
    few_images=64,
    few_epochs=1,
    judged_images=16,
)


def verdicts() -> dict[str, str]:
    measured = STUDY.measure(Lab(study_data("digits"), 0), TINY)
    return {verdict.claim.name: verdict.verdict for verdict in STUDY.judge([measured])}


def rescaling(inputs: Any, scale: Any, bias: Any, epsilon: float, axis_name: Any = None, activation: Any = None) -> Any:
    """Batch normalisation that does not subtract the mean."""
    axes = tuple(range(inputs.ndim - 1))
    mean, var = inputs.mean(axes), inputs.var(axes)
    outputs = inputs * scale * jax.lax.rsqrt(var + epsilon) + bias
    return outputs if activation is None else activation(outputs), (mean, var)


@pytest.mark.slow
def test_norms_do_what_the_course_says() -> None:
    found = verdicts()
    for name in ("normalises", "higher-rates", "statistics", "bias-outputs", "bias-gradient"):
        assert found[name] == HOLDS, name
    assert found["evaluated-in-training-mode"] == found["trained-in-eval-mode"] == HOLDS


@pytest.mark.slow
def test_norms_that_do_not_subtract_the_mean_turn_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "batch_norm", rescaling)
    jax.clear_caches()  # the programs with true norms
    found = verdicts()
    jax.clear_caches()
    assert {found[name] for name in ("normalises", "higher-rates", "bias-outputs", "bias-gradient")} == {FAILS}


@pytest.mark.parametrize("train", [True, False])
def test_local_statistics_are_those_of_each_group(train: bool) -> None:
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(1, 2, (6, 3, 3, 4)), jnp.float32)
    params = {"scale": jnp.asarray(random.normal(size=4), jnp.float32), "bias": jnp.ones(4)}
    variables = {"params": params, "batch_stats": {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 2.0)}}

    def run(norm: Any, images: Any) -> Any:
        return norm.apply(variables, images, jax.nn.relu, mutable=["batch_stats"])

    outputs, updates = run(StudiedNorm(train=train, images=2), inputs)
    parts = [run(BatchNorm(train=train), part) for part in jnp.split(inputs, 3)]
    np.testing.assert_allclose(outputs, jnp.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        expected = np.mean([update["batch_stats"][name] for _, update in parts], axis=0)
        np.testing.assert_allclose(updates["batch_stats"][name], expected, rtol=1e-6)


def test_a_late_norm_reads_what_the_activation_returns() -> None:
    inputs = jax.random.normal(jax.random.key(0), (8, 2, 2, 3))
    norm, late = BatchNorm(train=True), StudiedNorm(train=True, late=True)
    variables = norm.init(jax.random.key(0), inputs)
    outputs, _ = late.apply(variables, inputs, jax.nn.relu, mutable=["batch_stats"])
    expected, _ = norm.apply(variables, jax.nn.relu(inputs), mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs, expected)


def test_errors_are_those_of_the_pixels_of_each_batch() -> None:
    images = np.random.default_rng(1).gamma(2, size=(64, 3, 3, 2))
    moments = {"image_moments": (images.mean(axis=(1, 2)), (images**2).mean(axis=(1, 2)))}
    order, pixels = np.random.default_rng(5).permutation(64), images.reshape(-1, 2)
    of_mean, of_var = [], []
    for start in range(0, 64, 4):
        batch = images[order[start : start + 4]].reshape(-1, 2)
        of_mean.append((batch.mean(0) - pixels.mean(0)) / pixels.std(0))
        of_var.append(batch.var(0) / pixels.var(0) - 1)
    expected = [np.sqrt(np.mean(np.square(errors))) for errors in (of_mean, of_var)]
    np.testing.assert_allclose(errors_at({"norm": moments}, 4, seed=5), expected, rtol=1e-9)


@pytest.mark.slow
def test_groups_train_as_replicas_with_local_statistics_do() -> None:
    data = subset(study_data("digits"), 0, 96, val=False)
    replicas = Programs()
    replicas.parallel = Parallel.choose("pmap", jax.devices("cpu")[:4])
    settings = replace(TINY, epochs=1, learning_rate=0.02)
    apart = Lab(data, 0).train(settings.config({"images": 8}))
    local = Lab(data, 0, programs=replicas).train(settings.config(batch_norm="local"))
    together = Lab(data, 0).train(settings.config())
    statistics = [jax.tree.leaves(jax.device_get(run.variables)) for run in (apart, local, together)]
    for own, expected in zip(*statistics[:2], strict=True):
        np.testing.assert_allclose(own, expected, rtol=2e-4, atol=2e-5)
    # Statistics of all images are others.
    same, other = (
        max(float(np.abs(a - b).max()) for a, b in zip(statistics[0], run, strict=True)) for run in statistics[1:]
    )
    assert other > 20 * same
