"""NaN and infinity in inputs, gradients, statistics and weights: no step takes them, and no run accepts them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model
from jaxnets.training import step
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.parallel import Parallel
from jaxnets.weights.safetensors_file import write_safetensors
from jaxnets.weights.tensors import Spec
from jaxnets.weights.torchvision import to_torchvision
from tests.faults.group import Group
from tests.training.tiny import PLAIN, PREPROCESSING, Tiny, greys, make_state, make_variables, step_of

_RECIPE = replace(PLAIN, optimizer="adam", learning_rate=0.01, ema_decay=0.9)
_VALUES = (np.nan, np.inf, -np.inf)
_WAYS = ("jit", "pmap", "shard_map")
_MARK = (255, 0, 255)
_KINDS = ("inputs", "gradients", "statistics", "weights", "a run with some", "a run with all", "starting weights")


@jax.custom_vjp
def _with_slope(values: jax.Array, fault: jax.Array) -> jax.Array:
    return values


_with_slope.defvjp(lambda values, fault: (values, fault), lambda fault, slopes: (slopes + fault, jnp.zeros_like(fault)))


class Marked(nn.Module):
    """The tiny network, in which a marked image of the batch puts `value` into a place."""

    place: str
    value: float
    num_classes: int = 2
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        corner = images[:, 0, 0] * jnp.array(PREPROCESSING.std) + jnp.array(PREPROCESSING.mean)
        marked = (corner[:, 0] - corner[:, 1] > 0.9).any() & train
        fault = jnp.where(marked, jnp.float32(self.value), 0)
        extra = self.variable("batch_stats", "extra", lambda: jnp.zeros(7))
        if self.place == "statistics" and train:
            extra.value = (extra.value * 0.9).at[3].add(fault)
        if self.place == "inputs":
            images = images.at[0, 5, 3, 1].add(fault)
        if self.place == "gradients":
            images = _with_slope(images * self.param("gain", nn.initializers.ones, (1,)), fault)
        return Tiny(self.num_classes, axis_name=self.axis_name, dtype=self.dtype, name="inner")(images, train)


def _run(case: int, folder: Path) -> Mapping[str, int]:
    _two_devices()
    random = Random(case)
    kind, way = _KINDS[(case + case // 20) % len(_KINDS)], _WAYS[case // len(_KINDS) % len(_WAYS)]
    value = random.choice(_VALUES)
    if kind == "starting weights":
        _check_start(random, value, folder)
    elif kind.startswith("a run"):
        _check_run(random, value, _parallel(way), folder, all_marked=kind == "a run with all")
    else:
        _check_step(random, value, _parallel(way), kind)
    return {kind: 1, way: kind != "starting weights"}


@cache
def _two_devices() -> None:
    jax.config.update("jax_num_cpu_devices", 2)


def _parallel(way: str) -> Parallel:
    return Parallel.choose(way, jax.devices("cpu")[: 1 if way == "jit" else 2])


def _marked(images: np.ndarray, places: Any) -> np.ndarray:
    images = np.repeat(images[..., None], 3, -1) if images.ndim == 3 else images.copy()
    images[places, 0, 0] = _MARK
    return images


def _check_step(random: Random, value: float, parallel: Parallel, place: str) -> None:
    """A step with a fault changes nothing but its counters; the same step without it changes the weights."""
    model = Marked(place, value)
    pixels = np.random.default_rng(random.getrandbits(32)).integers(60, 250, (8, 8, 8)).astype(np.uint8)
    take = parallel.wrap(step_of(_RECIPE, model.clone(axis_name=parallel.axis_name), parallel.axis_name))
    state = jax.device_get(make_state(_RECIPE, make_variables(model)))
    for faulty in (True, False):
        images = _marked(pixels, [random.randrange(8)] if faulty and place != "weights" else [])
        before = state
        if faulty and place == "weights":
            before = jax.tree.map(np.array, state)
            kernel = before.params["inner"]["conv1"]["kernel"]
            kernel.reshape(-1)[random.randrange(kernel.size)] = value
        batch = Batch(images, np.arange(8, dtype=np.int32) % 2, np.ones(8, bool))
        after, sums = parallel.fetch(take(parallel.replicate(before), parallel.put(batch)))
        same = [one == other for one, other in zip(_kept(before), _kept(after), strict=True)]
        assert int(after.step) == 1, "the step is not counted"
        if faulty:
            assert all(same), f"a skipped step changed {same.count(False)} of {len(same)} arrays"
            assert int(sums["skipped"]) == int(after.skipped) == 1, "the step is not counted as skipped"
        else:
            assert int(sums["skipped"]) == 0, "a good step was skipped"
            assert same.count(False) > 9, "a good step changed nothing"


def _kept(state: Any) -> list[bytes]:
    """All that a skipped step has to leave as it is."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.replace(step=0, skipped=0))]


