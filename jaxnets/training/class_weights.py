"""Weights of the classes in the training loss, for data sets whose classes differ in size."""

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.errors import InputError

BALANCED = "balanced"


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """The weights n / (k n_c) [K] of classes with n_c images [K], of n images of k classes that occur.

    Classes without images have the weight 0.
    """
    return np.where(counts > 0, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)


def read_weights(path: Path | str, class_names: Sequence[str]) -> np.ndarray:
    """The weights [K] of the classes from a JSON object {class: weight} or a CSV file of lines "class,weight".

    Raises InputError if the file cannot be read, lacks a class or has an unknown one, if a weight is negative or not
    finite, and if all are zero.
    """
    path = Path(path)
    expected = 'expected a JSON object such as {"cat": 1, "dog": 2.5}, or lines of a CSV file such as cat,1'
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            pairs = json.loads(text, object_pairs_hook=tuple)
            if not isinstance(pairs, tuple):
                raise ValueError("it holds no object")
            weights = [(name, _number(weight)) for name, weight in pairs]
        else:
            weights = _rows(text)
    except OSError as error:
        raise InputError(
            f"class weights: can't read {path} ({error.strerror}); expected {BALANCED} or a file"
        ) from None
    except (ValueError, TypeError) as error:
        raise InputError(f"class weights: {path} is not valid ({error}); {expected}") from None
    by_name = dict(weights)
    if len(by_name) < len(weights):
        twice = next(name for name, count in Counter(name for name, _ in weights).items() if count > 1)
        raise InputError(f"class weights: {path} gives the class {twice!r} twice; expected each of the classes once")
    for names, reason in (
        ([name for name in by_name if name not in class_names], "names unknown classes"),
        ([name for name in class_names if name not in by_name], "lacks classes"),
    ):
        if names:
            more = ", ..." * (len(names) > 3)
            raise InputError(
                f"class weights: {path} {reason}: {', '.join(map(repr, names[:3]))}{more}; expected one weight for "
                f"each of the {len(class_names)} classes"
            )
    for name, weight in weights:
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"class weights: {path} gives {name!r} the weight {weight:g}; expected 0 or more")
    if not any(by_name.values()):
        raise InputError(f"class weights: all weights in {path} are 0; expected at least one above 0")
    return np.array([by_name[name] for name in class_names])


def _rows(text: str) -> list[tuple[str, float]]:
    """The rows of a CSV file, without a header "class,weight"."""
    rows = csv.reader(text.splitlines())
    weights: list[tuple[str, float]] = []
    for row in filter(None, rows):
        cells = [cell.strip() for cell in row]
        if not weights and [cell.lower() for cell in cells] == ["class", "weight"]:
            continue
        if len(cells) != 2:
            raise ValueError(f"line {rows.line_num} has {len(cells)} values")
        try:
            weights.append((cells[0], float(cells[1])))
        except ValueError:
            raise ValueError(f"line {rows.line_num}: {cells[1]!r} is not a number") from None
    return weights


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def weighted_targets(
    targets: jax.Array, weights: np.ndarray, label_smoothing: float, axis_name: str | None = None
) -> jax.Array:
    """Targets [N, K] times the classes' weights [K], over the mean weight of the images.

    The mean cross entropy with them is the weighted mean: the sum over images i and classes c of
    weights[c] targets[i, c] (-log p[i, c]), over the sum of the images' weights. An image's weight is that of its
    class, or of its mixed classes by their shares, without the label smoothing, as in torch's CrossEntropyLoss. With
    `axis_name`, the mean is over all replicas. All targets are 0 if all weights of the images are.
    """
    by_class = jnp.asarray(weights, targets.dtype)
    # Smoothing adds label_smoothing / K to each class; the images' weights are those without it.
    plain = (targets - label_smoothing / targets.shape[-1]) / (1 - label_smoothing)
    mean = (plain @ by_class).mean()
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    # A share of 0 may round to less than 0.
    smallest = by_class.max() * 1e-4 / targets.shape[0]
    return jnp.where(mean > smallest, targets * by_class / jnp.maximum(mean, smallest), 0)
