"""The contract between a network and the rest of jaxnets: what a network must have, may have, and what follows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnets.errors import InputError

# Stage name -> names of the network's own modules in that stage.
Stages = dict[str, tuple[str, ...]]
# Names of a convolution and of the norm that reads it.
Pairs = tuple[tuple[str, str], ...]

# The stage that stands for the head's inputs in networks that declare no stages.
HEAD_INPUTS = "head_inputs"
_TRACED_SIDE = 64
_COLLECTIONS = ("params", "batch_stats")


@runtime_checkable
class Network(Protocol):
    """A classifier: a `flax.linen.Module` with the two attributes and the call below.

    Everything else is optional. A network declares an optional part as a dataclass field, class variable or property:

    - `stages: Stages`: its stages in order, each with the names of its modules. The last stage is the head; the one
      before the last outputs what the head reads, [N, C]. `sow_feature` sets a stage's output; without it, a stage
      outputs what its last module returns. Without `stages`, each top-level module with variables is a stage, in
      the order of the calls, and the last one with a dense kernel is the head.
    - `auxiliary_heads: Mapping[str, str]`: the modules of auxiliary heads, each with the name of its classifier inside.
      Such a network has a field `aux_logits: bool` that switches them off. Without it: no auxiliary heads.
    - `head_dropout_rate: float`: dropout before the head, for training the head alone. Without it: 0.
    - `smallest_image: int`: the smallest image side in pixels. Without it: 1.
    - `image_size: int`: the only image side that the network takes. Without it: any side.
    - `axis_name: str | None`, a field: the replicas over which batch normalisation and dropout agree. Without it,
      `--batch-norm synchronised` is refused, and each replica draws its dropout from a key of its own.
    - `dropout_rate`, `stochastic_depth_rate`, `zero_init_residual`, fields: the recipe's settings of the same names.
      Without a field, a recipe that asks for it is refused.
    - `conv_norm_pairs: Pairs`, a class variable of the network or of a block: names of a
      convolution and of the norm that reads it, for `inference.fold`. Without it: nothing is folded.
    - `branches: tuple[str, ...]`, a class variable of a block: the modules whose outputs it concatenates, for
      `inspection.feature_maps`. Without it: a block has one output.
    """

    num_classes: int
    dtype: DTypeLike

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits [N, num_classes] of normalised images [N, H, W, 3]; sows auxiliary logits into "aux_logits"."""
        ...


@dataclass(frozen=True)
class Anatomy:
    """What a network declares, or what tracing it has shown. `stages` include the head's inputs and the head."""

    stages: Stages
    auxiliary_heads: Mapping[str, str]
    head_dropout_rate: float
    smallest_image: int
    image_size: int | None

    @property
    def head(self) -> str:
        """The name of the head's module, such as "fc"."""
        return list(self.stages.values())[-1][0]

    @property
    def head_inputs(self) -> str:
        """The stage whose outputs [N, C] the head reads."""
        return list(self.stages)[-2]

    def blocks(self, stage: str, network: str = "the network") -> list[str]:
        """The stages that `stage` names: itself, or its blocks. Raises InputError if there is none."""
        blocks = [name for name in self.stages if name == stage or name.startswith(f"{stage}.")]
        if not blocks:
            raise InputError(f"{network} has no stage {stage!r}; it has {', '.join(self.stages)}")
        return blocks

    def modules(self, *, auxiliary: bool = True) -> list[str]:
        """The network's modules in order, with or without those of auxiliary heads."""
        names = [name for modules in self.stages.values() for name in modules]
        return [name for name in names if auxiliary or name not in self.auxiliary_heads]


def anatomy(model: Any) -> Anatomy:
    """Reads what a network declares; traces it for its stages if it declares none.

    Raises InputError if the network has no module that can be its head.
    """
    stages = getattr(model, "stages", None)
    return Anatomy(
        stages=_stages_found(model) if stages is None else _checked(model, dict(stages)),
        auxiliary_heads=auxiliary_heads_of(model),
        head_dropout_rate=getattr(model, "head_dropout_rate", 0.0),
        smallest_image=getattr(model, "smallest_image", 1),
        image_size=getattr(model, "image_size", None),
    )


def has_option(model: Any, name: str) -> bool:
    """Whether a network has a field that `model.clone(name=value)` can set."""
    return name in {field.name for field in fields(model)}


def option_of(model: Any, name: str, default: Any) -> Any:
    """The value of a network's field, or `default` if it has no such field."""
    return getattr(model, name) if has_option(model, name) else default


def auxiliary_heads_of(model: Any) -> Mapping[str, str]:
    """The modules of a network's auxiliary heads, each with the name of its classifier inside."""
    heads: Mapping[str, str] = getattr(model, "auxiliary_heads", {})
    return heads


