"""The most similar images, by the cosine of the angle between their features."""

from collections.abc import Callable

import numpy as np

from jaxnets.errors import InputError

# Similarities that are in memory at once.
_BLOCK = 1 << 24


def nearest(
    queries: np.ndarray,
    features: np.ndarray,
    k: int = 5,
    *,
    leave_out_self: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar of `features` [N, ...] to queries [M, ...]: indices and cosine similarities [M, k], sorted.

    With `leave_out_self` the queries are the features, and an image is not its own neighbour. Of equal similarities the
    smaller index comes first. Features that are all zero have a similarity of 0 to all others. `k` is at most the
    number of images to choose from. `done` gets the number of queries so far.
    """
    queries, features = unit_rows(queries), unit_rows(features)
    if k < 1:
        raise InputError(f"k={k}; expected at least 1 neighbour")
    if queries.shape[1] != features.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} features, the others {features.shape[1]}; expected the same")
    k = min(k, len(features) - leave_out_self)
    indices, similarities = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    step = max(1, _BLOCK // max(1, len(features)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ features.T
        if leave_out_self:
            rows = np.arange(len(block))
            block[rows, start + rows] = -np.inf
        indices[start : start + step], similarities[start : start + step] = highest(block, k)
        done(start + len(block))
    return indices, np.clip(similarities, -1, 1)


def highest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values [M, k] of the highest of each row [M, N], in decreasing order; k from 0 to N."""
    if k < values.shape[1]:
        # Equal values at the boundary: those with the smaller index.
        least = -np.partition(-values, max(k - 1, 0), axis=1)[:, k - 1 : k] if k else np.inf
        above, equal = values > least, values == least
        wanted = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(axis=1, keepdims=True)))
        indices = np.nonzero(wanted)[1].reshape(len(values), k)
    else:
        indices = np.broadcast_to(np.arange(k), (len(values), k))
    chosen = np.take_along_axis(values, indices, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(chosen, order, axis=1)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Features [N, ...] as float32 rows [N, D] of length 1; rows of zeros stay."""
    rows = np.asarray(features, np.float32).reshape(len(features), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
