"""The training batches of a run, in order, at the image sizes of its recipe."""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby

import numpy as np

from jaxnets.data.batches import balanced_order, steps_through, training_slots
from jaxnets.data.pipeline import Batch, Preprocessed, RandomCrops, cached_if_small, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.training.recipe import Recipe


class TrainingFeed:
    """A process's share of the training batches. Images without random crops are kept in memory if they fit.

    The recipe's sampler "balanced" needs the `labels` [N] of the source.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        labels: np.ndarray | None = None,
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._recipe = recipe
        self._seed = seed
        self._process = (process_index, process_count)
        self._crops = RandomCrops(seed, recipe.min_crop_area) if recipe.min_crop_area else None
        self._cached: tuple[int, Source | Preprocessed] | None = None
        self._order: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
        if recipe.sampler == "balanced" and labels is not None:
            self._order = lru_cache(maxsize=4)(partial(balanced_order, seed, labels=labels))

    def steps_through(self, epochs: int) -> int:
        """The number of steps after which the network has seen each image `epochs` times."""
        return steps_through(epochs, self._recipe.batch_size, len(self._source))

    def images(self, size: int, done: Callable[[int], None] = lambda count: None) -> Source | Preprocessed:
        """The images of this size: the source, or all of them in memory; `done` gets the number of decoded images."""
        if self._crops is not None:
            return self._source
        if self._cached is None or self._cached[0] != size:
            self._cached = size, cached_if_small(self._source, resized(self._preprocessing, size), done)
        return self._cached[1]

    def with_images(self, images: Preprocessed) -> "TrainingFeed":
        """The same batches of other images, or of features, which take the places of this feed's images."""
        other = copy(self)
        other._cached = self._recipe.train_image_size(0), images
        return other

    def calls(self, first: int, last: int, most: int) -> Iterator[int]:
        """Splits the steps from `first` up to `last`, exclusive, into calls of up to `most` steps within one epoch."""
        for epoch in range(1, self._recipe.epochs + 1):
            end = min(last, self.steps_through(epoch))
            while first < end:
                steps = min(most, end - first)
                yield steps
                first += steps

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The host batches of the steps from `first` up to `last`, exclusive, counted from 0 over the run."""
        recipe, count = self._recipe, len(self._source)
        for size, group in groupby(range(recipe.epochs), recipe.train_image_size):
            epochs = list(group)
            begin, end = self.steps_through(epochs[0]), self.steps_through(epochs[-1] + 1)
            steps = range(max(first, begin), min(last, end))
            if not steps:
                continue
            plan = (
                training_slots(
                    self._seed,
                    step,
                    recipe.batch_size,
                    count,
                    *self._process,
                    repeats=recipe.repeats,
                    order=self._order,
                )
                for step in steps
            )
            yield from read_batches(self.images(size), resized(self._preprocessing, size), plan, self._crops)


def resized(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The preprocessing at another size, of the same share of an image."""
    resize = round(size * preprocessing.resize_size / preprocessing.crop_size)
    return replace(preprocessing, crop_size=size, resize_size=resize)
