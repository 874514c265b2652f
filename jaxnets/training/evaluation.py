"""Evaluation of a classifier on a whole split, every image exactly once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxnets.data.batches import evaluation_slots
from jaxnets.data.pipeline import Preprocessed, on_device, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.training.metrics import Sums, Totals
from jaxnets.training.step import evaluation_step


@dataclass(frozen=True)
class Evaluation:
    """Probabilities [N, K] and labels [N] in the source's order, and metrics ("loss", "accuracy", "count")."""

    probabilities: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]


class Evaluator:
    """A classifier's evaluation, compiled once for one batch size."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, batch_size: int) -> None:
        self._step: Callable[..., tuple[jax.Array, Sums]] = jax.jit(
            partial(evaluation_step, model=model, preprocessing=preprocessing)
        )
        self._preprocessing = preprocessing
        self._batch_size = batch_size

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = lambda count: None
    ) -> Evaluation:
        """What the classifier makes of a whole source; `done` is told how many images it has seen."""
        probabilities, labels, totals = [], [], Totals()
        plan = evaluation_slots(self._batch_size, len(source))
        for batch in on_device(read_batches(source, self._preprocessing, plan)):
            batch_probabilities, sums = self._step(variables, *batch)
            mask = np.asarray(batch.mask)
            probabilities.append(np.asarray(batch_probabilities)[mask])
            labels.append(np.asarray(batch.labels)[mask])
            totals.add(sums)
            done(round(totals.count))
        return Evaluation(np.concatenate(probabilities), np.concatenate(labels), totals.means())
