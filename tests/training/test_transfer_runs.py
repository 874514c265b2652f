"""Whole runs that start from weights that are there already."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import ArraySource, Dataset
from jaxnets.errors import InputError
from jaxnets.pretrained import load_pretrained
from jaxnets.training import setup, trainer
from jaxnets.training.checkpoint import load_classifier
from jaxnets.training.config import Config
from jaxnets.training.loop import train
from jaxnets.training.parallel import Parallel
from jaxnets.training.state import create_state
from tests.test_pretrained import variables_of, write
from tests.tiers import slow_except
from tests.training import networks
from tests.training.networks import DATASET, STILL, Stop, assert_same_bytes, cpus, images, saved

pytestmark = pytest.mark.usefixtures("small_networks")
ARCH = "small_resnet"
TRUNK = ("conv1", "bn1", "layer1_0", "layer2_0")
# Two other classes, with statistics of their own.
OTHERS = Dataset("others", ("one", "other"), images(40, 5), images(16, 6), (0.9,) * 3, (0.1,) * 3)
OTHERS = replace(
    OTHERS,
    train=ArraySource(images(40, 5).images, np.arange(40) % 2),
    test=ArraySource(images(16, 6).images, np.arange(16) % 2),
    val=ArraySource(images(12, 7).images, np.arange(12) % 2),
)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> Path:
    """A run to start from."""
    workdir = tmp_path_factory.mktemp("trunk") / "run"
    train(networks.config(ARCH, **STILL, epochs=1, ema_decay=0.0), workdir, DATASET, parallel=cpus(1))
    return workdir


def config(trunk: Path, transfer: str | None, train_from: str | None = None, **changes: Any) -> Config:
    settings = {**STILL, "epochs": 2, "batch_size": 8, "ema_decay": 0.0, "batch_norm": "local", **changes}
    run = networks.config(ARCH, **settings)
    return replace(run, dataset="others", weights=str(trunk), transfer=transfer, train_from=train_from)


def variables(workdir: Path) -> dict[str, np.ndarray]:
    """The parameters and statistics of a run's end by their places."""
    return {name: array for name, array in saved(workdir).items() if name.startswith("['variables']")}


def within(arrays: dict[str, np.ndarray], modules: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if module_of(name) in modules}


def module_of(name: str) -> str:
    """layer2_0 of ['variables']['params']['layer2_0']['bn1']['scale']."""
    return name.split("['")[3].split("']")[0]