def _check_run(random: Random, value: float, parallel: Parallel, folder: Path, *, all_marked: bool) -> None:
    """Some faults are skipped; after ten in a row the run stops with the cause. It keeps nothing that is not finite."""
    model = Marked(random.choice(_KINDS[:3]), value)
    source: Any = greys(32)
    pixels = np.stack([source[index].image for index in range(32)])
    labels = np.array([source[index].label for index in range(32)])
    marked = range(32) if all_marked else [random.randrange(32)]
    dataset = Dataset(
        "greys",
        ("dark", "light"),
        ArraySource(_marked(pixels, list(marked)), labels),
        greys(13),
        PREPROCESSING.mean,
        PREPROCESSING.std,
    )
    config = Config("resnet20_cifar", _RECIPE, dataset="greys", seed=random.randrange(9), log_every=1)
    result, said = _trained(config, folder, dataset, model=model, parallel=parallel)
    if said:
        assert all_marked, f"one bad image in an epoch stopped the run: {said}"
        assert "not finite" in said, f"the cause is not named: {said}"
        assert "\n" not in said, "more than a line"
        assert not (folder / "run" / "result.json").exists(), "a run without a good step has a result"
        return
    assert not all_marked, "a run without a good step came to its end"
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = sum(line.get("skipped", 0) for line in lines)
    assert result["steps"] == 16, "steps are missing"
    assert skipped == 4, f"{skipped} steps were skipped, 4 had a fault"
    variables = load_classifier(folder / "run", "latest", model=model).variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)), "the run kept what is not finite"


def _check_start(random: Random, value: float, folder: Path) -> None:
    """Weights that are not finite are refused, with the file and the array."""
    arch = "resnet20_cifar"
    model = create_model(arch, num_classes=10)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    tensors = to_torchvision(arch, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))
    name = random.choice([name for name in sorted(tensors) if not name.startswith("fc.")])
    tensors[name] = np.array(tensors[name])
    tensors[name].reshape(-1)[random.randrange(tensors[name].size)] = value
    path = folder / "weights.safetensors"
    specs = {key: Spec(array.dtype, array.shape) for key, array in sorted(tensors.items())}
    write_safetensors(path, specs, tensors.__getitem__, {})
    config = Config(arch, replace(PLAIN, image_size=32), dataset="digits", weights=str(path))
    _, said = _trained(config, folder)
    assert said, f"a run started with {value} in {name}"
    assert str(path) in said, f"the file is not named: {said}"
    assert name in said, f"the array {name} is not named: {said}"
    assert "not finite" in said, f"the cause is not named: {said}"


def _trained(config: Config, folder: Path, *data: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """The result of a run, and the error that ended it."""
    try:
        return train(config, folder / "run", *data, **options), ""
    except InputError as error:
        return {}, str(error)


@contextmanager
def _unguarded() -> Iterator[None]:
    guard = step.all_finite
    step.all_finite = lambda tree: jnp.array(True)
    try:
        yield
    finally:
        step.all_finite = guard


GROUP = Group(
    fault="NaN or infinity in inputs, gradients, statistics or weights",
    promise="skipped steps change nothing; after ten the run stops with the cause; the file and array are named",
    cases=60,
    run=_run,
    unguarded=_unguarded,
    telling=(0, 1, 2),
)
