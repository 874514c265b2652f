"""Initial variables: how they are drawn, and how to draw a network's without compiling a program for each.

`jax.jit(model.init)` has XLA compile the drawing of each parameter by itself: 12 s for ResNet-152 on two cores. In
`initial_variables` the network is only traced, to learn what it declares; all parameters of about the same size are
then drawn by one program.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import Scope
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.nn import initializers
from jax.typing import DTypeLike

Path = tuple[str, ...]
Distribution = Literal["normal", "uniform"]
_CONSTANTS: dict[Any, float] = {initializers.zeros: 0.0, initializers.ones: 1.0}
_STATISTICS = {"mean": 0.0, "var": 1.0}
# Compiling a program takes as long as drawing about so many numbers.
_NUMBERS_OF_A_PROGRAM = 10_000_000


@dataclass(frozen=True)
class Scaled:
    """An initialiser: a draw from N(0, 1) or U(-1, 1), times `factor`, or times sqrt(`variance` / fan), sqrt(3) more
    for uniform ones; with the fan in, or out, of the parameter [..., inputs, outputs]."""

    distribution: Distribution
    factor: float = 1.0
    variance: float | None = None
    fan: Literal["in", "out"] = "in"

    def factor_of(self, shape: tuple[int, ...]) -> float:
        """What the draws for a parameter of `shape` are multiplied with."""
        if self.variance is None:
            return self.factor
        fan = math.prod(shape[:-2]) * shape[-2 if self.fan == "in" else -1]
        return math.sqrt(self.variance * (3 if self.distribution == "uniform" else 1) / fan)

    def __call__(self, key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return _standard(self.distribution, key, shape, dtype) * jnp.asarray(self.factor_of(tuple(shape)), dtype)


def _standard(distribution: Distribution, key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    if distribution == "normal":
        return jax.random.normal(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -1)


class _Declared(NamedTuple):
    init: Callable[..., jax.Array]
    shape: tuple[int, ...]
    dtype: Any


_declarations: ContextVar[dict[Path, _Declared] | None] = ContextVar("declarations", default=None)


def parameter(
    module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    """`module.param(name, init, shape, dtype)`, so that `initial_variables` learns of it."""
    declared = _declarations.get()
    if declared is not None:
        declared[*module.path, name] = _Declared(init, shape, jnp.dtype(dtype))
        init = initializers.zeros
    return module.param(name, init, shape, dtype)


def initial_variables(model: nn.Module, key: jax.Array, image_size: int) -> dict[str, Any]:
    """What `model.init(key, images, train=False)` gives for images of that size: the same draws, sooner."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    declared: dict[Path, _Declared] = {}
    token = _declarations.set(declared)
    try:
        shapes = flatten_dict(jax.eval_shape(partial(model.init, train=False), key, images))
    finally:
        _declarations.reset(token)
    params = {path[1:]: leaf.shape for path, leaf in shapes.items() if path[0] == "params"}
    others = {path: leaf for path, leaf in shapes.items() if path[0] != "params"}
    drawable = not isinstance(key, jax.core.Tracer) and all(
        path[0] == "batch_stats" and path[-1] in _STATISTICS for path in others
    )
    if not drawable or {path: spec.shape for path, spec in declared.items()} != params:
        # Variables of a network's own making, repeated blocks, whose program is small anyway, or only shapes.
        init: Any = jax.jit(partial(model.init, train=False))
        return init(key, jnp.zeros(images.shape, images.dtype))
    values = {("params", *path): leaf for path, leaf in _drawn(declared, key).items()}
    values |= {path: np.full(leaf.shape, _STATISTICS[path[-1]], leaf.dtype) for path, leaf in others.items()}
    return unflatten_dict(jax.tree.map(jnp.asarray, values))


def _drawn(declared: dict[Path, _Declared], key: jax.Array) -> dict[Path, Any]:
    scopes: dict[Path, Scope] = {(): Scope({}, rngs={"params": key}, mutable=True)}
    keys: dict[tuple[Distribution, Any], dict[Path, jax.Array]] = defaultdict(dict)
    values: dict[Path, Any] = {}
    for path, spec in declared.items():
        for depth, module in enumerate(path[:-1], 1):
            if path[:depth] not in scopes:
                scopes[path[:depth]] = scopes[path[: depth - 1]].push(module)
        # Flax counts the keys that a module has asked for, so each must be asked for, in their order.
        own_key = scopes[path[:-1]].make_rng("params")
        if spec.init in _CONSTANTS:
            values[path] = np.full(spec.shape, _CONSTANTS[spec.init], spec.dtype)
        elif isinstance(spec.init, Scaled):
            keys[spec.init.distribution, spec.dtype][path] = own_key
        else:
            values[path] = spec.init(own_key, spec.shape, spec.dtype)

    programs, groups, operands = [], [], []
    for (distribution, dtype), own_keys in keys.items():
        sizes = {path: math.prod(declared[path].shape) for path in own_keys}
        for largest, paths in _groups(sizes):
            factors = [_scaling(declared[path]).factor_of(declared[path].shape) for path in paths]
            operands.append((jnp.stack([own_keys[path] for path in paths]), jnp.asarray(np.asarray(factors, dtype))))
            # The first numbers that a key gives do not depend on how many are asked for.
            draw = jax.vmap(partial(_drawn_and_scaled, distribution, largest, dtype))
            programs.append(jax.jit(draw).lower(*operands[-1]))
            groups.append(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda program: program.compile(), programs))
    for run, own, paths in zip(compiled, operands, groups, strict=True):
        for path, numbers in zip(paths, np.asarray(run(*own)), strict=True):
            shape = declared[path].shape
            # A copy, so that the group's memory is given back.
            values[path] = numbers[: math.prod(shape)].reshape(shape).copy()
    return values


def _drawn_and_scaled(
    distribution: Distribution, size: int, dtype: Any, key: jax.Array, factor: jax.Array
) -> jax.Array:
    return _standard(distribution, key, (size,), dtype) * factor


def _scaling(spec: _Declared) -> Scaled:
    assert isinstance(spec.init, Scaled)
    return spec.init


def _groups(sizes: Mapping[Path, int]) -> list[tuple[int, list[Path]]]:
    """Parameters to draw by one program each, of the largest one's size: in the least time altogether."""
    ordered = sorted(sizes, key=lambda path: sizes[path])
    # The best for so many of the smallest: its cost, and where its last group begins.
    best: list[tuple[float, int]] = [(0, 0)]
    for end in range(1, len(ordered) + 1):
        largest = sizes[ordered[end - 1]]
        best.append(min((best[i][0] + _NUMBERS_OF_A_PROGRAM + largest * (end - i), i) for i in range(end)))
    found, end = [], len(ordered)
    while end:
        begin = best[end][1]
        found.append((sizes[ordered[end - 1]], ordered[begin:end]))
        end = begin
    return found
