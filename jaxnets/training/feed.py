"""The batches that a run trains on, in their order, at the sizes that its recipe asks for."""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import groupby

from jaxnets.data.batches import steps_through, training_slots
from jaxnets.data.pipeline import Batch, Preprocessed, RandomCrops, hold_if_small, read_batches
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import Source
from jaxnets.training.recipe import Recipe


class TrainingFeed:
    """A process's share of the training batches. Images whose crops are always the same are held, where they fit."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._recipe = recipe
        self._seed = seed
        self._process = (process_index, process_count)
        self._crops = RandomCrops(seed, recipe.min_crop_area) if recipe.min_crop_area else None
        self._held: tuple[int, Source | Preprocessed] | None = None

    def steps_through(self, epochs: int) -> int:
        """Steps after which every image has been seen `epochs` times."""
        return steps_through(epochs, self._recipe.batch_size, len(self._source))

    def hold(self, size: int, done: Callable[[int], None] = lambda count: None) -> Source | Preprocessed:
        """What batches of this size are read from: the source, or its images in memory; `done` is told how many are."""
        if self._crops is not None:
            return self._source
        if self._held is None or self._held[0] != size:
            self._held = size, hold_if_small(self._source, resized(self._preprocessing, size), done)
        return self._held[1]

    def holding(self, images: Preprocessed) -> "TrainingFeed":
        """The same batches, of other images (or features) in the places of this feed's."""
        other = copy(self)
        other._held = self._recipe.train_image_size(0), images
        return other

    def calls(self, first: int, last: int, most: int) -> Iterator[int]:
        """Cuts the steps from `first` to before `last` into calls of up to `most`, none across an epoch's end."""
        for epoch in range(1, self._recipe.epochs + 1):
            end = min(last, self.steps_through(epoch))
            while first < end:
                steps = min(most, end - first)
                yield steps
                first += steps

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The host batches of the steps from `first` to before `last`, counted from 0 over the whole run."""
        recipe, count = self._recipe, len(self._source)
        for size, group in groupby(range(recipe.epochs), recipe.train_image_size):
            epochs = list(group)
            begin, end = self.steps_through(epochs[0]), self.steps_through(epochs[-1] + 1)
            steps = range(max(first, begin), min(last, end))
            if not steps:
                continue
            plan = (
                training_slots(self._seed, step, recipe.batch_size, count, *self._process, repeats=recipe.repeats)
                for step in steps
            )
            yield from read_batches(self.hold(size), resized(self._preprocessing, size), plan, self._crops)


def resized(preprocessing: Preprocessing, size: int) -> Preprocessing:
    """The same share of an image at another size."""
    resize = round(size * preprocessing.resize_size / preprocessing.crop_size)
    return replace(preprocessing, crop_size=size, resize_size=resize)
