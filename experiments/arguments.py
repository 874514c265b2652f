"""Command lines: the parser of a command, and the arguments that several commands have."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.models.options import assignments, checked_options
from jaxnets.training.checkpoint import CHECKPOINTS
from jaxnets.training.views import VIEWS


def program(command: str) -> str:
    """The command as the user typed it, for usage lines: "jaxnets train" or "python -m experiments.train"."""
    console = f"jaxnets {command.replace('_', '-')}"
    return console if sys.argv[0] == console else f"python -m experiments.{command}"


def parser_of(command: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command. It refuses abbreviated flags, which a new flag could make ambiguous."""
    return argparse.ArgumentParser(prog=program(command), description=description, allow_abbrev=False, **options)


def add_classifier(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of commands that use a run."""
    parser.add_argument("workdir", type=Path, help="folder of a run of jaxnets train")
    _add_checkpoint(parser)
    return parser


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name the parts of a folder of images."""
    parser.add_argument(
        "--train-folder",
        metavar="FOLDER",
        help="folder in --dataset with the class folders to train on, if names such as train/ do not say so",
    )
    for part, purpose in (("val", "choose the best epoch by"), ("test", "test on")):
        help = f"folder in --dataset with the class folders to {purpose}"
        parser.add_argument(f"--{part}-folder", metavar="FOLDER", help=help)


def add_division(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how parts are held out; those that are not given are absent."""
    help = "share of the training images to hold out if there are no {} images (default: {})"
    absent = argparse.SUPPRESS
    parser.add_argument("--val-share", type=float, metavar="X", default=absent, help=help.format("val", 0.1))
    parser.add_argument("--test-share", type=float, metavar="X", default=absent, help=help.format("val or test", 0.2))
    parser.add_argument(
        "--fold", metavar="K/N", default=absent, help="take fold K of N of the training images as val, such as 1/5"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX|COLUMN",
        default=absent,
        help="keep images together whose paths have the same match (or its first group), or, in a CSV file, the same "
        "value in a column",
    )


def add_options(parser: argparse.ArgumentParser, network: str = "the network") -> None:
    """Adds the argument that sets options of `network`, as the help calls it; `options_in` reads it."""
    parser.add_argument(
        "--set",
        action="append",
        dest="network_options",
        metavar="NAME=VALUE",
        help=f"set an option of {network}, such as activation=gelu or groups=8 (repeatable); a wrong name lists all",
    )


def options_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the network `arguments.arch`, checked, as JSON has them."""
    return checked_options(arguments.arch, assignments(arguments.network_options or ()))


def add_weights(parser: argparse.ArgumentParser, *, images: bool = False) -> argparse.ArgumentParser:
    """The arguments of commands that use a run or other weights; with `images`, on those."""
    parser.usage = f"%(prog)s (WORKDIR | --arch NAME [--weights W]) {'IMAGE... ' if images else ''}[options]"
    help = "folder of a run, unless --arch is given" + ("; then image files, and folders of them" if images else "")
    parser.add_argument("paths", type=Path, nargs="*", metavar="path", help=help)
    parser.add_argument("--arch", help="network, such as resnet50 or package.module:factory, instead of a run's folder")
    parser.add_argument(
        "--weights", default="DEFAULT", help="weights for --arch: a published name (default: DEFAULT) or a file"
    )
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="entry of a torch checkpoint to read, such as model (default: the moving average, if there is one)",
    )
    _add_checkpoint(parser)
    if images:
        parser.add_argument("--batch-size", type=int, default=32, help="images computed at once (default: 32)")
        parser.add_argument(
            "--on-bad-image",
            choices=ON_BAD_IMAGE,
            default="error",
            help="stop at a bad image (default), leave it out, or stop at any damage (strict)",
        )
    return parser


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Adds the argument of test-time augmentation."""
    parser.add_argument(
        "--tta",
        choices=VIEWS,
        help="take the mean probabilities over each image and its mirror image (flip), or over its corners and centre "
        "(five-crop)",
    )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default="best",
        help="the best checkpoint by val (default; the latest if there is none), the latest, or the newest that is not "
        "damaged (intact)",
    )
