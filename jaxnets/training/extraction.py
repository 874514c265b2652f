"""What a stage of a network puts out for each image of a source."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.batches import evaluation_slots
from jaxnets.data.pipeline import Batch, Preprocessed, on_device, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.models.features import features
from jaxnets.models.layers import param_dtype
from jaxnets.training.parallel import Parallel


class FeatureExtractor:
    """A stage's outputs in evaluation, compiled once for one batch size; every image counts once."""

    def __init__(
        self, model: Any, preprocessing: Preprocessing, stage: str, batch_size: int, parallel: Parallel | None = None
    ) -> None:
        self._parallel = parallel or Parallel.choose("jit")
        self._step = self._parallel.wrap(
            partial(_step, model=model, preprocessing=preprocessing, stage=stage, axis_name=self._parallel.axis_name)
        )
        self._preprocessing = preprocessing
        devices = len(self._parallel.devices)
        self._batch_size = -(-batch_size // devices) * devices

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = lambda count: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, ...] and labels [N] of a source, in its order; `done` is told how many images are through."""
        outputs, labels, parallel = [], [], self._parallel
        plan = evaluation_slots(self._batch_size, len(source), parallel.process_index, parallel.process_count)
        for batch in on_device(read_batches(source, self._preprocessing, plan), parallel.put):
            batch_outputs, batch_labels = parallel.fetch(self._step(variables, batch))
            outputs.append(batch_outputs)
            labels.append(batch_labels)
            done(min(len(source), len(outputs) * self._batch_size))
        count = len(source)
        return np.concatenate(outputs)[:count], np.concatenate(labels)[:count]


def _step(
    variables: Any, batch: Batch, *, model: Any, preprocessing: Preprocessing, stage: str, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    images = preprocessing.normalise(jnp.asarray(batch.images), param_dtype(model.dtype))
    outputs, labels = features(model, variables, images, [stage])[stage], jnp.asarray(batch.labels)
    outputs = outputs.astype(param_dtype(model.dtype))
    if axis_name is not None:
        outputs, labels = jax.lax.all_gather((outputs, labels), axis_name, tiled=True)
    return outputs, labels
