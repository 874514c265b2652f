"""Counts the arithmetic operations of a network."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnets.models.contract import option_of
from jaxnets.models.initialization import declaration
from jaxnets.models.layers import Conv, Dense
from jaxnets.models.registry import create_model


def multiply_adds(arch: str, image_size: int, *, train: bool = False) -> int:
    """Counts the multiply-adds of convolutions and dense layers for one image; `train` includes auxiliary heads.

    Only traces the network. Raises InputError for an unknown network and for images that are too small.
    """
    model: Any = create_model(arch)
    if option_of(model, "repeated_blocks", False):
        model = model.clone(repeated_blocks=False)  # a scan would be traced once, whatever its length
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = declaration(model, image_size).shapes
    total = 0

    def count(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal total
        outputs, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(module, Conv):
            total += outputs.size * module.window**2 * (args[0].shape[-1] // module.groups)
        if context.method_name == "__call__" and isinstance(module, Dense):
            total += outputs.size * args[0].shape[-1]
        return outputs

    def forward(variables: Any, images: Any, key: Any) -> Any:
        return model.apply(variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats", "aux_logits"])

    with nn.intercept_methods(count):
        jax.eval_shape(forward, variables, images, key)
    return total


def flops_per_image(arch: str, image_size: int, mode: str) -> int:
    """Floating-point operations for one image: two per multiply-add; "train" counts three times the forward pass.

    The forward pass and the gradients of the inputs and of the weights take as many operations each.
    """
    train = mode == "train"
    return 2 * multiply_adds(arch, image_size, train=train) * (3 if train else 1)
