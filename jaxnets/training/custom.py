"""The parts of a run that the user gives in place of named ones: network, optimiser, metrics and hooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxnets.errors import InputError
from jaxnets.training.hooks import Hook
from jaxnets.training.metrics import Metric, all_metrics


@dataclass(frozen=True)
class Custom:
    """A user's own network, optimiser, metrics and hooks. `metrics` also holds those of every run."""

    model: nn.Module | None = None
    optimizer: optax.GradientTransformation | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: all_metrics(None))
    hooks: Sequence[Hook] = ()

    def describe(self, params: Any) -> dict[str, Any]:
        """A description as JSON, which a checkpoint holds; a resumed run must have the same. `params` are shapes."""
        model = None if self.model is None else f"{type(self.model).__module__}.{type(self.model).__qualname__}"
        optimizer = None
        if self.optimizer is not None:
            state = jax.tree.leaves(jax.eval_shape(self.optimizer.init, params))
            optimizer = f"one with {sum(leaf.size for leaf in state)} numbers in {len(state)} arrays"
        return {"model": model, "optimizer": optimizer, "metrics": list(self.metrics)}


def check_parts(metrics: Any, hooks: Any) -> None:
    """Raises InputError unless `metrics` is a mapping of functions (or None) and `hooks` a sequence of hooks."""
    if metrics is not None and not (isinstance(metrics, Mapping) and all(callable(f) for f in metrics.values())):
        raise InputError(f"metrics={metrics!r}; expected a mapping of names to functions of logits and labels")
    if not isinstance(hooks, Sequence) or not all(isinstance(hook, Hook) for hook in hooks):
        raise InputError(f"hooks={hooks!r}; expected a sequence of instances of jaxnets.training.Hook")


def check_same_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError if a resumed run is given other parts of the user's own than the run began with."""
    for name, began in before.items():
        if now[name] != began:
            raise InputError(
                f"train() began this run with {name}={_text(began)}, now it has {_text(now[name])}; give the same"
            )


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
