"""Find a learning rate: python -m experiments.find_lr --arch resnet50 [--dataset FOLDER] [--output FILE.png]."""

import argparse
from pathlib import Path

import numpy as np

from experiments.arguments import parser_of
from experiments.command import run
from experiments.output import FIGURES, check_output, write_figure
from experiments.train import add_configuration, config_of, start_devices
from jaxnets.training.find_lr import LearningRates, draw_learning_rates, find_learning_rate
from jaxnets.training.parallel import Parallel

_ROWS = 15


def main() -> None:
    """Trains for a few steps with a learning rate that grows, prints the losses, and suggests a rate.

    It takes the options of `train`: the rate suits the network, data, optimizer and batch size that are given here. No
    weights are kept.
    """
    parser = parser_of(
        "find_lr",
        main.__doc__,
        usage="%(prog)s --arch NAME [--dataset FOLDER] [--output FILE] [options]",
        argument_default=argparse.SUPPRESS,
    )
    finder = parser.add_argument_group("finder")
    finder.add_argument("--steps", type=int, default=100, metavar="N", help="learning rates to try (default: 100)")
    finder.add_argument("--lowest", type=float, default=1e-6, metavar="X", help="first rate (default: 1e-6)")
    finder.add_argument("--highest", type=float, default=10.0, metavar="X", help="last rate (default: 10)")
    finder.add_argument("--output", type=Path, metavar="FILE", default=None, help="draw the curve, .png or .svg")
    add_configuration(parser)
    given = vars(parser.parse_args())
    output: Path | None = given.pop("output")
    check_output(output, FIGURES)
    start_devices(given)
    parallel = Parallel.choose(given.pop("parallel", "auto"))
    steps, lowest, highest = (given.pop(name) for name in ("steps", "lowest", "highest"))
    config = config_of(given)
    result = find_learning_rate(config, parallel=parallel, steps=steps, lowest=lowest, highest=highest)
    if not parallel.is_primary:
        return
    _print(result)
    if output is not None:
        write_figure(output, draw_learning_rates(result, f"{config.arch} on {Path(config.dataset).name}"))


def _print(result: LearningRates) -> None:
    print("     rate      loss")
    for index in np.unique(np.linspace(0, len(result.rates) - 1, _ROWS).round().astype(int)):
        print(f"{result.rates[index]:9.2e} {result.smoothed[index]:9.4g}")
    if result.suggestion is None:
        print("no suggestion: the loss never fell; try other --lowest and --highest, or more --steps")
    else:
        print(f"suggested --lr {result.suggestion:.2g} ({result.rule})")


if __name__ == "__main__":
    run(main)
