"""Train a classifier: python -m experiments.train --arch resnet50."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from experiments.command import run
from jaxnets.data.datasets import absolute, is_path
from jaxnets.data.verification import ON_BAD_IMAGE
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
        "--dataset",
        default="digits",
        help="folder of images (train/CLASS/*.jpg and val/ or test/, or CLASS/*.jpg) or of prepared records, name of a "
        "TFDS data set, or digits (default), which needs no download",
    )
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data sets (default: its own choice)")
    parser.add_argument(
        "--test-share", type=float, default=0.2, help="share held out where there are no test images (default: 0.2)"
    )
    parser.add_argument(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        default="error",
        help="stop at an image that can't be read (default), or skip up to 1 %% of them and list them in the workdir",
    )
    parser.add_argument("--workdir", type=Path, help="folder for the run's files (default: a new one under runs/)")
    parser.add_argument("--epochs", type=int, help="passes through the training images")
    parser.add_argument("--batch-size", type=int, help="images a step")
    parser.add_argument("--image-size", type=int, help="pixels a side that images are resized to")
    parser.add_argument("--optimizer", help=f"one of {', '.join(OPTIMIZERS)}")
    parser.add_argument("--lr", dest="learning_rate", type=float, help="peak learning rate")
    parser.add_argument(
        "--crop-pct", type=float, help="share of the short side that evaluation crops at the centre, such as 0.875"
    )
    parser.add_argument(
        "--min-crop-area", type=float, help="smallest share of an image that a random crop keeps; 0: no random crops"
    )
    parser.add_argument("--shift", type=float, help="largest random shift, as a share of the image's side")
    parser.add_argument("--flip", type=float, help="probability of mirroring an image left to right")
    parser.add_argument(
        "--color-jitter", type=float, help="how far brightness, contrast, saturation may change, as 0.4"
    )
    parser.add_argument("--random-erasing", type=float, help="probability of erasing a rectangle")
    parser.add_argument("--mixup-alpha", type=float, help="mix images by mixup, shares from Beta(alpha, alpha)")
    parser.add_argument("--cutmix-alpha", type=float, help="mix images by CutMix, shares from Beta(alpha, alpha)")
    parser.add_argument("--dtype", default="float32", help=f"what the network computes in: {' or '.join(DTYPES)}")
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights, sample order and augmentation")
    given = vars(parser.parse_args())
    changes = {field.name: given.pop(field.name) for field in fields(Recipe) if field.name in given}
    workdir = given.pop("workdir", None)
    given["dataset"] = absolute(given["dataset"])
    if "data_dir" in given:
        given["data_dir"] = str(given["data_dir"].expanduser().absolute())
    recipe = default_recipe(given["arch"], given["dataset"])
    config = Config(recipe=replace(recipe, **changes), **given)
    if workdir is not None:
        return config, workdir.expanduser()
    name = Path(config.dataset).name if is_path(config.dataset) else config.dataset
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
    return config, unused_workdir(Path("runs"), f"{config.arch}-{name}")


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
