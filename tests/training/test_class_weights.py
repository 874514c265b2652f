"""Class weights against scikit-learn, and the weighted loss against sums in float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from jaxnets.errors import InputError
from jaxnets.training.class_weights import balanced_weights, read_weights, weighted_targets
from jaxnets.training.losses import smoothed_targets, training_loss

RANDOM = np.random.default_rng(0)
NAMES = ("cat", "dog", "emu")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat([0, 1, 3], [50, 3, 17])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    actual = balanced_weights(np.bincount(labels, minlength=4))
    np.testing.assert_allclose(actual[[0, 1, 3]], expected, rtol=1e-15)
    assert actual[2] == 0


@pytest.mark.parametrize(
    ("name", "text"), [("w.json", '{"dog": 2.5, "cat": 1, "emu": 0}'), ("w.csv", "dog,2.5\ncat, 1\n\nemu,0\n")]
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
        ("w.json", '{"cat": 1, "dog": 1, "emu": 1, "cat": 2}', "gives a class twice"),
        ("w.json", '{"cat": true, "dog": 1, "emu": 1}', "is not valid"),
        ("w.json", '{"cat": [1], "dog": 1, "emu": 1}', "is not valid"),
        ("w.json", "3", "is not valid"),
        ("w.csv", "cat,1,2\n", "is not valid"),
        ("w.csv", "cat,one\n", "is not valid"),
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
