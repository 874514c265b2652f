"""Reads uint8 batches on host threads and copies them to the device, both ahead of their use and in order.

Threads suffice because simplejpeg, OpenCV and Pillow release the GIL.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from jaxnets.data.batches import Slots, evaluation_slots
from jaxnets.data.cropping import crop_draws, crop_into
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import ArraySource, Source
from jaxnets.errors import InputError

# Images per task: enough to make the cost of scheduling small, few enough to balance the threads.
IMAGES_PER_TASK = 8
_BATCHES_AHEAD = 3
# One thread preprocesses arrays of images up to this size faster than several threads, which contend for the GIL.
_SMALL_SIDE = 96
_BATCHES_IN_TRANSFER = 2
# Largest size of a source that is decoded once and kept in memory.
CACHE_BYTES = 2 << 30


Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """uint8 images [N, S, S, 3], int32 labels [N] and a mask [N] that is False for empty slots."""

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array


@dataclass(frozen=True)
class RandomCrops:
    """Random crops with at least `min_area` of each image's area; a function of (seed, epoch, index)."""

    seed: int
    min_area: float


@dataclass(frozen=True)
class Preprocessed:
    """Preprocessed images [N, S, S, 3], or features [N, C], and labels [N] in memory."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def available_cores() -> int:
    """The number of cores this process may use, and of decoding threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached_if_small(
    source: Source, preprocessing: Preprocessing, done: Callable[[int], None] = lambda count: None
) -> Source | Preprocessed:
    """Preprocesses all images of the source into memory if they fit; otherwise returns the source.

    `done` is called with the number of images preprocessed so far.
    """
    count, side = len(source), preprocessing.crop_size
    if count * side**2 * 3 > CACHE_BYTES:
        return source
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int32)
    start = 0
    threads = 1 if isinstance(source, ArraySource) and side <= _SMALL_SIDE else available_cores()
    plan = evaluation_slots(IMAGES_PER_TASK * threads, count)
    for batch in read_batches(source, preprocessing, plan, threads=threads):
        size = int(batch.mask.sum())
        images[start : start + size] = batch.images[:size]
        labels[start : start + size] = batch.labels[:size]
        start += size
        done(start)
    return Preprocessed(images, labels)


def read_batches(
    source: Source | Preprocessed,
    preprocessing: Preprocessing,
    plan: Iterable[Slots],
    crops: RandomCrops | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Yields the batches of `plan`, decoding a few of them ahead.

    Images are cropped randomly if `crops` is given, and otherwise preprocessed with `preprocessing`. Raises InputError
    with the name of the record if one can't be read.
    """
    if isinstance(source, Preprocessed):
        for slots in plan:
            yield Batch(source.images[slots.indices], source.labels[slots.indices], slots.mask)
        return
    threads = threads or available_cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[tuple[Batch, list[Future[None]]]] = deque()

    def first() -> Batch:
        batch, tasks = pending.popleft()
        for task in tasks:
            task.result()
        return batch

    try:
        for slots in plan:
            pending.append(_start(pool, source, preprocessing, crops, slots))
            images_ahead = sum(len(batch.mask) for batch, _ in pending) - len(slots.mask)
            if len(pending) > _BATCHES_AHEAD and images_ahead >= 2 * threads * IMAGES_PER_TASK:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(
    pool: ThreadPoolExecutor, source: Source, preprocessing: Preprocessing, crops: RandomCrops | None, slots: Slots
) -> tuple[Batch, list[Future[None]]]:
    count = len(slots.mask)
    images = np.empty((count, *preprocessing.shape), np.uint8)
    labels = np.zeros(count, np.int32)
    draws = None if crops is None else crop_draws(crops.seed, slots.epochs, slots.indices)

    def fill(start: int) -> None:
        for slot in range(start, min(start + IMAGES_PER_TASK, count)):
            if not slots.mask[slot]:
                images[slot] = 0
                continue
            index = int(slots.indices[slot])
            image, labels[slot] = source[index]
            try:
                if crops is None or draws is None:
                    images[slot] = preprocessing.pixels(image)
                else:
                    crop_into(images[slot], image, crops.min_area, draws[slot])
            except InputError as error:
                raise InputError(f"{source.where(index)}: {error}") from None

    tasks = [pool.submit(fill, start) for start in range(0, count, IMAGES_PER_TASK)]
    return Batch(images, labels, slots.mask), tasks


def stacked(batches: Iterator[Batch], counts: Iterable[int]) -> Iterator[Batch]:
    """Stacks the next `count` host batches into one, [count, N, ...], for each of the `counts`."""
    for count in counts:
        parts = [next(batches) for _ in range(count)]
        yield jax.tree.map(lambda *arrays: np.stack(arrays), *parts)


def to_device(batches: Iterable[Batch], put: Callable[[Batch], Batch] = jax.device_put) -> Generator[Batch]:
    """Yields the batches on the device, or wherever `put` copies them. The next ones are copied ahead of their use."""
    sent: deque[Batch] = deque()
    for batch in batches:
        sent.append(put(batch))
        if len(sent) > _BATCHES_IN_TRANSFER:
            yield sent.popleft()
    yield from sent


def in_order(task: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Runs `task` for each item on host threads, a few items ahead, and yields the results in order."""
    threads = threads or available_cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