def differing(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> set[str]:
    """Modules of which a number differs."""
    return {module_of(name) for name, array in expected.items() if actual[name].tobytes() != array.tobytes()}


@pytest.mark.parametrize("devices", slow_except([1], [1, 3]))
@pytest.mark.parametrize(
    ("transfer", "train_from", "moving"),
    [
        ("head", None, ("fc",)),
        pytest.param("partial", "layer2", ("layer2_0", "fc"), marks=pytest.mark.slow),
        pytest.param("partial", "layer1.0", ("layer1_0", "layer2_0", "fc"), marks=pytest.mark.slow),
        pytest.param("full", None, (*TRUNK, "fc"), marks=pytest.mark.slow),
        pytest.param(None, None, (*TRUNK, "fc"), marks=pytest.mark.slow),
    ],
)
def test_a_run_changes_what_it_is_to_train_and_nothing_else(
    trunk: Path, transfer: str | None, train_from: str | None, moving: tuple[str, ...], devices: int, tmp_path: Path
) -> None:
    run = config(trunk, transfer, train_from, ema_decay=0.9, batch_size=6, flip=0.5)
    result = train(run, tmp_path / "run", OTHERS, parallel=cpus(devices))
    before, after = variables(trunk), variables(tmp_path / "run")
    frozen = tuple(module for module in TRUNK if module not in moving)
    assert_same_bytes(within(after, frozen), within(before, frozen))
    assert differing(within(after, TRUNK), within(before, TRUNK)) == set(moving) - {"fc"}
    assert after["['variables']['params']['fc']['bias']"].shape == (2,)
    size = sum(array.size for name, array in within(after, moving).items() if "['params']" in name)
    assert result["num_trained_params"] == size
    assert result["num_params"] == sum(array.size for name, array in after.items() if "['params']" in name)
    # What the checkpoint keeps for training is of what is trained: one momentum and one average's source a parameter.
    kept = [array for name, array in saved(tmp_path / "run").items() if name.startswith("['training']")]
    statistics = sum(array.size for name, array in within(after, moving).items() if "['batch_stats']" in name)
    assert sum(array.size for array in kept if array.dtype == np.float32) == 2 * size + statistics


def test_a_run_starts_from_the_weights(trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of next to nothing the test is that of the weights; of the same classes, with their head."""
    states = []
    original = create_state

    def create(*arguments: Any, **options: Any) -> Any:
        state = original(*arguments, **options)
        states.append(jax.device_get(state))
        return state

    monkeypatch.setattr("jaxnets.training.start.create_state", create)
    for dataset, same in ((DATASET, True), (replace(DATASET, class_names=("x", "y", "z")), False)):
        train(
            config(trunk, None, epochs=1, learning_rate=1e-12), tmp_path / str(len(states)), dataset, parallel=cpus(1)
        )
        start, run = states[-1].variables, load_classifier(trunk).variables
        head = start["params"].pop("fc"), run["params"].pop("fc")
        jax.tree.map(np.testing.assert_array_equal, start, run)
        assert np.array_equal(head[0]["bias"], head[1]["bias"]) == same


def test_preprocessing_travels_with_the_weights(trunk: Path, tmp_path: Path) -> None:
    run = replace(config(trunk, "head", crop_pct=0.8), dataset="others")
    train(run, tmp_path / "run", OTHERS, parallel=cpus(1))
    # The mean and deviation of the trunk's data, not of its own; the sizes are the recipe's.
    expected = Preprocessing(8, 10, DATASET.mean, DATASET.std)
    assert load_classifier(tmp_path / "run").preprocessing == expected
    assert load_pretrained(ARCH, tmp_path / "run").preprocess == expected
    assert load_pretrained(ARCH, tmp_path / "run").categories == OTHERS.class_names


@pytest.mark.parametrize("devices", slow_except([1], [1, 4]))
@pytest.mark.slow
def test_cached_features_train_the_same_head(
    trunk: Path, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = config(trunk, "head", epochs=4), {}
    extracted: list[int] = []
    extract = setup.FeatureExtractor.__call__

    def count(self: Any, variables: Any, source: Any, *done: Any) -> Any:
        extracted.append(len(source))
        return extract(self, variables, source, *done)

    monkeypatch.setattr(setup.FeatureExtractor, "__call__", count)
    for name, most in (("cached", setup.CACHE_BYTES), ("computed", 0)):
        monkeypatch.setattr(setup, "CACHE_BYTES", most)
        results[name] = train(run, tmp_path / name, OTHERS, parallel=cpus(devices))
        # The trunk sees each image once, whatever the epochs.
        assert extracted == [40, 12, 16]
    cached, computed = (variables(tmp_path / name) for name in ("cached", "computed"))
    for name, array in computed.items():
        np.testing.assert_allclose(cached[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    assert results["cached"]["test_accuracy"] == results["computed"]["test_accuracy"]
    # What is left is a whole classifier, with pictures in its report.
    again = load_classifier(tmp_path / "cached")
    pixels = np.stack([again.preprocessing.pixels(record) for record in OTHERS.test.images])  # type: ignore[attr-defined]
    logits: Any = again.model.apply(again.variables, again.preprocessing.normalise(pixels), train=False)
    accuracy = float(np.mean(np.argmax(logits, 1) == OTHERS.test.labels))  # type: ignore[attr-defined]
    assert accuracy == results["cached"]["test_accuracy"]
    right = {f"class-{label}.png" for label in OTHERS.test.labels[np.argmax(logits, 1) == OTHERS.test.labels]}  # type: ignore[attr-defined]
    assert {path.name for path in (tmp_path / "cached" / "samples").glob("class-?.png")} == right


@pytest.mark.slow
def test_images_that_change_are_not_cached(trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "FeatureExtractor", None)
    train(config(trunk, "head", shift=0.2), tmp_path / "run", OTHERS, parallel=cpus(1))
    assert_same_bytes(within(variables(tmp_path / "run"), TRUNK), within(variables(trunk), TRUNK))


@pytest.mark.parametrize("transfer", slow_except(["partial"], ["full", "partial"]))
@pytest.mark.slow
def test_the_head_is_trained_first_then_the_rest(trunk: Path, transfer: str, tmp_path: Path) -> None:
    train_from = "layer2" if transfer == "partial" else None
    run = config(trunk, transfer, train_from, epochs=3, head_epochs=2, weight_decay=0.1, ema_decay=0.9)
    looks = 5 + 2  # steps and batches of the test of an epoch, each a chance to stop
    before = variables(trunk)
    for stop, moved in ((looks, set()), (2 * looks, set()), (2 * looks + 1, set(TRUNK))):
        workdir = tmp_path / str(stop)
        with pytest.raises(BaseException, match="SIGTERM"):
            train(run, workdir, OTHERS, parallel=cpus(1), interruption=Stop(stop))
        expected = moved & {"layer2_0"} if train_from else moved
        assert differing(within(variables(workdir), TRUNK), within(before, TRUNK)) == expected, stop
    assert (variables(tmp_path / str(looks))["['variables']['params']['fc']['kernel']"] != 0).all()


@pytest.mark.slow
def test_later_layers_move_further_with_layer_decay(trunk: Path, tmp_path: Path) -> None:
    """Of plain descent, the first step is the gradient times the rate, so times the decay."""
    moves = {}
    for decay in (1.0, 0.5):
        run = config(
            trunk, "full", epochs=1, batch_size=40, optimizer="sgd", layer_decay=decay, warmup_epochs=0.0,
            schedule="constant", weight_decay=0.0,
        )  # fmt: skip
        train(run, tmp_path / str(decay), OTHERS, parallel=cpus(1))
        moves[decay] = variables(tmp_path / str(decay))
    start = variables(trunk)
    for level, module in enumerate(("layer2_0", "layer1_0", "conv1"), 1):
        for name in within(start, (module,)):
            if name.endswith("['kernel']"):
                own, plain = (moves[decay][name] - start[name] for decay in (0.5, 1.0))
                np.testing.assert_allclose(own, plain * 0.5**level, rtol=1e-2, atol=1e-7)
                assert np.abs(plain).max() > 1e-4


@pytest.mark.parametrize(
    ("transfer", "train_from", "changes"),
    slow_except(
        [("partial", "layer2", {"ema_decay": 0.9})],
        [("head", None, {}), ("partial", "layer2", {"ema_decay": 0.9}), ("full", None, {"head_epochs": 1})],
    ),
)
@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_that_it_began_with(
    trunk: Path, transfer: str, train_from: str | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    weights, whole, parts = tmp_path / "weights", tmp_path / "whole", tmp_path / "parts"
    shutil.copytree(trunk, weights)
    run = config(weights, transfer, train_from, **changes)
    train(run, whole, OTHERS, parallel=cpus(1))
    with pytest.raises(BaseException, match="SIGTERM"):
        train(run, parts, OTHERS, parallel=cpus(1), interruption=Stop(8))
    shutil.rmtree(weights)
    train(run, parts, OTHERS, parallel=cpus(1), resume=True)
    assert_same_bytes(saved(parts), saved(whole))


@pytest.mark.slow
def test_devices_agree(trunk: Path, tmp_path: Path) -> None:
    for transfer in ("head", "partial"):
        run = config(trunk, transfer, "layer2" if transfer == "partial" else None, batch_norm="synchronised")
        for kind, devices in (("jit", 1), ("pmap", 4) if transfer == "partial" else ("shard_map", 2)):
            workdir = tmp_path / f"{transfer}-{kind}"
            train(run, workdir, OTHERS, parallel=Parallel.choose(kind, jax.devices("cpu")[:devices]))
            for name, array in variables(tmp_path / f"{transfer}-jit").items():
                np.testing.assert_allclose(variables(workdir)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_statistics_found_anew_are_those_of_trained_layers(trunk: Path, tmp_path: Path) -> None:
    run = config(trunk, "partial", "layer2", precise_batch_norm_images=40)
    train(run, tmp_path / "run", OTHERS, parallel=cpus(1))
    before, after = variables(trunk), variables(tmp_path / "run")
    frozen = ("conv1", "bn1", "layer1_0")
    assert_same_bytes(within(after, frozen), within(before, frozen))
    assert differing(within(after, ("layer2_0",)), within(before, ("layer2_0",))) == {"layer2_0"}


@pytest.mark.slow
def test_statistics_are_not_found_anew_while_the_head_is_trained(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(
        trainer.Recalibration, "__call__", lambda self, variables, *_: found.append(1) or variables["batch_stats"]
    )
    run = config(trunk, "full", epochs=3, head_epochs=2, precise_batch_norm_images=40)
    train(run, tmp_path / "run", OTHERS, parallel=cpus(1))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transfer": "half"}, "unknown transfer 'half'; expected one of full, partial, head"),
        ({"weights": None, "transfer": "head"}, "transfer=head needs weights to start from"),
        ({"transfer": "full", "train_from": "layer2"}, "train_from=layer2 needs --transfer partial"),
        (
            {"transfer": "partial", "train_from": "layer9"},
            "no stage 'layer9'; it has conv1, layer1.0, layer2.0, pool, fc",
        ),
        ({"transfer": "partial", "train_from": "conv1"}, "first stage"),
        ({"transfer": "head", "head_epochs": 1}, "leave out --head-epochs"),
        ({"transfer": "head", "precise_batch_norm_images": 40}, "keeps the statistics"),
        ({"transfer": "full", "head_epochs": 2}, "head_epochs=2; expected fewer than epochs=2"),
        (
            {"weights": "nowhere.pth"},
            "'nowhere.pth': there is no such file or run, and no weights are published for small_resnet; give a file",
        ),
        ({"weights": "IMAGENET1K_V1"}, "no weights are published for small_resnet; give a file or a run"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_written(
    trunk: Path, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    def start() -> None:
        run = config(trunk, None)
        of_recipe = {name: value for name, value in changes.items() if hasattr(run.recipe, name)}
        others = {name: value for name, value in changes.items() if name not in of_recipe}
        run = replace(run, recipe=replace(run.recipe, **of_recipe), **others)
        train(run, tmp_path / "run", OTHERS, parallel=cpus(1))

    with pytest.raises(InputError, match=reason):
        start()
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"is a run of {ARCH}, not of tiny_resnet"):
        train(replace(config(trunk, "head"), arch="tiny_resnet"), tmp_path / "run", OTHERS, parallel=cpus(1))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no run; give"):
        train(config(empty, "head"), tmp_path / "run", OTHERS, parallel=cpus(1))


def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    weights = write(tmp_path / "w.pth", "resnet20_cifar", variables_of("resnet20_cifar", 3)[1])
    run = replace(config(weights, "head"), arch="resnet32_cifar")
    with pytest.raises(InputError, match=rf"{weights}: .*missing \['layer1.3.*and \d+ more, left over \[\]"):
        train(run, tmp_path / "run", OTHERS, parallel=cpus(1))
    assert not (tmp_path / "run").exists()


def test_a_head_on_random_weights_is_warned_of() -> None:
    run = networks.config(ARCH, head_epochs=1)
    assert any("random weights" in line for line in run.warnings())
    assert not any("random weights" in line for line in replace(run, weights="DEFAULT").warnings())
