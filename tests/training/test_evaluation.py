"""Evaluation: every image once, however it is cut and spread."""

from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.training.evaluation import Evaluator
from tests.training.networks import RECIPE, compiling, cpus, images

SOURCE = images(21, 1)


class Quick(nn.Module):
    """Compiles in a moment; no two images get the same logits."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return 3 * nn.Dense(3)(jnp.tanh(images.reshape(len(images), -1)))


def test_is_that_of_one_image_at_a_time() -> None:
    preprocessing = RECIPE.preprocessing((0.4,) * 3, (0.3,) * 3)
    model = Quick()
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    logit = jax.jit(lambda image: model.apply(variables, preprocessing.normalise(image[None]), train=False)[0])
    shares, loss = [], 0.0
    for image, label in (SOURCE[index] for index in range(21)):
        logits = np.asarray(logit(image), np.float64)
        shares.append(np.exp(logits) / np.exp(logits).sum())
        loss -= float(np.log(shares[-1][label]))
    accuracy = float(np.mean(np.argmax(shares, axis=1) == SOURCE.labels))
    assert 0 < accuracy < 1

    spread = (cpus(1), *(cpus(count, kind) for count in (2, 8) for kind in ("pmap", "shard_map")))
    with compiling(quickly=True):
        for batch_size, parallel in product((1, 7, 64), spread):
            seen: list[int] = []
            evaluate = Evaluator(model, preprocessing, batch_size, parallel)
            actual = evaluate(parallel.replicate(variables), SOURCE, seen.append)
            np.testing.assert_allclose(actual.probabilities, shares, atol=1e-6)
            np.testing.assert_array_equal(actual.labels, SOURCE.labels)
            assert actual.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-12)
            assert actual.metrics["loss"] == pytest.approx(loss / 21, rel=1e-5)
            assert actual.metrics["count"] == seen[-1] == 21
