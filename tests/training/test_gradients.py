"""The norms of gradients by layer, against gradients that jax.grad takes of the same batch."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.errors import InputError
from jaxnets.training.config import Config
from jaxnets.training.gradients import NORMS, layer_norms, layers_of
from jaxnets.training.loop import train
from tests.training.networks import cpus
from tests.training.tiny import GREYS, PLAIN, Tiny, make_batch, make_state, make_variables, normalised, step_of

LAYERS = ("bn0", "bn1", "conv1", "fc")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "count", "parts"), [("jit", 1, 1), ("shard_map", 4, 2)])
def test_norms_are_those_of_the_gradient_of_the_mean_loss(kind: str, count: int, parts: int) -> None:
    recipe = replace(PLAIN, batch_size=16, accumulation=parts, clip_norm=1e-3)
    # Without norm no image knows what others are in its part.
    model, batch, parallel = Tiny(norm=None, dtype=jnp.float64), make_batch(16), cpus(count, kind)
    state = make_state(recipe, make_variables(model))
    images = jnp.asarray(normalised(np.asarray(batch.images)))

    def loss(params: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(model.apply({"params": params}, images, train=False))
        return -log_p[jnp.arange(16), batch.labels].mean()

    gradients = jax.grad(loss)(state.params)
    expected = [np.sqrt(sum((np.asarray(g) ** 2).sum() for g in gradients[name].values())) for name in ("conv1", "fc")]
    step = parallel.wrap(partial(step_of(recipe, model, parallel.axis_name), layers=("conv1", "fc")))
    _, sums = step(parallel.replicate(state), parallel.put(batch))
    np.testing.assert_allclose(parallel.fetch(sums)[NORMS], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e25])
def test_norms_whose_squares_float32_does_not_have(size: float) -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * np.float32(size)
    gradients = {"conv": {"kernel": jnp.asarray(numbers), "bias": jnp.full(2, size)}, "fc": {"bias": jnp.zeros(2)}}
    expected = [np.sqrt((numbers.astype(float) ** 2).sum() + 2 * size**2), 0]
    np.testing.assert_allclose(layer_norms(gradients, ("conv", "fc")), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_of_gradients_that_are_not_finite(value: float) -> None:
    norms = layer_norms({"conv": {"bias": jnp.array([value, 1])}, "fc": {"bias": jnp.array([3.0, 4])}}, ("conv", "fc"))
    np.testing.assert_allclose(norms, [value, 5])


def test_layers_are_in_order_and_named_once() -> None:
    paths = [("b", "conv", "kernel"), ("b", "conv", "bias"), ("a", "scale"), ("fc", "kernel")]
    assert layers_of(paths) == ("b/conv", "a", "fc")
    assert layers_of(paths, {"b"}) == ("a", "fc")


def test_only_a_step_that_is_asked_for_norms_computes_them() -> None:
    model = Tiny()
    state, step = make_state(PLAIN, make_variables(model)), step_of(PLAIN, model)
    on, off = (str(jax.make_jaxpr(program)(state, make_batch())) for program in (partial(step, layers=LAYERS), step))
    # The norms are the only square roots of four numbers.
    roots = re.compile(r":f32\[4\] = sqrt ")
    assert (len(roots.findall(on)), len(roots.findall(off))) == (1, 0)
    assert NORMS not in jax.eval_shape(step, state, make_batch())[1]


@pytest.mark.usefixtures("tiny")
def test_a_run_without_the_setting_computes_no_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(gradients: Any, layers: Any) -> jax.Array:
        raise InputError("norms are computed")

    monkeypatch.setattr("jaxnets.training.step.layer_norms", computed)
    config = Config("tiny", replace(PLAIN, learning_rate=0.01, epochs=1), log_every=1)
    train(config, tmp_path / "run", GREYS, parallel=cpus(1, "jit"))
    assert NORMS not in (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="norms are computed"):
        train(replace(config, log_gradients=True), tmp_path / "other", GREYS, parallel=cpus(1, "jit"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("devices", "kind", "steps_per_call"), [(1, "jit", 2), (2, "pmap", 1)])
def test_a_run_logs_the_norms(devices: int, kind: str, steps_per_call: int, tmp_path: Path) -> None:
    config = Config("tiny", replace(PLAIN, learning_rate=0.01, epochs=2), log_every=2, log_gradients=True)
    train(config, tmp_path / "run", GREYS, parallel=cpus(devices, kind), steps_per_call=steps_per_call)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    for line in logged:
        assert tuple(sorted(line[NORMS])) == LAYERS
        assert min(line[NORMS].values()) > 0
    assert len({line[NORMS]["fc"] for line in logged}) == 4
    assert not any(NORMS in line for line in lines if line["split"] != "train")
