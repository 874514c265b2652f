"""Class weights against scikit-learn, and the weighted loss against sums in float64."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from jaxnets.data.datasets import load_dataset
from jaxnets.data.sources import Dataset, Subset
from jaxnets.errors import InputError
from jaxnets.training.class_weights import balanced_weights, read_weights, weighted_targets
from jaxnets.training.config import Config
from jaxnets.training.configure import configure
from jaxnets.training.interruption import Interrupted
from jaxnets.training.loop import train
from jaxnets.training.losses import smoothed_targets, training_loss
from tests.training.networks import Stop, cpus
from tests.training.tiny import GREYS, PLAIN, Tiny, make_batch, make_state, make_variables, normalised, step_of

RANDOM = np.random.default_rng(0)
TORCH = json.loads((Path(__file__).parents[1] / "references" / "class_weights.json").read_text())
NAMES = ("cat", "dog", "emu")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat([0, 1, 3], [50, 3, 17])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    actual = balanced_weights(np.bincount(labels, minlength=4))
    np.testing.assert_allclose(actual[[0, 1, 3]], expected, rtol=1e-15)
    assert actual[2] == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.json", '{"dog": 2.5, "cat": 1, "emu": 0}'),
        ("w.csv", "dog,2.5\ncat, 1\n\nemu,0\n"),
        ("w.csv", "Class, weight\ncat,1\nemu,0\ndog,2.5"),
    ],
)
def test_files_are_read_by_class_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(read_weights(tmp_path / name, NAMES), [1, 2.5, 0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.json", '{"cat": 1, "dog": 1}', "lacks classes: 'emu'"),
        ("w.json", '{"cat": 1, "dog": 1, "emu": 1, "fox": 1}', "names unknown classes: 'fox'"),
        ("w.json", '{"cat": 1, "dog": -1, "emu": 1}', "'dog' the weight -1"),
        ("w.json", '{"cat": 1, "dog": NaN, "emu": 1}', "'dog' the weight nan"),
        ("w.json", '{"cat": 0, "dog": 0, "emu": 0}', "all weights"),
        ("w.json", '{"cat": 1, "dog": 1, "emu": 1, "cat": 2}', "gives the class 'cat' twice"),
        ("w.json", '{"cat": true, "dog": 1, "emu": 1}', "is not valid"),
        ("w.json", '{"cat": [1], "dog": 1, "emu": 1}', "is not valid"),
        ("w.json", "3", r"is not valid \(it holds no object\); expected a JSON object"),
        ("w.json", "[1, 2]", r"is not valid \(it holds no object\)"),
        ("w.json", '[["cat", 1], ["dog", 1], ["emu", 1]]', r"is not valid \(it holds no object\)"),
        ("w.csv", "cat,1,2\n", r"is not valid \(line 1 has 3 values\)"),
        ("w.csv", "cat,1\n\ndog,one\n", r"is not valid \(line 3: 'one' is not a number\)"),
        ("none.csv", None, "can't read"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(tmp_path / name, NAMES)
    assert "\n" not in str(caught.value)


def brute_force(logits: np.ndarray, plain: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    total, norm = 0.0, 0.0
    for row, shares in zip(logits, plain, strict=True):
        log_p = row - np.log(np.exp(row).sum())
        for c in range(len(weights)):
            share = (1 - smoothing) * shares[c] + smoothing / len(weights)
            total -= weights[c] * share * log_p[c]
            norm += weights[c] * shares[c]
    return total / norm


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("replicas", [1, 4])
def test_the_loss_is_the_weighted_mean_with_auxiliary_heads(smoothing: float, mixed: bool, replicas: int) -> None:
    logits, head = RANDOM.standard_normal((2, 12, 5))
    weights = np.array([0.2, 3.0, 1.0, 0.0, 5.0])
    labels = jnp.asarray(RANDOM.integers(0, 5, 12))
    targets, plain = smoothed_targets(labels, 5, smoothing), smoothed_targets(labels, 5)
    if mixed:
        targets, plain = (0.3 * array + 0.7 * array[::-1] for array in (targets, plain))
    expected = sum(
        share * brute_force(one, np.asarray(plain), weights, smoothing) for share, one in ((1, logits), (0.3, head))
    )

    def loss(logits: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        mine = training_loss(logits, [head], weighted_targets(targets, weights, smoothing, "replicas"), aux_weight=0.3)
        return jax.lax.pmean(mine, "replicas")

    cut = [jnp.asarray(array).reshape(replicas, -1, 5) for array in (logits, head, targets)]
    np.testing.assert_allclose(jax.vmap(loss, axis_name="replicas")(*cut), expected, rtol=1e-6)


def test_a_batch_of_classes_without_weight_has_no_loss() -> None:
    targets = smoothed_targets(jnp.zeros(4, int), 3, 0.1)
    assert not np.asarray(weighted_targets(targets, np.array([0, 1, 1]), 0.1)).any()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", TORCH["cases"], ids=lambda case: f"smoothing {case['label_smoothing']}")
def test_loss_and_gradient_are_those_of_torch(case: dict[str, Any]) -> None:
    weights, smoothing = np.array(TORCH["weights"]), case["label_smoothing"]

    def loss(logits: jax.Array) -> jax.Array:
        targets = smoothed_targets(jnp.asarray(TORCH["labels"]), 4, smoothing)
        return training_loss(logits, [], weighted_targets(targets, weights, smoothing), aux_weight=0.0)

    actual, gradient = jax.value_and_grad(loss)(jnp.asarray(TORCH["logits"]))
    np.testing.assert_allclose(actual, case["loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "count"), [("jit", 1), ("pmap", 4), ("shard_map", 4)])
def test_the_loss_of_a_step_is_the_weighted_mean_over_parts_and_devices(kind: str, count: int) -> None:
    weights = np.array([0.2, 3.0, 0.7])
    recipe = replace(PLAIN, batch_size=16, accumulation=2, label_smoothing=0.1)
    # Without norm no image knows what others are in its part.
    model = Tiny(norm=None, dtype=jnp.float64)
    state, batch = make_state(recipe, make_variables(model)), make_batch(16)
    batch = batch._replace(labels=np.array([0] * 11 + [1, 1, 2, 1, 2], np.int32))
    parallel = cpus(count, kind)
    step = parallel.wrap(partial(step_of(recipe, model, parallel.axis_name), class_weights=weights))
    _, sums = step(parallel.replicate(state), parallel.put(batch))
    sums = parallel.fetch(sums)
    images = jnp.asarray(normalised(np.asarray(batch.images)))
    logits = np.asarray(model.apply(state.variables, images, train=False))
    expected = brute_force(logits, np.eye(3)[batch.labels], weights, 0.1)
    np.testing.assert_allclose(sums["loss"] / sums["count"], expected, rtol=1e-6)
    plain = brute_force(logits, np.eye(3)[batch.labels], np.ones(3), 0.1)
    assert abs(plain - expected) > 0.01 * expected


@pytest.mark.usefixtures("tiny")
def test_a_run_resumes_only_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text('{"dark": 1, "light": 3}')
    config = Config("tiny", replace(PLAIN, learning_rate=0.01, class_weights=str(file)))
    one = cpus(1, "jit")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", GREYS, parallel=one, interruption=Stop(3))
    file.write_text('{"dark": 1, "light": 3.5}')
    with pytest.raises(InputError, match=r"weights\.json are not those that the run began with; restore") as raised:
        train(config, tmp_path / "run", GREYS, parallel=one, resume=True)
    assert "\n" not in str(raised.value)
    file.write_text('{"light": 3.0, "dark": 1.0}')
    assert train(config, tmp_path / "run", GREYS, parallel=one, resume=True)["epochs"] == 4


def skewed() -> Dataset:
    """Digits in which the classes 5 to 9 have few training images; val and test are as they were."""
    dataset = load_dataset("digits")
    labels = np.array([dataset.train[index].label for index in range(len(dataset.train))])
    kept = [index for label in range(10) for index in np.flatnonzero(labels == label)[: None if label < 5 else 6]]
    return replace(dataset, train=Subset(dataset.train, np.array(sorted(kept))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_both_ways_help_rare_classes(seed: int, tmp_path: Path) -> None:
    dataset, accuracies = skewed(), {}
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "weights": {"class_weights": "balanced"},
        "sampler": {"sampler": "balanced"},
    }
    for name, changes in ways.items():
        settings = {"arch": "resnet20_cifar", "dataset": dataset, "image_size": 8, "batch_size": 64, "epochs": 6}
        config = configure({**settings, "learning_rate": 0.02, "seed": seed, **changes})
        result = train(config, tmp_path / name, dataset, parallel=cpus(1, "jit"))
        accuracies[name] = result["test_balanced_accuracy"]
    print(f"seed {seed}: {accuracies}")
    assert min(accuracies["weights"], accuracies["sampler"]) > accuracies["plain"] + 0.05
