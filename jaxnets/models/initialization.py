"""Initial variables: how they are drawn, and how to draw those of a network without compiling a program for it.

With `jax.jit(model.init)`, XLA compiles the drawing of each parameter separately. `initial_variables` only traces the
network to find the parameters that it declares. One program, the same for all networks, then draws the numbers, a
million at a time.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.random import define_prng_impl, threefry2x32_p
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnets.errors import InputError

Path = tuple[str, ...]
Distribution = Literal["normal", "uniform"]
_CONSTANTS: dict[Any, float] = {initializers.zeros: 0.0, initializers.ones: 1.0}
_STATISTICS = {"mean": 0.0, "var": 1.0}
# The program draws this number of rows of this length; a row belongs to one parameter.
_ROWS, _ROW = 256, 4096


@dataclass(frozen=True)
class Scaled:
    """An initialiser: draws from N(0, 1) or U(-1, 1), times a factor.

    The factor is `factor` or, with `variance`, the one that gives the draws the variance `variance` / fan, where fan is
    the fan in or out of the parameter [..., inputs, outputs].
    """

    distribution: Distribution
    factor: float = 1.0
    variance: float | None = None
    fan: Literal["in", "out"] = "in"

    def factor_of(self, shape: tuple[int, ...]) -> float:
        """The factor that scales the draws for a parameter of `shape`."""
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


class _Parameter(NamedTuple):
    init: Callable[..., jax.Array]
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Declaration:
    """The shapes of a network's variables, as a tree, and how its parameters are initialised."""

    shapes: dict[str, Any]
    parameters: Mapping[Path, _Parameter]


_declarations: ContextVar[dict[Path, _Parameter] | None] = ContextVar("declarations", default=None)


