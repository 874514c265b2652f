"""Networks in the form that is fastest to evaluate."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.contract import auxiliary_heads_of, module_paths, trace, traced_side
from jaxnets.models.layers import BatchNorm, Conv, param_dtype
from jaxnets.models.resnext import added_paths, concatenated_paths
from jaxnets.ops import compile, conv2d, pack_kernels

Path = tuple[str, ...]
# Operations that are linear in each feature's share of the kernel, so that a factor moves from outputs to kernel.
_LINEAR = (conv2d, concatenated_paths, added_paths)


class Folded(NamedTuple):
    """A folded network, its variables, and the norms that remain, as paths such as "layer1_0/bn1"."""

    model: Any
    variables: dict[str, Any]
    unfolded: tuple[str, ...]


def fold(model: Any, variables: Mapping[str, Any], dtype: DTypeLike | None = None) -> Folded:
    """Multiplies norms into the convolutions before them, and removes auxiliary heads.

    `apply(variables, images, train=False)` of the result equals that of the arguments up to rounding. A norm is folded
    if the network or a block declares it in `conv_norm_pairs`, both are jaxnets' `Conv` and `BatchNorm`, and a trace
    shows that the norm, and nothing else, reads the convolution's output. All other norms remain, and `unfolded` names
    them. `dtype`, such as bfloat16, is what the folded network computes in and stores its weights in; the norms that
    remain keep theirs. Raises InputError for weights that are not finite.
    """
    heads = auxiliary_heads_of(model)
    if heads:
        model = model.clone(aux_logits=False)
    params, stats = (
        flatten_dict({name: tree for name, tree in variables.get(collection, {}).items() if name not in heads})
        for collection in ("params", "batch_stats")
    )
    norms = {path: norm for path, norm in _foldable(model).items() if (*path, "scale") in params}
    for path, (conv, epsilon) in norms.items():
        _fold_one(params, stats, path, conv, epsilon)
    for path, leaf in params.items():
        if not np.isfinite(leaf).all():
            raise InputError(f"{'/'.join(path)} has values that are not finite; fold an earlier checkpoint")
    if dtype is not None:
        model = model.clone(dtype=dtype)
    stored = jnp.dtype(dtype if dtype is not None else param_dtype(model.dtype))
    remaining = {path[:-1] for path in stats}

    def store(path: Path, leaf: Any) -> jax.Array:
        return jnp.asarray(leaf, param_dtype(stored) if path[:-1] in remaining else stored)

    collections = {"params": params, "batch_stats": stats}
    trees = {
        name: unflatten_dict({path: store(path, leaf) for path, leaf in leaves.items()})
        for name, leaves in collections.items()
        if leaves
    }
    return Folded(model, trees, tuple("/".join(path) for path in module_paths(trees.get("batch_stats", {})) if path))


def specialised(function: Callable[..., Any], variables: Any, *arguments: Any) -> Callable[..., Any]:
    """`function(variables, *arguments)` compiled for these variables, as a function of arguments of these shapes.

    On the CPU this lays out the kernels of a folded network for its convolutions, which each call does otherwise. The
    variables are copied: changing them later has no effect.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.array, variables))

    def flat(leaves: list[jax.Array], *arguments: Any) -> Any:
        return function(jax.tree.unflatten(tree, leaves), *arguments)

    run, packed = pack_kernels(flat, leaves, *arguments)
    return partial(compile(jax.jit(run), packed, *arguments), packed)


def _fold_one(params: dict[Path, Any], stats: dict[Path, Any], norm: Path, conv: Path, epsilon: float) -> None:
    scale, bias = (np.asarray(params.pop((*norm, name)), np.float64) for name in ("scale", "bias"))
    mean, var = (np.asarray(stats.pop((*norm, name)), np.float64) for name in ("mean", "var"))
    with np.errstate(invalid="ignore"):  # refused later
        factor = scale / np.sqrt(var + epsilon)
    # Repeated blocks have one more axis in front, in all of them.
    params[*conv, "kernel"] = np.asarray(params[*conv, "kernel"], np.float64) * factor[..., None, None, None, :]
    params[*conv, "bias"] = bias + (np.asarray(params.get((*conv, "bias"), 0.0), np.float64) - mean) * factor
    params[*norm, "folded"] = np.zeros((*scale.shape[:-1], 0))


@dataclass
class _Calls:
    """What one trace of a network has called: declared pairs, and the modules that can be folded."""

    pairs: set[tuple[Path, Path]] = field(default_factory=set)
    convs: set[Path] = field(default_factory=set)
    norms: dict[Path, float] = field(default_factory=dict)

    def __call__(self, call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        path = module.path
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        self.pairs |= {((*path, conv), (*path, norm)) for conv, norm in getattr(module, "conv_norm_pairs", ())}
        if type(module) is BatchNorm and args:
            self.norms[path] = module.epsilon
            return call(checkpoint_name(args[0], _mark("read", path)), *args[1:], **kwargs)
        outputs = call(*args, **kwargs)
        # With more arguments an activation or a sum stands between the convolution and its outputs.
        if type(module) is Conv and len(args) == 1 and not kwargs and getattr(module.op, "func", module.op) in _LINEAR:
            self.convs.add(path)
            return checkpoint_name(outputs, _mark("written", path))
        return outputs


def _foldable(model: Any) -> dict[Path, tuple[Path, float]]:
    """The norms that can be folded, each with its convolution and epsilon."""
    calls, shapes, side = _Calls(), trace(model).shapes, traced_side(model)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    with nn.intercept_methods(calls):
        program = jax.make_jaxpr(partial(model.apply, train=False))(shapes, images)
    links = Counter(_links(program.jaxpr))
    marks = Counter(name for name, _ in _marks(program.jaxpr))
    convs = {norm: conv for conv, norm in calls.pairs}
    return {
        norm: (conv, calls.norms[norm])
        for norm, conv in convs.items()
        if conv in calls.convs
        and norm in calls.norms
        and links[_mark("written", conv), _mark("read", norm)] == 1
        # Shared weights are called, and so marked, more than once.
        and marks[_mark("written", conv)] == marks[_mark("read", norm)] == 1
    }


def _mark(kind: str, path: Path) -> str:
    return f"jaxnets fold {kind} {'/'.join(path)}"


def _marks(program: Any) -> Iterator[tuple[str, Any]]:
    """The marks of a program and of the programs within it, with their equations."""
    for equation in program.eqns:
        if equation.primitive.name == "name" and str(equation.params["name"]).startswith("jaxnets fold "):
            yield equation.params["name"], equation
        for inner in _programs_in(equation):
            yield from _marks(inner)


def _links(program: Any) -> Iterator[tuple[str, str]]:
    """Pairs of marks of which the second alone reads the first."""
    own = [pair for equation in program.eqns if equation.primitive.name == "name" for pair in _own_mark(equation)]
    readers = Counter(id(value) for equation in program.eqns for value in equation.invars)
    readers.update(id(value) for value in program.outvars)
    written = {id(equation.outvars[0]): name for name, equation in own}
    for name, equation in own:
        source = id(equation.invars[0])
        if source in written and readers[source] == 1:
            yield written[source], name
    for equation in program.eqns:
        for inner in _programs_in(equation):
            yield from _links(inner)


def _own_mark(equation: Any) -> list[tuple[str, Any]]:
    name = str(equation.params["name"])
    return [(name, equation)] if name.startswith("jaxnets fold ") else []


def _programs_in(equation: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
