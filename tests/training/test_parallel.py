"""One device or many: the same run."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxnets
from jaxnets.data.pipeline import Batch
from jaxnets.errors import InputError
from jaxnets.training.batch_norm import with_batch_norm
from jaxnets.training.parallel import Parallel
from jaxnets.training.recipes import recipe_for
from jaxnets.training.state import create_state
from jaxnets.training.step import train_step
from tests.tiers import slow_except
from tests.training.networks import (
    DATASET,
    FAMILIES,
    STEADY,
    STILL,
    Trainer,
    assert_same_bytes,
    compiling,
    config,
    cpus,
    images,
    largest_difference,
    losses,
    metrics,
    saved,
)

pytestmark = pytest.mark.usefixtures("small_networks")

SEVERAL = ("pmap", "shard_map")
# What draws chance, less what takes long to compile; and less again, for networks after the first.
MANY = {"cutmix_alpha": 0.0, "color_jitter": 0.0, "random_erasing": 0.0, "trivial_augment": False}
FEW = {**STILL, "flip": 0.5, "dropout_rate": 0.3, "stochastic_depth_rate": 0.3}


def trained(folder: Path, devices: int, kind: str, arch: str, *, quickly: bool = True, **changes: Any) -> Path:
    workdir = folder / f"{kind}{devices}"
    with pytest.MonkeyPatch.context() as patch:
        Trainer(config(arch, dtype="float64", **changes), cpus(devices, kind), patch, quickly=quickly)(workdir)
    return workdir


def compare(actual: Path, expected: Path) -> tuple[float, float]:
    """The largest differences of losses and of what the last checkpoint holds."""
    assert [line["step"] for line in metrics(actual)] == [line["step"] for line in metrics(expected)]
    assert len(losses(expected)) >= 4
    return (
        float(np.abs(np.subtract(losses(actual), losses(expected))).max()),
        largest_difference(saved(actual), saved(expected)),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arch", "kinds", "changes"),
    [
        ("tiny_resnet", SEVERAL[:1], FEW),
        pytest.param("tiny_resnet", SEVERAL, MANY, marks=pytest.mark.slow),
        pytest.param("tiny_resnext", SEVERAL[:1], FEW, marks=pytest.mark.slow),
        pytest.param(
            *("tiny_alexnet", SEVERAL[1:], {**FEW, "stochastic_depth_rate": 0.0, "epochs": 1}), marks=pytest.mark.slow
        ),
        *(
            pytest.param(arch, SEVERAL, {**STEADY.get(arch, {}), "quickly": False}, marks=pytest.mark.exhaustive)
            for arch in FAMILIES
        ),
    ],
)
def test_any_number_of_devices_trains_alike(
    arch: str, kinds: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    options = {"arch": arch, **changes}
    one = trained(tmp_path, 1, "jit", **options)
    for kind in kinds:
        several = trained(tmp_path, 8, kind, **options)
        of_losses, of_state = compare(several, one)
        print(f"{arch}, {kind} on 8 against jit: losses {of_losses:.1e}, state {of_state:.1e}")
        assert max(of_losses, of_state) < 1e-10
        for name in ("accuracy", "loss", "count"):
            assert metrics(several)[-1][name] == pytest.approx(metrics(one)[-1][name], rel=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_a_batch_may_be_computed_in_parts(tmp_path: Path) -> None:
    # Without norm and dropout no image knows what others are in its part.
    plain = {**FEW, "dropout_rate": 0.0, "stochastic_depth_rate": 0.0, "arch": "tiny_plain"}
    whole = trained(tmp_path, 1, "jit", **plain)
    actual = trained(tmp_path, 4, "shard_map", accumulation=2, **plain)
    assert max(compare(actual, whole)) < 1e-10


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_local_statistics_are_those_of_each_replica() -> None:
    setup = config(dtype="float64", **STILL, batch_norm="local", optimizer="sgd", ema_decay=0.0)
    recipe, network = setup.recipe, setup.create_model(3)
    optimizer = recipe.make_optimizer(lambda _: 0.1)
    preprocessing = recipe.preprocessing(DATASET.mean, DATASET.std)
    source = images(16)
    batch = Batch(source.images, source.labels.astype(np.int32), np.ones(16, bool))
    with compiling(quickly=True):
        state = create_state(network, optimizer, 0, 8)

    def after(parallel: Parallel, batch: Batch) -> dict[str, Any]:
        model = with_batch_norm(network, "local", parallel.axis_name)
        step = partial(train_step, model=model, optimizer=optimizer, preprocessing=preprocessing, recipe=recipe)
        take = parallel.wrap(partial(step, axis_name=parallel.axis_name))
        with compiling(quickly=True):
            taken, _ = take(parallel.replicate(state), parallel.put(batch))
        return parallel.fetch(taken.variables)

    quarters = [after(cpus(1), jax.tree.map(lambda array, i=i: array[4 * i : 4 * i + 4], batch)) for i in range(4)]
    # A step of plain gradient descent is linear in the gradient.
    expected = jax.tree.map(lambda *each: np.mean(each, axis=0), *quarters)
    for kind in SEVERAL:
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), after(cpus(4, kind), batch), expected)


@pytest.mark.exhaustive
def test_steps_by_replicas_of_their_own_statistics_are_the_same_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With accumulation, and with chance.
    changes = {**FEW, "batch_norm": "local", "accumulation": 2, "epochs": 2}
    runs = []
    for kind in SEVERAL:
        runs.append(tmp_path / kind)
        Trainer(config(**changes), cpus(4, kind), monkeypatch)(runs[-1])
    assert largest_difference(saved(runs[0]), saved(runs[1])) < 1e-5


@pytest.mark.parametrize(("kind", "count"), [("jit", 1), ("pmap", 4), ("shard_map", 4)])
def test_a_batch_lies_on_the_devices_in_its_order(kind: str, count: int) -> None:
    parallel = cpus(count, kind)
    batch = {"a": np.arange(24, dtype=np.int32).reshape(8, 3), "b": np.arange(8, dtype=np.uint8)}
    put = parallel.put(batch)
    for name, array in batch.items():
        shards = sorted(put[name].addressable_shards, key=lambda shard: parallel.devices.index(shard.device))
        there = np.concatenate([np.reshape(shard.data, (-1, *array.shape[1:])) for shard in shards])
        np.testing.assert_array_equal(there, array)
    assert_same_bytes(parallel.fetch(parallel.replicate(batch)), batch)


def test_what_cannot_be_spread_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size=12 can't be split over 8 devices; choose a multiple of 8"):
        Trainer(config(batch_size=12), cpus(8), monkeypatch)(tmp_path / "run")
    with pytest.raises(InputError, match="8 devices in 4 parts; choose a multiple of 32, such as 32"):
        Trainer(config(accumulation=4), cpus(8), monkeypatch)(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="parallel='vmap'; expected one of auto, jit, pmap, shard_map"):
        Parallel.choose("vmap")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="parallel=jit uses one device, but there are 2 processes"):
        Parallel.choose("jit")


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_except(SEVERAL[1:], SEVERAL))
@pytest.mark.parametrize("groups", slow_except([8], [1, 8]))
def test_each_device_does_its_share_of_the_arithmetic(kind: str, groups: int) -> None:
    # Left to XLA's partitioner, every device would do grouped convolutions for the whole batch.
    model = jaxnets.create_model(
        "resnext29_8x64d_cifar", num_classes=3, stage_sizes=(1,), num_filters=16, groups=groups, width_per_group=16
    )
    recipe = replace(recipe_for("resnext29_8x64d_cifar", "digits"), image_size=16, ema_decay=0.0)
    optimizer = recipe.make_optimizer(recipe.schedule_of(10, 100))
    state = create_state(model, optimizer, 0, 16)
    batch = Batch(np.zeros((64, 16, 16, 3), np.uint8), np.zeros(64, np.int32), np.ones(64, bool))

    def flops(parallel: Parallel) -> float:
        step = partial(
            train_step,
            model=with_batch_norm(model, "local", parallel.axis_name),
            optimizer=optimizer,
            preprocessing=recipe.preprocessing((0.5,) * 3, (0.5,) * 3),
            recipe=recipe,
            axis_name=parallel.axis_name,
        )
        compiled = parallel.wrap(step)._transformed.lower(parallel.replicate(state), parallel.put(batch)).compile()
        analysis: Any = compiled.cost_analysis()
        return analysis["flops"]

    # Nearly all of it is that of convolutions.
    whole, share = flops(cpus(1, "jit")), flops(cpus(8, kind))
    assert whole > 1e8
    assert whole / 8 <= share < 1.1 * whole / 8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("kind", "devices"), slow_except([("shard_map", 4)], [("jit", 1), ("pmap", 4), ("shard_map", 4)])
)
@pytest.mark.slow
def test_several_steps_a_call_are_the_same_steps(
    kind: str, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three do not divide an epoch's steps, and a stop comes between two calls.
    setup = config("tiny_resnet", dtype="float64", **FEW, epochs=2)
    one, several = tmp_path / "one", tmp_path / "several"
    assert Trainer(setup, cpus(1), monkeypatch)(one)
    train = Trainer(setup, cpus(devices, kind), monkeypatch)
    assert not train(several, stop=2, steps_per_call=3)
    assert train(several, resume=True, steps_per_call=3)
    assert max(compare(several, one)) < 1e-10
    assert metrics(several)[-1]["accuracy"] == pytest.approx(metrics(one)[-1]["accuracy"], rel=1e-10)


def test_no_steps_a_call_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="steps_per_call=0; expected at least 1"):
        Trainer(config(), cpus(1), monkeypatch)(tmp_path / "run", steps_per_call=0)
    assert not (tmp_path / "run").exists()
