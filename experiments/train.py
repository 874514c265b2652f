"""Train a classifier: python -m experiments.train --arch resnet50."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from experiments.command import run
from jaxnets.training.config import DTYPES, Config
from jaxnets.training.loop import train
from jaxnets.training.optimizers import OPTIMIZERS
from jaxnets.training.recipes import Recipe, default_recipe


def parse() -> tuple[Config, Path]:
    """The configuration and the workdir that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Train a classifier. What is not given is chosen for the architecture's family.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--arch", required=True, help="network, such as resnet50; jaxnets.list_models() names them all")
    parser.add_argument(
        "--dataset", default="digits", help="data set to train on (default: digits, which needs no download)"
    )
    parser.add_argument("--workdir", type=Path, help="folder for the run's files (default: a new one under runs/)")
    parser.add_argument("--epochs", type=int, help="passes through the training images")
    parser.add_argument("--batch-size", type=int, help="images a step")
    parser.add_argument("--image-size", type=int, help="pixels a side that images are resized to")
    parser.add_argument("--optimizer", help=f"one of {', '.join(OPTIMIZERS)}")
    parser.add_argument("--lr", dest="learning_rate", type=float, help="peak learning rate")
    parser.add_argument("--dtype", default="float32", help=f"what the network computes in: {' or '.join(DTYPES)}")
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights, sample order and augmentation")
    given = vars(parser.parse_args())
    changes = {field.name: given.pop(field.name) for field in fields(Recipe) if field.name in given}
    workdir = given.pop("workdir", None)
    config = Config(recipe=replace(default_recipe(given["arch"]), **changes), **given)
    if workdir is not None:
        return config, workdir.expanduser()
    return config, unused_workdir(Path("runs"), f"{config.arch}-{config.dataset}")


def unused_workdir(parent: Path, name: str) -> Path:
    """parent/name, or parent/name-2, -3, ... where that is taken."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def main() -> None:
    """Trains, and says where the result lies."""
    config, workdir = parse()
    result = train(config, workdir)
    print(f"test accuracy {result['test_accuracy']:.2%} after {result['seconds']:.0f} s; look at {workdir}/report.html")


if __name__ == "__main__":
    run(main)
