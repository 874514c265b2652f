"""Prediction: the most probable classes of images."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data.pipeline import Batch
from jaxnets.data.sources import Source
from jaxnets.errors import InputError
from jaxnets.pretrained import Pretrained
from jaxnets.training.evaluation import EachImage
from jaxnets.training.predictions_file import probability_columns
from jaxnets.training.views import logits_of_views, views_of

FORMATS = ("text", "csv", "json")


class Guess(NamedTuple):
    """A class: its index, its name and its probability."""

    label: int
    name: str
    probability: float


class Prediction(NamedTuple):
    """An image, its most probable classes in decreasing order, and the probabilities [K] of all if asked for.

    Read the fields by name: a later version may add more.
    """

    image: str
    guesses: list[Guess]
    probabilities: np.ndarray | None = None


def predict(
    classifier: Pretrained,
    images: Source,
    *,
    top: int = 5,
    batch_size: int = 32,
    tta: str | None = None,
    probabilities: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """Yields the `top` most probable classes of each image, in order; `done` gets the number of images so far.

    `tta` is None, "flip" or "five-crop", as for `Evaluator`. With `probabilities` those of all classes are kept.
    Raises InputError for an image that cannot be read, and if the network's outputs are not finite.
    """
    if top < 1:
        raise InputError(f"top={top}; expected at least 1 class")
    count_of_classes = len(classifier.categories)
    top = min(top, count_of_classes)
    step = partial(_top_classes, classifier=classifier, top=count_of_classes if probabilities else top, tta=tta)
    run = EachImage(step, views_of(classifier.preprocess, tta), min(batch_size, len(images)))
    index = 0
    for count, (shares, labels) in run(classifier.variables, images, done):
        for row in range(count):
            if not np.isfinite(shares[row]).all():
                raise InputError(f"{images.where(index)}: the network's outputs are not finite; give other weights")
            guesses = [
                Guess(int(label), classifier.categories[label], float(probability))
                for label, probability in zip(labels[row][:top], shares[row][:top], strict=True)
            ]
            # In the order of the classes.
            every = shares[row][np.argsort(labels[row])] if probabilities else None
            yield Prediction(images.where(index), guesses, every)
            index += 1


def _top_classes(
    variables: Any, batch: Batch, *, classifier: Pretrained, top: int, tta: str | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    images = jnp.asarray(batch.images)
    logits = logits_of_views(classifier.model, variables, classifier.preprocess, images, tta)
    probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), top)
    if axis_name is not None:
        probabilities, labels = jax.lax.all_gather((probabilities, labels), axis_name, tiled=True)
    return probabilities, labels


def write_predictions(
    predictions: Iterable[Prediction], file: IO[str], format: str, *, every_class: Sequence[str] = ()
) -> None:
    """Writes predictions as they come: text, CSV (image, rank, index, class, probability), or one JSON array.

    With the names of `every_class`, CSV has one row an image instead: its class, and a column of probabilities for
    each class. JSON has the probabilities in the order of the classes.
    """
    match format:
        case "csv" if every_class:
            rows = csv.writer(file)
            rows.writerow(("image", "index", "class", "probability", *probability_columns(every_class)))
            for image, (best, *_), probabilities in predictions:
                shares = (best.probability, *([] if probabilities is None else probabilities))
                rows.writerow((image, best.label, best.name, *(f"{share:.6f}" for share in shares)))
        case "csv":
            rows = csv.writer(file)
            rows.writerow(("image", "rank", "index", "class", "probability"))
            for image, guesses, _ in predictions:
                rows.writerows(
                    (image, rank, guess.label, guess.name, f"{guess.probability:.6f}")
                    for rank, guess in enumerate(guesses, 1)
                )
        case "json":
            separator = "[\n"
            for image, guesses, probabilities in predictions:
                classes = [{"index": g.label, "class": g.name, "probability": round(g.probability, 6)} for g in guesses]
                line: dict[str, Any] = {"image": image, "classes": classes}
                if probabilities is not None:
                    line["probabilities"] = [round(float(share), 6) for share in probabilities]
                file.write(separator + json.dumps(line))
                separator = ",\n"
            file.write("\n]\n")
        case _:
            for image, guesses, _ in predictions:
                file.write(f"{image}\n")
                for guess in guesses:
                    file.write(f"  {guess.probability:7.2%}  {guess.name}\n")
