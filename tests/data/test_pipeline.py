"""The pipeline yields the planned images in order."""

import io
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxnets.data.batches import Slots, evaluation_slots, steps_through, training_slots
from jaxnets.data.cropping import crop_draws, crop_into
from jaxnets.data.pipeline import Batch, Preprocessed, RandomCrops, cached_if_small, in_order, read_batches, to_device
from jaxnets.data.preprocessing import Preprocessing
from jaxnets.data.sources import ArraySource, Record
from jaxnets.errors import InputError

PREPROCESSING = Preprocessing(8, 9)
PHOTOS = np.random.default_rng(0).integers(0, 256, (37, 20, 30, 3), np.uint8)


class Jpegs:
    """Encoded images of many sizes. Records which images are read; some reads are slow."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.files = []
        for index, photo in enumerate(PHOTOS):
            file = io.BytesIO()
            Image.fromarray(photo[: 10 + index % 7, : 12 + index % 11]).save(file, "JPEG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        self.read.append(index)
        time.sleep(0.002 * (index % 3 == 0))
        return Record(self.files[index], index % 5)

    def where(self, index: int) -> str:
        return f"photo {index}"


def plan(batch_size: int, epochs: int = 2, seed: int = 3) -> Iterator[Slots]:
    return (training_slots(seed, step, batch_size, 37) for step in range(steps_through(epochs, batch_size, 37)))


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 50), threads=st.integers(1, 5))
def test_every_image_of_an_epoch_occurs_once_in_order(batch_size: int, threads: int) -> None:
    source = Jpegs()
    slots = list(plan(batch_size))
    batches = list(read_batches(source, PREPROCESSING, iter(slots), RandomCrops(3, 0.2), threads))
    assert [len(batch.mask) for batch in batches] == [batch_size] * len(slots)
    labels = np.concatenate([batch.labels for batch in batches])
    indices = np.concatenate([s.indices for s in slots])
    np.testing.assert_array_equal(labels, indices % 5)
    assert sorted(source.read) == sorted(indices.tolist())
    assert sorted(indices[:37]) == list(range(37))


def test_images_do_not_depend_on_batch_size_or_threads() -> None:
    def images(batch_size: int, threads: int) -> np.ndarray:
        batches = read_batches(Jpegs(), PREPROCESSING, plan(batch_size), RandomCrops(3, 0.2), threads)
        return np.concatenate([batch.images for batch in batches])[: 2 * 37]

    expected = images(1, 1)
    for batch_size, threads in ((5, 2), (16, 4), (37, 3), (64, 1)):
        np.testing.assert_array_equal(images(batch_size, threads), expected)
    # Another epoch has other crops.
    slots = [Slots(np.arange(37), np.full(37, epoch), np.ones(37, bool)) for epoch in (0, 1)]
    first, second = (batch.images for batch in read_batches(Jpegs(), PREPROCESSING, slots, RandomCrops(3, 0.2)))
    assert all((a != b).any() for a, b in zip(first, second, strict=True))


def test_crops_are_a_function_of_seed_epoch_and_index() -> None:
    source = Jpegs()
    (batch,) = read_batches(source, PREPROCESSING, [training_slots(9, 1, 30, 37)], RandomCrops(9, 0.1))
    slots = training_slots(9, 1, 30, 37)
    for image, index, epoch in zip(batch.images, slots.indices, slots.epochs, strict=True):
        expected = np.empty((8, 8, 3), np.uint8)
        draws = crop_draws(9, np.array([epoch]), np.array([index]))[0]
        crop_into(expected, source.files[index], 0.1, draws)
        np.testing.assert_array_equal(image, expected)


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 50))
def test_evaluation_preprocesses_every_image_once(batch_size: int) -> None:
    source = Jpegs()
    seen = []
    for batch in read_batches(source, PREPROCESSING, evaluation_slots(batch_size, 37)):
        for image, label, there in zip(*batch, strict=True):
            if there:
                np.testing.assert_array_equal(image, PREPROCESSING.pixels(source.files[len(seen)]))
                assert label == len(seen) % 5
                seen.append(label)
            else:
                assert not image.any()
    assert len(seen) == 37
    assert sorted(source.read) == list(range(37))


def test_a_small_source_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Jpegs()
    preprocessed = cached_if_small(source, PREPROCESSING)
    assert isinstance(preprocessed, Preprocessed)
    assert sorted(source.read) == list(range(37))
    direct = [b.images for b in read_batches(source, PREPROCESSING, plan(10))]
    np.testing.assert_array_equal([b.images for b in read_batches(preprocessed, PREPROCESSING, plan(10))], direct)
    monkeypatch.setattr("jaxnets.data.pipeline.CACHE_BYTES", 37 * 8 * 8 * 3 - 1)
    assert cached_if_small(source, PREPROCESSING) is source


def test_an_unreadable_image_is_reported_and_ends_the_threads() -> None:
    source = Jpegs()
    source.files[20] = b"no image"
    batches = read_batches(source, PREPROCESSING, evaluation_slots(4, 37))
    for _ in range(5):
        next(batches)
    with pytest.raises(InputError, match=r"^photo 20: unreadable image"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_closing_the_batches_ends_the_threads_which_run_a_few_batches_ahead() -> None:
    source = Jpegs()
    batches = read_batches(source, PREPROCESSING, evaluation_slots(1, 37), threads=1)
    next(batches)
    time.sleep(0.2)
    assert len(source.read) < 30
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_batches_are_copied_to_the_device_ahead_of_their_use() -> None:
    produced = []

    def host() -> Iterator[Batch]:
        for number in range(6):
            produced.append(number)
            yield Batch(np.full(1, number), np.zeros(1), np.ones(1))

    received = to_device(host())
    assert next(received).images == 0
    assert produced == [0, 1, 2]
    assert [int(batch.images[0]) for batch in received] == [1, 2, 3, 4, 5]
    (batch,) = to_device(read_batches(Jpegs(), PREPROCESSING, [training_slots(0, 0, 4, 37)]))
    assert all(isinstance(array, jax.Array) for array in batch)
    assert batch.images.dtype == np.uint8


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 60), threads=st.integers(1, 4))
def test_in_order_keeps_the_order(count: int, threads: int) -> None:
    def slow_square(number: int) -> int:
        time.sleep(0.001 * (number % 2))
        return number**2

    assert list(in_order(slow_square, range(count), threads)) == [number**2 for number in range(count)]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((4, 8, 8, 3)), np.zeros(4, int), "images are float64"),
        (np.zeros((4, 8, 8, 2), np.uint8), np.zeros(4, int), r"\[4, 8, 8, 2\]"),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(3, int), r"labels are int64 \[3\]; expected integers \[4\]"),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4), "labels are float64"),
    ],
)
def test_arrays_of_wrong_shape_or_type_are_refused(images: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ArraySource(images, labels)


def test_grey_arrays_become_colour() -> None:
    grey = PHOTOS[..., 0]
    for images in (grey, grey[..., None]):
        preprocessed = cached_if_small(ArraySource(images, np.zeros(37, int)), Preprocessing(20, 20))
        assert isinstance(preprocessed, Preprocessed)
        np.testing.assert_array_equal(preprocessed.images, np.repeat(grey[:, :, 5:25, None], 3, axis=-1))
