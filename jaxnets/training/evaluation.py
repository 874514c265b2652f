"""A network over all images of a source, each exactly once; evaluation and features are two cases of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.batches import Slots, evaluation_slots
from jaxnets.data.pipeline import Batch, Preprocessed, read_batches, to_device
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.models.features import features
from jaxnets.models.layers import param_dtype
from jaxnets.training.metrics import Metrics, Totals
from jaxnets.training.parallel import Compiled, Parallel
from jaxnets.training.step import evaluation_step
from jaxnets.training.views import views_of


def _ignore(count: int) -> None:
    pass


def run_batches(
    step: Compiled,
    variables: Any,
    source: Source | Preprocessed,
    preprocessing: Preprocessing,
    plan: Iterator[Slots],
    parallel: Parallel,
) -> Iterator[Any]:
    """Reads the batches of `plan`, runs `step(variables, batch)` on the devices, and yields its results on the host.

    Each process reads the share of the images that its plan names; the next batches are read while one is computed.
    """
    for batch in to_device(read_batches(source, preprocessing, plan), parallel.put):
        yield parallel.fetch(step(variables, batch))


class EachImage:
    """Runs a step on every image of a source, each exactly once, in order; compiled once for one batch size.

    `step(variables, batch, axis_name=...)` returns a tree of arrays [N, ...], which are the same on all replicas.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        preprocessing: Preprocessing,
        batch_size: int,
        parallel: Parallel | None = None,
        compiling: Callable[[], None] = lambda: None,
    ) -> None:
        self._parallel = parallel or Parallel.choose("jit")
        self._step = self._parallel.wrap(partial(step, axis_name=self._parallel.axis_name), compiling=compiling)
        self._preprocessing = preprocessing
        # A multiple of the number of devices; slots without an image are masked.
        devices = len(self._parallel.devices)
        self._batch_size = -(-batch_size // devices) * devices

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = _ignore
    ) -> Iterator[tuple[int, Any]]:
        """The number of images and the result of each batch; `done` gets the number of images so far."""
        parallel, size, total = self._parallel, self._batch_size, len(source)
        plan = evaluation_slots(size, total, parallel.process_index, parallel.process_count)
        results = run_batches(self._step, variables, source, self._preprocessing, plan, parallel)
        for number, result in enumerate(results):
            yield min(size, total - number * size), result
            done(min(total, (number + 1) * size))


@dataclass(frozen=True)
class Evaluation:
    """Probabilities [N, K] and labels [N] in the order of the source, and the means of all metrics.

    `metrics` holds "loss", "accuracy", "count" and one entry for each further metric.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    metrics: dict[str, Any]

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class [N] of each image."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """The probability [N] of the most probable class of each image."""
        return self.probabilities.max(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether the most probable class [N] is the label."""
        return self.predicted == self.labels


class Evaluator:
    """Evaluates a network on whole sources; compiled once for one batch size.

    `tta` is the test-time augmentation: None, "flip" (the image and its mirror image) or "five-crop" (the corners and
    the centre of the resized image). The probabilities are the means over these views.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        batch_size: int,
        parallel: Parallel | None = None,
        compiling: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        tta: str | None = None,
    ) -> None:
        step = partial(evaluation_step, model=model, preprocessing=preprocessing, metrics=metrics, tta=tta)
        self._run = EachImage(step, views_of(preprocessing, tta), batch_size, parallel, compiling)

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = _ignore
    ) -> Evaluation:
        """The evaluation of a source; `done` gets the number of images so far.

        With several devices `variables` are replicated; each process reads its share of the images.
        """
        probabilities, labels, totals = [], [], Totals()
        for count, (batch_probabilities, batch_labels, sums) in self._run(variables, source, done):
            probabilities.append(batch_probabilities[:count])
            labels.append(batch_labels[:count])
            totals.add(sums)
        return Evaluation(np.concatenate(probabilities), np.concatenate(labels), totals.means())


class FeatureExtractor:
    """Computes the outputs of one stage of a network in evaluation; compiled once for one batch size."""

    def __init__(
        self, model: Any, preprocessing: Preprocessing, stage: str, batch_size: int, parallel: Parallel | None = None
    ) -> None:
        step = partial(_feature_step, model=model, preprocessing=preprocessing, stage=stage)
        self._run = EachImage(step, preprocessing, batch_size, parallel)

    def __call__(
        self, variables: Any, source: Source | Preprocessed, done: Callable[[int], None] = _ignore
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, ...] and labels [N] of a source, in its order; `done` gets the number of images so far.

        Raises InputError if a feature is not finite.
        """
        batches = [(outputs[:count], labels[:count]) for count, (outputs, labels) in self._run(variables, source, done)]
        features, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        if not np.isfinite(features).all():
            raise InputError("the network's features are not finite; give other weights")
        return features, labels


def _feature_step(
    variables: Any, batch: Batch, *, model: Any, preprocessing: Preprocessing, stage: str, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    images = preprocessing.normalise(jnp.asarray(batch.images), param_dtype(model.dtype))
    outputs, labels = features(model, variables, images, [stage])[stage], jnp.asarray(batch.labels)
    outputs = outputs.astype(param_dtype(model.dtype))
    if axis_name is not None:
        outputs, labels = jax.lax.all_gather((outputs, labels), axis_name, tiled=True)
    return outputs, labels
