"""What a classifier makes of images: the likeliest classes of each."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.data.batches import evaluation_slots
from jaxnets.data.pipeline import Batch, on_device, read_batches
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.models.layers import param_dtype
from jaxnets.pretrained import Pretrained

FORMATS = ("text", "csv", "json")


class Guess(NamedTuple):
    """A class, by its place and name, and its probability."""

    label: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image and its likeliest classes, the likeliest first."""

    image: str
    guesses: list[Guess]


def predict(
    classifier: Pretrained,
    images: Source,
    *,
    top: int = 5,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The `top` likeliest classes of each image, in their order, batch by batch; `done` counts the images.

    Raises InputError for an image that can't be read.
    """
    if top < 1:
        raise InputError(f"top={top}; expected at least 1 class")
    top = min(top, len(classifier.categories))
    step = jax.jit(partial(_likeliest, classifier=classifier, top=top))
    size = min(batch_size, len(images))
    batches = read_batches(images, classifier.preprocess, evaluation_slots(size, len(images)))
    seen = 0
    for batch in on_device(batches, jax.device_put):
        shares, indices = jax.device_get(step(classifier.variables, batch))
        for row in range(min(size, len(images) - seen)):
            guesses = [
                Guess(int(index), classifier.categories[index], float(share))
                for index, share in zip(indices[row], shares[row], strict=True)
            ]
            yield Prediction(images.where(seen + row), guesses)
        seen = min(seen + size, len(images))
        done(seen)


def _likeliest(variables: Any, batch: Batch, *, classifier: Pretrained, top: int) -> tuple[jax.Array, jax.Array]:
    model: Any = classifier.model
    inputs = classifier.preprocess.normalise(jnp.asarray(batch.images), param_dtype(model.dtype))
    logits = model.apply(variables, inputs, train=False)
    shares, indices = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), top)
    return shares, indices


def write_predictions(predictions: Iterable[Prediction], file: IO[str], format: str) -> None:
    """As they come: text to read, CSV (image, rank, index, class, probability), or one JSON array."""
    match format:
        case "csv":
            rows = csv.writer(file)
            rows.writerow(("image", "rank", "index", "class", "probability"))
            for image, guesses in predictions:
                rows.writerows(
                    (image, rank, guess.label, guess.name, f"{guess.probability:.6f}")
                    for rank, guess in enumerate(guesses, 1)
                )
        case "json":
            separator = "[\n"
            for image, guesses in predictions:
                classes = [{"index": g.label, "class": g.name, "probability": round(g.probability, 6)} for g in guesses]
                file.write(separator + json.dumps({"image": image, "classes": classes}))
                separator = ",\n"
            file.write("\n]\n")
        case _:
            for image, guesses in predictions:
                file.write(f"{image}\n")
                for guess in guesses:
                    file.write(f"  {guess.probability:7.2%}  {guess.name}\n")
