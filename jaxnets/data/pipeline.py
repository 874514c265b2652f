"""Records -> uint8 batches, decoded on host threads ahead of time and in order, then sent ahead to the device.

Threads, as simplejpeg, OpenCV and Pillow work without the GIL. grain 0.2.18 was measured with the same decoding (two
Zen 4 cores, 224 px, batches of 32, images/s, median of four rounds): JPEGs of 500x375: 2,070 here, 1,680 with grain's
threads, 920 with two of its processes; prepared records: 10,800 here, 3,760 and 1,130.
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

# Images a task: enough that handing it over costs little, few enough that the threads end a batch together.
IMAGES_A_TASK = 8
_BATCHES_AHEAD = 3
# Up to it, one thread makes pixels of arrays sooner than two: 0.24 instead of 0.31 s for 1,437 of 64 px (Zen 3).
_SMALL_SIDE = 96
_BATCHES_ON_THEIR_WAY = 2
# Up to here, a source whose images do not change from epoch to epoch is decoded once and held.
MOST_BYTES_HELD = 2 << 30


Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """Images [N, S, S, 3], uint8, labels [N], int32, and a mask [N] that is False where there is no image."""

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    mask: np.ndarray | jax.Array


@dataclass(frozen=True)
class RandomCrops:
    """Each epoch sees another crop of each image, of at least `min_area` of it; decided by (seed, epoch, index)."""

    seed: int
    min_area: float


@dataclass(frozen=True)
class Preprocessed:
    """Images [N, S, S, 3], or features [N, C], and labels [N] in memory, as the network reads them."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def available_cores() -> int:
    """Cores that this process may run on; as many threads decode."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hold_if_small(
    source: Source, preprocessing: Preprocessing, done: Callable[[int], None] = lambda count: None
) -> Source | Preprocessed:
    """The source, or, where it fits, all its images preprocessed once and for all; `done` is told how many are."""
    count, side = len(source), preprocessing.crop_size
    if count * side**2 * 3 > MOST_BYTES_HELD:
        return source
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int32)
    ready = 0
    # Small arrays take less time than handing Python's lock to and fro.
    threads = 1 if isinstance(source, ArraySource) and side <= _SMALL_SIDE else available_cores()
    plan = evaluation_slots(IMAGES_A_TASK * threads, count)
    for batch in read_batches(source, preprocessing, plan, threads=threads):
        many = int(batch.mask.sum())
        images[ready : ready + many] = batch.images[:many]
        labels[ready : ready + many] = batch.labels[:many]
        ready += many
        done(ready)
    return Preprocessed(images, labels)


def read_batches(
    source: Source | Preprocessed,
    preprocessing: Preprocessing,
    plan: Iterable[Slots],
    crops: RandomCrops | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The batches of `plan`, a few of them decoded ahead; at random crops for training, else by `preprocessing`.

    Raises InputError, naming the record, where one can't be read.
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
            if len(pending) > _BATCHES_AHEAD and images_ahead >= 2 * threads * IMAGES_A_TASK:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(
    pool: ThreadPoolExecutor, source: Source, preprocessing: Preprocessing, crops: RandomCrops | None, slots: Slots
) -> tuple[Batch, list[Future[None]]]:
    count, side = len(slots.mask), preprocessing.crop_size
    images = np.empty((count, side, side, 3), np.uint8)
    labels = np.zeros(count, np.int32)
    draws = None if crops is None else crop_draws(crops.seed, slots.epochs, slots.indices)

    def fill(start: int) -> None:
        for slot in range(start, min(start + IMAGES_A_TASK, count)):
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

    tasks = [pool.submit(fill, start) for start in range(0, count, IMAGES_A_TASK)]
    return Batch(images, labels, slots.mask), tasks


def stacked(batches: Iterator[Batch], counts: Iterable[int]) -> Iterator[Batch]:
    """So many host batches at a time, as one, [count, N, ...]."""
    for count in counts:
        parts = [next(batches) for _ in range(count)]
        yield jax.tree.map(lambda *arrays: np.stack(arrays), *parts)


def on_device(batches: Iterable[Batch], put: Callable[[Batch], Batch] = jax.device_put) -> Generator[Batch]:
    """The same batches on the device, or wherever `put` puts them; the next ones are on their way while one is used."""
    sent: deque[Batch] = deque()
    for batch in batches:
        sent.append(put(batch))
        if len(sent) > _BATCHES_ON_THEIR_WAY:
            yield sent.popleft()
    yield from sent


def in_order(task: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """Runs `task` for each item on host threads, a few ahead; yields the results in the items' order."""
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
