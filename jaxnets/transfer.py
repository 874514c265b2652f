"""The three ways of transfer learning: train all the weights, the later ones, or a new head alone.

Frozen modules have no gradient and no optimiser state, and keep their parameters and statistics to the bit.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.contract import anatomy, trace
from jaxnets.models.features import features
from jaxnets.models.layers import Dropout
from jaxnets.models.norms import with_norms

TRANSFERS = ("full", "partial", "head")

# {"params": {module: ...}, "batch_stats": {module: ...}}
Variables = Mapping[str, Mapping[str, Any]]


def frozen_modules(model: Any, transfer: str | None, train_from: str | None, params: Mapping[str, Any]) -> list[str]:
    """The modules of a network that are not trained: none, those before the stage `train_from`, or all but the head.

    Without `train_from`, "partial" trains from the first stage that leaves at most half of the parameters to train.
    Raises InputError for a stage that the network does not have, and if nothing would be frozen.
    """
    if transfer not in ("partial", "head"):
        return []
    parts = anatomy(model)
    stages = list(parts.stages)
    if transfer == "head":
        first = len(stages) - 1
    elif train_from is not None:
        first = stages.index(parts.blocks(train_from, type(model).__name__)[0])
        if first == 0:
            raise InputError(f"train_from={train_from} is the first stage, which freezes nothing; use transfer=full")
    else:
        sizes = [sum(leaf.size for m in parts.stages[s] for leaf in jax.tree.leaves(params.get(m))) for s in stages]
        first = next(i for i in range(len(stages)) if sum(sizes[i:]) <= sum(sizes) / 2 or i == len(stages) - 1)
    return [module for stage in stages[:first] for module in parts.stages[stage]]


def split(variables: Variables, modules: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of these modules, and those of all the others."""
    inside = {kind: {name: tree for name, tree in of.items() if name in modules} for kind, of in variables.items()}
    outside = {kind: {name: tree for name, tree in of.items() if name not in modules} for kind, of in variables.items()}
    return inside, outside


def join(*parts: Variables) -> dict[str, Any]:
    """One tree of variables from several, whose modules differ."""
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: {name: tree for part in parts for name, tree in part.get(kind, {}).items()} for kind in kinds}


def with_frozen_norms(model: Any, modules: Collection[str]) -> Any:
    """The network, whose norms within these modules use their running statistics in training, and keep them."""
    return with_norms(model, frozen=frozenset(modules)) if modules else model


class Head(nn.Module):
    """A network's head alone, with the dropout before it: what it reads [N, C] -> logits [N, num_classes].

    `layer(name=..., parent=...)` makes the network's own module of that name.
    """

    module: str
    layer: Callable[..., nn.Module]
    num_classes: int
    dropout_rate: float = 0.0
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        x = Dropout(self.dropout_rate, train=train, axis_name=self.axis_name)(inputs.astype(self.dtype))
        logits: jax.Array = self.layer(name=self.module, parent=self)(x)
        return logits


def make_head(model: Any, axis_name: str | None = None) -> Head:
    """The head of a network; it reads the network's variables."""
    parts = anatomy(model)
    layer = trace(model).modules[parts.head]
    return Head(parts.head, layer.clone, model.num_classes, parts.head_dropout_rate, axis_name, model.dtype)


@dataclass(frozen=True)
class HeadOnTrunk:
    """A network whose head is trained, on a trunk in evaluation: with running statistics and without dropout."""

    trunk: Any
    head: Head

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def dtype(self) -> DTypeLike:
        return self.head.dtype

    def apply(self, variables: Variables, images: jax.Array, **options: Any) -> Any:
        """As a network's `apply`, for images [N, H, W, 3]."""
        stage = anatomy(self.trunk).head_inputs
        inputs = features(self.trunk, variables, images, [stage])[stage]
        return self.head.apply(variables, jax.lax.stop_gradient(inputs), **options)


def scale_by_layer(model: Any, decay: float) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al. 2020, ELECTRA), by stages.

    Updates of the head are unchanged, those of the stage before it are multiplied by `decay`, those of the stage before
    that by its square, and so on.
    """
    levels = [modules for modules in anatomy(model).stages.values() if modules]
    shares = {name: decay**distance for distance, modules in enumerate(reversed(levels)) for name in modules}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled = {name: jax.tree.map(lambda u, s=shares[name]: u * s, tree) for name, tree in updates.items()}
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
