"""Runs a compiled function on arrays, one batch at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnets.errors import InputError
from jaxnets.training.parallel import Compiled, Parallel

_MAX_PROGRAMS = 16


class Programs:
    """Compiled functions of networks, so that a second call with the same network and settings compiles nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: dict[Any, Compiled] = {}

    def __call__(self, model: Any, **settings: Any) -> Compiled:
        """`function(variables, batch, model=..., **settings)`, compiled for each shape of a batch."""
        key = (model, *settings.items())
        try:
            hash(key)
        except TypeError:  # a network with a field that has no hash
            return self._compile(model, settings)
        if key not in self._compiled:
            while len(self._compiled) >= _MAX_PROGRAMS:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = self._compile(model, settings)
        return self._compiled[key]

    def _compile(self, model: Any, settings: dict[str, Any]) -> Compiled:
        def run(variables: Any, batch: Any) -> Any:
            return self._function(variables, batch, model=model, **settings)

        return Parallel.choose("jit").wrap(run)


def batches(
    program: Compiled, variables: Any, arrays: tuple[np.ndarray, ...], batch_size: int, shared: tuple[Any, ...] = ()
) -> Iterator[Any]:
    """Yields the results of `program(variables, (*shared, *batch))` for the batches [B, ...] of arrays [N, ...].

    The batches are of one size, at most `batch_size`; the last one is filled up, and its results are cut.
    Raises InputError if a result is not finite.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; expected at least 1")
    total = len(arrays[0])
    size = -(-total // -(-total // batch_size))
    for start in range(0, total, size):
        count = min(size, total - start)
        indices = np.minimum(np.arange(start, start + size), total - 1)
        results = [
            np.asarray(result)[:count] for result in program(variables, (*shared, *(a[indices] for a in arrays)))
        ]
        if not all(np.isfinite(result).all() for result in results):
            raise InputError("the network's outputs are not finite; give other weights, or check the images")
        yield results


def checked_images(images: Any) -> np.ndarray:
    """Normalised images [N, H, W, 3] as an array; raises InputError for others."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise InputError(f"images have shape {list(array.shape)}; expected normalised images [N, H, W, 3]")
    return array


def checked_classes(classes: Any, count: int, num_classes: int) -> np.ndarray:
    """Classes [N] or [N, T] of `count` images as an array [N, T]; raises InputError for others."""
    array = np.asarray(classes)
    if array.shape[:1] != (count,) or array.ndim > 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"classes are {array.dtype} {list(array.shape)}; expected integers [{count}] or [{count}, T]")
    if array.size and not 0 <= array.min() <= array.max() < num_classes:
        wrong = array[(array < 0) | (array >= num_classes)].flat[0]
        raise InputError(f"class {wrong}; expected one from 0 to {num_classes - 1}")
    return array.reshape(count, -1).astype(np.int32)
