"""Counts the arithmetic operations of a network."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxnets.models.options import model_with
from jaxnets.summary import summarize


def multiply_adds(
    arch: str, image_size: int, *, train: bool = False, options: Mapping[str, Any] = MappingProxyType({})
) -> int:
    """Counts the multiply-adds of convolutions and dense layers for one image; `train` includes auxiliary heads.

    `options` are those of the network, as JSON has them. Only traces the network. Raises InputError for an
    unknown network and for images that are too small.
    """
    return summarize(model_with(arch, options), image_size, train=train).total().multiply_adds


def flops_per_image(arch: str, image_size: int, mode: str, options: Mapping[str, Any] = MappingProxyType({})) -> int:
    """Floating-point operations for one image: two per multiply-add; "train" counts three times the forward pass.

    The forward pass and the gradients of the inputs and of the weights take as many operations each.
    """
    train = mode == "train"
    return 2 * multiply_adds(arch, image_size, train=train, options=options) * (3 if train else 1)
