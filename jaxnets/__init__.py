"""The classic image classifiers, AlexNet, GoogLeNet, ResNet and ResNeXt, in JAX and Flax linen.

What trains, and the larger parts, are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxnets.errors import InputError
from jaxnets.models.features import features
from jaxnets.models.initialization import initial_variables
from jaxnets.models.registry import create_model, list_models, register_model
from jaxnets.ops import compile, keep_memory
from jaxnets.pretrained import Pretrained, load_pretrained

if TYPE_CHECKING:
    from jaxnets import inference, summary, training, transfer
    from jaxnets.fine_tuning import fine_tune, train

init = initial_variables
_MODULES = ("inference", "inspection", "summary", "training", "transfer")
_FUNCTIONS = {"fine_tune": "jaxnets.fine_tuning", "train": "jaxnets.fine_tuning"}
__all__ = [
    "InputError",
    "Pretrained",
    "compile",
    "create_model",
    "features",
    "fine_tune",
    "inference",
    "init",
    "initial_variables",
    "inspection",
    "keep_memory",
    "list_models",
    "load_pretrained",
    "register_model",
    "summary",
    "train",
    "training",
    "transfer",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"jaxnets.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
