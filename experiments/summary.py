"""A network's layers: python -m experiments.summary --arch NAME."""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.command import program, run
from jaxnets.models.contract import check_image_sizes, traced_side
from jaxnets.models.registry import create_model

_WIDTH = 160


def main() -> None:
    """Prints the layers of a network with the shapes of their inputs, outputs and parameters."""
    parser = argparse.ArgumentParser(prog=program("summary"), description=main.__doc__)
    parser.add_argument("--arch", required=True, help="network, such as resnet50, or package.module:factory")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels a side (default: one that fits)")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="classes (default: 1000)")
    parser.add_argument("--depth", type=int, metavar="N", help="levels of modules to show (default: all)")
    arguments = parser.parse_args()
    model = create_model(arguments.arch, num_classes=arguments.num_classes)
    side = traced_side(model) if arguments.image_size is None else arguments.image_size
    check_image_sizes(model, [side])
    table = nn.tabulate(
        model,
        jax.random.key(0),
        depth=arguments.depth,
        console_kwargs={"width": _WIDTH, "force_terminal": False},
        compute_flops=False,
        compute_vjp_flops=False,
    )
    print(table(jnp.zeros((1, side, side, 3)), train=False))


if __name__ == "__main__":
    run(main)
