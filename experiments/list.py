"""The networks: python -m experiments.list [PATTERN]."""

import difflib

from experiments.arguments import parser_of, program
from experiments.command import run
from jaxnets.errors import InputError
from jaxnets.models.registry import create_model, list_models
from jaxnets.summary import summarize
from jaxnets.training.recipes import recipe_for
from jaxnets.weights.catalogue import list_weights, published


def main() -> None:
    """Lists the networks with their parameters, multiply-adds (GMACs) and published weights with top-1 accuracies."""
    parser = parser_of("list", main.__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'resnet*_cifar' (default: all)")
    arguments = parser.parse_args()
    names = list_models(arguments.pattern)
    if not names:
        near = difflib.get_close_matches(arguments.pattern, list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"{program('list')} without a name lists all"
        raise InputError(f"no network matches {arguments.pattern}; {hint}")
    width = max(map(len, names))
    print(f"{'network':{width}}  pixels   parameters    GMACs  published weights (top-1)")
    for name in names:
        side = recipe_for(name, "photos").image_size
        total = summarize(create_model(name), side).total()
        weights = ", ".join(f"{key} ({published(name, key).top1:.1f} %)" for key in list_weights(name)) or "-"
        row = f"{name:{width}}  {side:6}  {total.parameters:11,}  {total.multiply_adds / 1e9:7.3f}  {weights}"
        print(row, flush=True)  # the deepest networks take seconds


if __name__ == "__main__":
    run(main)