def check_network(model: Any, name: str, num_classes: int) -> None:
    """Raises InputError unless `model`, built as `name`, keeps the required part of the contract."""
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(model).__name__}; expected a flax.linen module")
    for attribute in ("num_classes", "dtype"):
        if not hasattr(model, attribute):
            raise InputError(f"{name}: {type(model).__name__} has no {attribute}; add it as a field")
    if model.num_classes != num_classes:
        raise InputError(f"{name} returned {model.num_classes} classes for num_classes={num_classes}")


def check_variables(model: Any, shapes: Mapping[str, Any], name: str) -> None:
    """Raises InputError if a network has variables in other collections, or in modules that its stages leave out."""
    unknown = sorted(set(shapes) - set(_COLLECTIONS))
    if unknown:
        raise InputError(f"{name} has variables in {', '.join(unknown)}; expected only {' and '.join(_COLLECTIONS)}")
    if getattr(model, "stages", None) is not None:
        left_out = sorted({module for tree in shapes.values() for module in tree} - set(anatomy(model).modules()))
        if left_out:
            raise InputError(f"{name}: no stage has {', '.join(left_out)}; add them to {type(model).__name__}.stages")


def check_image_sizes(model: Any, sizes: Sequence[int]) -> None:
    """Raises InputError if a network that takes one image side alone gets another, in pixels."""
    only = getattr(model, "image_size", None)
    for size in sizes:
        if only is not None and size != only:
            raise InputError(
                f"{type(model).__name__} takes images of {only} px alone; got {size}, give --image-size {only}"
            )


def traced_side(model: Any) -> int:
    """The image side in pixels for tracing a network whose parameters do not depend on it."""
    side: int = getattr(model, "image_size", None) or max(_TRACED_SIDE, getattr(model, "smallest_image", 1))
    return side


@dataclass(frozen=True)
class Trace:
    """The top-level modules that a network calls, unbound, in order; the classes of all; its variables as shapes."""

    modules: Mapping[str, nn.Module]
    classes: Mapping[tuple[str, ...], type]
    shapes: dict[str, Any]


def trace(model: Any) -> Trace:
    """Traces a network's evaluation. Raises InputError if its call fails for images of `traced_side`."""
    with suppress(TypeError):  # a module with a field that has no hash
        return _cached_trace(model)
    return _trace(model)


def _trace(model: Any) -> Trace:
    modules: dict[str, nn.Module] = {}
    classes: dict[tuple[str, ...], type] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        path = context.module.path
        classes[path] = type(context.module)
        if len(path) == 1 and path[0] not in modules:
            modules[path[0]] = context.module.clone(parent=None, name=None)
        return call(*args, **kwargs)

    side = traced_side(model)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    try:
        with nn.intercept_methods(record):
            shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    except InputError:
        raise
    except Exception as error:  # whatever a module from outside raises
        line = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{type(model).__name__} fails for images of {side}x{side} px ({type(error).__name__}: {line}); a network "
            "that takes one image side alone declares it as image_size"
        ) from error
    return Trace(modules, classes, shapes)


_cached_trace = lru_cache(maxsize=32)(_trace)


def _stages_found(model: Any) -> Stages:
    network = trace(model)
    params = network.shapes.get("params", {})
    names = [name for name in network.modules if any(name in tree for tree in network.shapes.values())]
    heads = [name for name in names if _is_dense(params.get(name))]
    if not heads:
        raise InputError(
            f"{type(model).__name__} has no top-level module with a dense kernel [C, num_classes], so its head is not "
            "known; declare its stages"
        )
    head = heads[-1]
    before = [name for name in names if name != head]
    stages: Stages = {name: (name,) for name in before}
    # Parameters that the network holds itself are frozen first.
    own = tuple(dict.fromkeys(name for tree in network.shapes.values() for name in tree if name not in names))
    first = before[0] if before else HEAD_INPUTS
    stages = {**stages, HEAD_INPUTS: ()}
    stages[first] = (*own, *stages[first])
    return {**stages, head: (head,)}


def _is_dense(params: Any) -> bool:
    kernel = params.get("kernel") if isinstance(params, Mapping) else None
    return kernel is not None and len(kernel.shape) == 2


def _checked(model: Any, stages: Stages) -> Stages:
    if len(stages) < 2 or len(list(stages.values())[-1]) != 1:
        raise InputError(
            f"{type(model).__name__}.stages must end with what the head reads and the head, which is one module; got "
            f"{', '.join(stages) or 'none'}"
        )
    return stages


def module_paths(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of the modules that hold variables directly in a tree of one collection."""
    if any(not isinstance(value, Mapping) for value in tree.values()):
        yield path
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from module_paths(value, (*path, name))
