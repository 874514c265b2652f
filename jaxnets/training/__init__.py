"""Training: configuration, recipes, optimisers, losses, metrics, hooks, the loop and checkpoints.

The public names are imported on first use, as they need optax and more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnets.training.checkpoint import load_classifier
    from jaxnets.training.config import Config
    from jaxnets.training.evaluation import Evaluation, Evaluator
    from jaxnets.training.hooks import Hook
    from jaxnets.training.loop import train
    from jaxnets.training.metrics import top_k_accuracy
    from jaxnets.training.parallel import Parallel
    from jaxnets.training.recipe import Recipe
    from jaxnets.training.recipes import recipe_for

_MODULES = {
    "Config": "config",
    "Evaluation": "evaluation",
    "Evaluator": "evaluation",
    "Hook": "hooks",
    "Parallel": "parallel",
    "Recipe": "recipe",
    "load_classifier": "checkpoint",
    "recipe_for": "recipes",
    "top_k_accuracy": "metrics",
    "train": "loop",
}
__all__ = [
    "Config",
    "Evaluation",
    "Evaluator",
    "Hook",
    "Parallel",
    "Recipe",
    "load_classifier",
    "recipe_for",
    "top_k_accuracy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
