"""The classic image classifiers, AlexNet, GoogLeNet, ResNet and ResNeXt, in JAX and Flax linen."""

from jaxnets.errors import InputError
from jaxnets.models.features import features
from jaxnets.models.registry import create_model, list_models, register_model
from jaxnets.pretrained import Pretrained, load_pretrained

__all__ = ["InputError", "Pretrained", "create_model", "features", "list_models", "load_pretrained", "register_model"]
__version__ = "0.1.0"
