"""Evaluation of a classifier on a whole split, every image exactly once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from jaxnets.data.batches import evaluation_slots
from jaxnets.data.pipeline import Preprocessed, on_device, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.training.metrics import Totals
from jaxnets.training.parallel import Parallel
from jaxnets.training.step import evaluation_step


@dataclass(frozen=True)
class Evaluation:
    """Probabilities [N, K] and labels [N] in the source's order, and metrics ("loss", "accuracy", "count")."""

    probabilities: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]


class Evaluator:
    """A classifier's evaluation, compiled once for one batch size."""

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        batch_size: int,
        parallel: Parallel | None = None,
        compiling: Callable[[], None] = lambda: None,
    ) -> None:
        self._parallel = parallel or Parallel.choose("jit")
        self._step = self._parallel.wrap(
            partial(evaluation_step, model=model, preprocessing=preprocessing, axis_name=self._parallel.axis_name),
            compiling=compiling,
        )
        self._preprocessing = preprocessing
        # Slots that no image needs stay empty.
        devices = len(self._parallel.devices)
        self._batch_size = -(-batch_size // devices) * devices

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = lambda count: None
    ) -> Evaluation:
        """What the classifier makes of a whole source; `done` is told how many images it has seen.

        `variables` are replicated where there are several devices; each process reads its share of the images.
        """
        probabilities, labels, totals = [], [], Totals()
        parallel = self._parallel
        plan = evaluation_slots(self._batch_size, len(source), parallel.process_index, parallel.process_count)
        for batch in on_device(read_batches(source, self._preprocessing, plan), parallel.put):
            batch_probabilities, batch_labels, sums = parallel.fetch(self._step(variables, batch))
            totals.add(sums)
            probabilities.append(batch_probabilities)
            labels.append(batch_labels)
            done(round(totals.count))
        count = len(source)
        return Evaluation(np.concatenate(probabilities)[:count], np.concatenate(labels)[:count], totals.means())
