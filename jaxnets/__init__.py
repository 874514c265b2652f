"""The classic image classifiers, AlexNet, GoogLeNet, ResNet and ResNeXt, in JAX and Flax linen."""

from jaxnets.errors import InputError
from jaxnets.models.features import features
from jaxnets.models.initialization import initial_variables
from jaxnets.models.registry import create_model, list_models, register_model
from jaxnets.ops import compile, keep_memory
from jaxnets.pretrained import Pretrained, load_pretrained

__all__ = [
    "InputError",
    "Pretrained",
    "compile",
    "create_model",
    "features",
    "initial_variables",
    "keep_memory",
    "list_models",
    "load_pretrained",
    "register_model",
]
__version__ = "0.1.0"
