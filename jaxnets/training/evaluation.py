"""Evaluation of a classifier on a whole split, every image exactly once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxnets.data.batches import evaluation_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Split
from jaxnets.training.metrics import Sums, Totals
from jaxnets.training.step import evaluation_step


class Evaluator:
    """A classifier's evaluation, compiled once for one batch size."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, batch_size: int) -> None:
        self._step: Callable[..., tuple[jax.Array, Sums]] = jax.jit(
            partial(evaluation_step, model=model, preprocessing=preprocessing)
        )
        self._batch_size = batch_size

    def __call__(self, variables: Any, split: Split) -> tuple[np.ndarray, dict[str, float]]:
        """Probabilities [N, K] and metrics ("loss", "accuracy", "count") of a preprocessed split."""
        logits, totals = [], Totals()
        for images, labels, mask in evaluation_batches(split, self._batch_size):
            batch_logits, sums = self._step(variables, images, labels, mask)
            logits.append(np.asarray(batch_logits, np.float32)[mask])
            totals.add(sums)
        probabilities = np.asarray(jax.nn.softmax(np.concatenate(logits), axis=-1))
        return probabilities, totals.means()