def parameter(
    module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    """`module.param(name, init, shape, dtype)`, so that `declaration` learns of it."""
    declared = _declarations.get()
    if declared is not None:
        declared[*module.path, name] = _Parameter(init, shape, jnp.dtype(dtype))
        module.put_variable("params", name, jnp.zeros(shape, dtype))
    elif not module.has_variable("params", name):
        return module.param(name, init, shape, dtype)
    # Flax would trace the initialiser for its shape, which takes a quarter of the time of tracing a training step.
    value: jax.Array = nn.unbox(module.get_variable("params", name))
    if jnp.shape(value) != shape:
        raise InputError(
            f"{'/'.join((*module.path, name))} is {jnp.shape(value)} in the variables, but {shape} in the network for "
            "these images; give the network, its options and the image size that the variables are of"
        )
    return value


def declaration(model: nn.Module, image_size: int) -> Declaration:
    """The declaration of a network for images of this size. Raises InputError if they are too small for it."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    parameters: dict[Path, _Parameter] = {}
    token = _declarations.set(parameters)
    try:
        shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    finally:
        _declarations.reset(token)
    return Declaration(shapes, parameters)


def initial_variables(
    model: nn.Module, key: jax.Array, image_size: int, declared: Declaration | None = None
) -> dict[str, Any]:
    """The values of `model.init(key, images, train=False)` for images of that size, compiled in less time.

    Parameters of jaxnets' layers are drawn by one program for all networks. Those of other layers are drawn by a
    program of their own. `declared` is the network's declaration, if it is known.
    """
    can_draw = _can_draw(key)
    if declared is None:
        with ThreadPoolExecutor(1) as pool:
            if can_draw:
                pool.submit(_draw_rows, key, _no_rows(np.float32), np.dtype(np.float32))  # compiles meanwhile
            declared = declaration(model, image_size)
    shapes = flatten_dict(declared.shapes)
    params = {path[1:]: leaf.shape for path, leaf in shapes.items() if path[0] == "params"}
    others = {path: leaf for path, leaf in shapes.items() if path[0] != "params"}
    rest = params.keys() - declared.parameters.keys()
    images = jnp.zeros((1, image_size, image_size, 3))
    drawable = can_draw and all(path[0] == "batch_stats" and path[-1] in _STATISTICS for path in others)
    # A module that declares only some of its parameters asks for its keys in another order.
    drawable &= {path[:-1] for path in rest}.isdisjoint(path[:-1] for path in declared.parameters)
    if not drawable or any(params.get(path) != spec.shape for path, spec in declared.parameters.items()):
        # Other collections, repeated blocks (whose program is small), or a traced key.
        init: Any = jax.jit(partial(model.init, train=False))
        return init(key, images)

    @jax.jit
    def init_rest(key: jax.Array) -> dict[Path, jax.Array]:
        leaves = flatten_dict(model.init(key, images, train=False)["params"])
        return {path: leaves[path] for path in rest}

    drawn = _values(declared.parameters, key) | (init_rest(key) if rest else {})
    values = {("params", *path): leaf for path, leaf in drawn.items()}
    values |= {path: np.full(leaf.shape, _STATISTICS[path[-1]], leaf.dtype) for path, leaf in others.items()}
    return unflatten_dict(jax.device_put(values))


def _can_draw(key: jax.Array) -> bool:
    if isinstance(key, jax.core.Tracer):
        return False
    partitionable: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return partitionable and jax.random.key_impl(key) == "threefry2x32"


def _values(parameters: Mapping[Path, _Parameter], key: jax.Array) -> dict[Path, Any]:
    values: dict[Path, Any] = {}
    drawn: dict[Any, list[_Drawn]] = {}
    asked_for: Counter[Path] = Counter()
    for path, spec in parameters.items():
        # Flax counts the keys that a module has asked for.
        asked_for[path[:-1]] += 1
        data = _folded_in(*path[:-1], asked_for[path[:-1]])
        if spec.init in _CONSTANTS:
            values[path] = np.full(spec.shape, _CONSTANTS[spec.init], spec.dtype)
        elif isinstance(spec.init, Scaled):
            drawn.setdefault(spec.dtype, []).append(_Drawn(path, spec.shape, data, spec.init))
        else:
            values[path] = spec.init(jax.random.fold_in(key, data), spec.shape, spec.dtype)
    for dtype, of_dtype in drawn.items():
        values |= dict(_draw(of_dtype, dtype, key))
    return values


def _folded_in(*path: str | int) -> np.uint32:
    """The number that Flax folds into a key for a module: a hash of its path and count of keys (flax.core.scope)."""
    digest = hashlib.sha1()
    for part in path:
        if flax.config.flax_fix_rng_separator:
            digest.update(b"\0")
        digest.update(part.encode() if isinstance(part, str) else part.to_bytes((part.bit_length() + 7) // 8, "big"))
    return np.uint32(int.from_bytes(digest.digest()[:4], "big"))


class _Drawn(NamedTuple):
    path: Path
    shape: tuple[int, ...]
    data: np.uint32
    init: Scaled


class _Rows(NamedTuple):
    """The rows that the program draws: the data folded into the key, the first number, and the scale of each."""

    data: np.ndarray
    first: np.ndarray
    normal: np.ndarray
    factor: np.ndarray


def _draw(parameters: list[_Drawn], dtype: np.dtype[Any], key: jax.Array) -> Iterator[tuple[Path, jax.Array]]:
    counts = [-(-math.prod(parameter.shape) // _ROW) for parameter in parameters]
    of_each = _Rows(
        np.array([parameter.data for parameter in parameters]),
        np.zeros(len(parameters), np.uint32),
        np.array([parameter.init.distribution == "normal" for parameter in parameters]),
        np.array([parameter.init.factor_of(parameter.shape) for parameter in parameters], dtype),
    )
    rows = _Rows(*(np.repeat(column, counts) for column in of_each))
    rows = rows._replace(first=np.concatenate([np.arange(count, dtype=np.uint32) * _ROW for count in counts]))
    padding = -len(rows.data) % _ROWS
    rows = _Rows(*(np.pad(column, (0, padding)) for column in rows))
    starts = iter(range(0, len(rows.data), _ROWS))
    left = np.empty((0, _ROW), dtype)
    # One after another, so that at most one parameter is in memory twice.
    for parameter, count in zip(parameters, counts, strict=True):
        pieces = [left[:count]]
        left = left[count:]
        while (missing := count - sum(map(len, pieces))) > 0:
            start = next(starts)
            left = np.asarray(_draw_rows(key, _Rows(*(column[start : start + _ROWS] for column in rows)), dtype))
            pieces.append(left[:missing])
            left = left[missing:]
        numbers = _unaligned(count * _ROW, dtype)
        np.concatenate(pieces, out=numbers.reshape(count, _ROW))
        yield parameter.path, jax.device_put(numbers[: math.prod(parameter.shape)].reshape(parameter.shape))


def _no_rows(dtype: DTypeLike) -> _Rows:
    return _Rows(*(np.zeros(_ROWS, kind) for kind in (np.uint32, np.uint32, bool, dtype)))


def _unaligned(size: int, dtype: np.dtype[Any]) -> np.ndarray:
    """An array that `device_put` copies on the CPU. JAX shares aligned memory instead, which a step cannot donate."""
    numbers = np.empty(size + 64, dtype)
    begin = (16 - numbers.ctypes.data) % 64 // numbers.itemsize
    return numbers[begin : begin + size]


@partial(jax.jit, static_argnames="dtype")
def _draw_rows(key: jax.Array, rows: _Rows, dtype: Any) -> jax.Array:
    """Numbers [_ROWS, _ROW]."""

    def row(of: Any) -> jax.Array:
        own = jax.random.key_data(jax.random.fold_in(key, of.data))
        later = jax.random.wrap_key_data(jnp.append(own, of.first), impl=_THREEFRY_FROM)
        draws = (_standard(distribution, later, (_ROW,), dtype) for distribution in ("normal", "uniform"))
        return jnp.where(of.normal, *draws) * of.factor

    return jax.vmap(row)(rows)


def _bits_from(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """The bits that JAX draws from key[:2] by Threefry for longer arrays, from number key[2] on."""
    low = jax.lax.iota(np.uint32, math.prod(shape)) + key[2]
    high, low = threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(low), low)
    if bit_width == 64:
        bits = high.astype(np.uint64) << 32 | low.astype(np.uint64)
    else:
        bits = (high ^ low).astype(f"uint{bit_width}")
    return bits.reshape(shape)


def _never(*_: Any) -> Any:
    raise TypeError("keys of this kind give numbers and nothing else")


_THREEFRY_FROM = define_prng_impl(
    key_shape=(3,), seed=_never, split=_never, random_bits=_bits_from, fold_in=_never, name="threefry_from", tag="thf"
)
