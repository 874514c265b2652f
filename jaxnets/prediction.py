"""Prediction: the most probable classes of images."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.models.layers import param_dtype
from jaxnets.pretrained import Pretrained
from jaxnets.training.evaluation import EachImage

FORMATS = ("text", "csv", "json")


class Guess(NamedTuple):
    """A class: its index, its name and its probability."""

    label: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image and its most probable classes, in decreasing order."""

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
    """Yields the `top` most probable classes of each image, in order; `done` gets the number of images so far.

    Raises InputError for an image that cannot be read, and if the network's outputs are not finite.
    """
    if top < 1:
        raise InputError(f"top={top}; expected at least 1 class")
    top = min(top, len(classifier.categories))
    step = partial(_top_classes, classifier=classifier, top=top)
    run = EachImage(step, classifier.preprocess, min(batch_size, len(images)))
    index = 0
    for count, (probabilities, labels) in run(classifier.variables, images, done):
        for row in range(count):
            if not np.isfinite(probabilities[row]).all():
                raise InputError(f"{images.where(index)}: the network's outputs are not finite; give other weights")
            guesses = [
                Guess(int(label), classifier.categories[label], float(probability))
                for label, probability in zip(labels[row], probabilities[row], strict=True)
            ]
            yield Prediction(images.where(index), guesses)
            index += 1


def _top_classes(
    variables: Any, batch: Batch, *, classifier: Pretrained, top: int, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    model: Any = classifier.model
    inputs = classifier.preprocess.normalise(jnp.asarray(batch.images), param_dtype(model.dtype))
    logits = model.apply(variables, inputs, train=False)
    probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), top)
    if axis_name is not None:
        probabilities, labels = jax.lax.all_gather((probabilities, labels), axis_name, tiled=True)
    return probabilities, labels


def write_predictions(predictions: Iterable[Prediction], file: IO[str], format: str) -> None:
    """Writes predictions as they come: text, CSV (image, rank, index, class, probability), or one JSON array."""
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
