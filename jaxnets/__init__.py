"""The classic image classifiers, AlexNet, GoogLeNet, ResNet and ResNeXt, in JAX and Flax linen."""

from jaxnets.errors import InputError
from jaxnets.models.registry import create_model, list_models

__all__ = ["InputError", "create_model", "list_models"]
__version__ = "0.1.0"
