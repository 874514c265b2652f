"""Which statistics a network's batch normalisation uses in training, for jaxnets' and Flax's BatchNorm alike."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxnets.errors import InputError
from jaxnets.models.contract import module_paths, trace
from jaxnets.models.layers import BatchNorm


@dataclass(frozen=True)
class WithNorms:
    """A network whose norms use other statistics than it says; `apply` is the network's.

    Norms within the modules `frozen` (None: all norms) use their running statistics in training, and keep them. With
    `local` the others use the statistics of their own replica. With `moments` running statistics become those of the
    batch, without torch's correction. `replicas` is an axis that the network does not know: each of its replicas then
    draws its own dropout.
    """

    network: Any
    frozen: frozenset[str] | None = frozenset()
    local: bool = False
    moments: bool = False
    replicas: str | None = None

    @property
    def num_classes(self) -> int:
        classes: int = self.network.num_classes
        return classes

    @property
    def dtype(self) -> DTypeLike:
        dtype: DTypeLike = self.network.dtype
        return dtype

    def clone(self, **options: Any) -> "WithNorms":
        """The same with other options of the network."""
        return replace(self, network=self.network.clone(**options))

    def apply(self, variables: Any, images: jax.Array, *, rngs: Any = None, **options: Any) -> Any:
        """As the network's `apply`, for images [N, H, W, 3]."""
        if self.replicas is not None and rngs is not None:
            index = jax.lax.axis_index(self.replicas)
            rngs = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
        with nn.intercept_methods(self._call):
            return self.network.apply(variables, images, rngs=rngs, **options)

    def _call(self, call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        norm = context.module
        if context.method_name != "__call__" or not isinstance(norm, BatchNorm | nn.BatchNorm):
            return call(*args, **kwargs)
        frozen = self.frozen is None or not self.frozen.isdisjoint(norm.path[:1])
        changes = self._changes(norm, frozen)
        if not changes:
            return call(*args, **kwargs)
        if frozen and isinstance(norm, nn.BatchNorm):
            args, kwargs = args[:1], {}  # Flax takes use_running_average once, from the module or from the call.
        changed = norm.clone(parent=None, name=None, **changes)
        if frozen or not norm.is_mutable_collection("batch_stats"):
            return changed.apply(norm.variables, *args, **kwargs)
        outputs, updates = changed.apply(norm.variables, *args, mutable=["batch_stats"], **kwargs)
        for name, value in updates["batch_stats"].items():
            norm.put_variable("batch_stats", name, value)
        return outputs

    def _changes(self, norm: Any, frozen: bool) -> dict[str, Any]:
        if frozen:
            wanted: dict[str, Any] = {"train": False} if isinstance(norm, BatchNorm) else {"use_running_average": True}
        else:
            wanted = {"axis_name": None} if self.local else {}
            if self.moments:
                wanted |= {"momentum": 0.0} | ({"unbiased_variance": False} if isinstance(norm, BatchNorm) else {})
        return {name: value for name, value in wanted.items() if getattr(norm, name) != value}


def with_norms(model: Any, **changes: Any) -> WithNorms:
    """The network with these changes of its norms, besides those that it may have already."""
    return replace(model if isinstance(model, WithNorms) else WithNorms(model), **changes)


def check_norms(model: Any, batch_stats: Mapping[str, Any], name: str) -> None:
    """Raises InputError unless a network has batch normalisation, all of it jaxnets' or Flax's BatchNorm."""
    paths = list(module_paths(batch_stats))
    if not paths:
        raise InputError(f"{name} has no batch normalisation; leave out --batch-norm and --precise-batch-norm-images")
    classes = trace(model).classes
    for path in paths:
        kind = classes.get(path)
        if kind is None or not issubclass(kind, BatchNorm | nn.BatchNorm):
            raise InputError(
                f"{name}: {'/'.join(path)} is a {kind.__name__ if kind else 'module'}; --batch-norm and "
                "--precise-batch-norm-images need jaxnets' or Flax's BatchNorm"
            )
