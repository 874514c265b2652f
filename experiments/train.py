"""Train a classifier: python -m experiments.train --arch resnet50."""

import argparse
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax

from experiments.arguments import add_division, add_folders, add_options, parser_of, program
from experiments.command import run
from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.models.options import assignments
from jaxnets.training.augmentations import AugmentationSettings
from jaxnets.training.config import DTYPES, Config
from jaxnets.training.configure import configure, override, read_settings
from jaxnets.training.interruption import Interruption
from jaxnets.training.loop import CHECKPOINT_INTERVAL, train
from jaxnets.training.new_workdir import workdir_or_new
from jaxnets.training.parallel import PARALLEL, PLATFORMS, Parallel, choose_platform, join_processes
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for
from jaxnets.transfer import TRANSFERS

_FLAGS = {"learning_rate": "--lr"}
_WAITING_SHARE = 0.1


@dataclass(frozen=True)
class Launch:
    """What a command line says beside the configuration: where and how to run."""

    workdir: Path | None
    resume: bool
    parallel: str
    checkpoint_interval: float
    tensorboard: bool
    steps_per_call: int
    dry_run: bool


def make_parser() -> argparse.ArgumentParser:
    """The parser. The recipe's options follow from its fields; options that are not given are absent."""
    parser = parser_of(
        "train",
        "Train a classifier. Settings that are not given are chosen for the family of the network.",
        usage="%(prog)s --arch NAME [--dataset FOLDER] [--recipe NAME] [options]",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--workdir", type=Path, help="folder for the run's files (default: a new one under runs/)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all, say what the run would do, and end; nothing is written"
    )
    parser.add_argument("--log-every", type=int, help="steps between lines of metrics (default: 10)")
    parser.add_argument(
        "--log-gradients",
        action="store_true",
        help="log the norms of the layers' gradients; with --tensorboard also histograms of parameters (default: off)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard as well (default: off)")
    parser.add_argument(
        "--steps-per-call", type=int, metavar="N", help="steps that the device takes without the host (default: 1)"
    )
    add_configuration(parser)
    checkpoints = parser.add_argument_group("checkpoints")
    checkpoints.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --workdir from its last checkpoint; start it if there is none",
    )
    checkpoints.add_argument(
        "--checkpoint-interval",
        type=float,
        metavar="SECONDS",
        help=f"seconds between checkpoints within an epoch (default: {CHECKPOINT_INTERVAL:.0f})",
    )
    return parser


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the data, the network, the recipe and the devices; those of the recipe follow its fields."""
    parser.add_argument("--arch", help="network, such as resnet50 (see `jaxnets list`), or package.module:factory")
    parser.add_argument(
        "--dataset",
        help="folder of images (train/CLASS/*.jpg with val/ and test/, or CLASS/*.jpg) or of prepared records, CSV "
        "file (path,label,part), name of a TFDS data set, or digits (default), which needs no download",
    )
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data sets (default: its own choice)")
    add_division(parser)
    add_folders(parser)
    parser.add_argument(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        help="stop at an image that can't be read (default), skip up to 1 %% of them and list them in the workdir, or "
        "stop at any damage (strict)",
    )
    parser.add_argument("--dtype", help=f"what the network computes in: {', '.join(DTYPES)} (default: float32)")
    parser.add_argument("--seed", type=int, help="decides initial weights, sample order and augmentation (default: 0)")
    add_options(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read the settings from a run's config.json; options on the command line override them",
    )

    start = parser.add_argument_group("starting from weights")
    start.add_argument(
        "--weights",
        help="IMAGENET1K_V1, IMAGENET1K_V2 or DEFAULT (downloaded once), a .pth, .pt or .safetensors file, or the "
        "workdir of a run (default: none, train from scratch)",
    )
    start.add_argument(
        "--weights-key",
        metavar="KEY",
        help="entry of a torch checkpoint to read, such as model (default: the moving average, if there is one)",
    )
    start.add_argument(
        "--transfer",
        choices=TRANSFERS,
        help="train all weights (default), those from --train-from on, or a new head; without --weights: DEFAULT",
    )
    start.add_argument(
        "--train-from",
        metavar="STAGE",
        help="first stage that --transfer partial trains, such as layer4 (default: the latest half of the parameters)",
    )

    devices = parser.add_argument_group("devices and machines")
    devices.add_argument("--platform", choices=PLATFORMS, help="train on this platform or fail (default: auto)")
    devices.add_argument(
        "--parallel", choices=PARALLEL, help="how to use several devices (default: jit on one device, pmap on several)"
    )
    devices.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, if no launcher sets it")
    devices.add_argument("--num-processes", type=int, help="number of processes (default: what a launcher sets, or 1)")
    devices.add_argument("--process-id", type=int, help="index of this process (default: what a launcher sets, or 0)")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", metavar="NAME", help=f"start from {', '.join(RECIPES)} (default: by architecture)")
    augmentation = parser.add_argument_group("augmentation, as part of the recipe")
    recipe.description = (
        "Settings that are not given are those of the recipe. In brackets: the default recipe of a ResNet on a folder "
        "of images."
    )
    standard = recipe_for("resnet50", "photos")
    types_of, augmentations = get_type_hints(Recipe), {setting.name for setting in fields(AugmentationSettings)}
    for setting in fields(Recipe):
        group = augmentation if setting.name in augmentations else recipe
        rule, default = dict(setting.metadata), getattr(standard, setting.name)
        add_setting(group, setting.name, types_of[setting.name], rule, default)


def add_setting(group: Any, name: str, kind: Any, rule: dict[str, Any], standard: Any) -> None:
    """Adds the option of one field of the recipe, with its `standard` value in the help."""
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    help = f"{rule['help']}{': ' * bool(rule['of'])}{', '.join(rule['of'])} [{shown(standard)}]"
    if kind is bool:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help)
    elif get_origin(kind) is tuple:
        (number, _) = get_args(kind)
        group.add_argument(flag, dest=name, type=number, nargs="*", metavar="N", help=help)
    else:
        single = next(part for part in get_args(kind) if part is not types.NoneType) if get_args(kind) else kind
        group.add_argument(flag, dest=name, type=single, metavar={int: "N", float: "X"}.get(single, "NAME"), help=help)


def shown(value: Any) -> str:
    """A setting's value as one would type it."""
    match value:
        case bool():
            return "on" if value else "off"
        case None | ():
            return "none"
        case tuple():
            return " ".join(map(shown, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def parse(arguments: list[str] | None = None) -> tuple[Config, Launch]:
    """The configuration and the launch of a command line."""
    given = vars(make_parser().parse_args(arguments))
    start_devices(given)
    workdir, resume = given.pop("workdir", None), given.pop("resume", False)
    launch = {
        "parallel": given.pop("parallel", "auto"),
        "checkpoint_interval": given.pop("checkpoint_interval", CHECKPOINT_INTERVAL),
        "tensorboard": given.pop("tensorboard", False),
        "steps_per_call": given.pop("steps_per_call", 1),
        "dry_run": given.pop("dry_run", False),
    }
    if resume and workdir is None:
        raise InputError("--resume needs the --workdir of the run to continue")
    workdir = workdir and workdir.expanduser()
    return config_of(given, workdir if resume else None), Launch(workdir, resume, **launch)


def start_devices(given: dict[str, Any]) -> None:
    """Takes the options of platform and processes out of those that are given, and does what they say."""
    join_processes(*(given.pop(name, None) for name in ("coordinator", "num_processes", "process_id")))
    choose_platform(given.pop("platform", "auto"))


def config_of(given: dict[str, Any], before: Path | None = None) -> Config:
    """The configuration of the options that are given; `before` is the folder of a run to continue."""
    file = given.pop("config", None)
    if "network_options" in given:
        given["network_options"] = assignments(given["network_options"])
    settings = given if file is None else override(read_settings(file.expanduser()), given)
    config = configure(settings, before)
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return config


def main() -> None:
    """Trains, and prints the result."""
    config, launch = parse()
    parallel = Parallel.choose(launch.parallel)
    with Interruption() as interruption, workdir_or_new(launch.workdir, config, parallel) as workdir:
        result = train(
            config,
            workdir,
            parallel=parallel,
            resume=launch.resume,
            checkpoint_interval=launch.checkpoint_interval,
            tensorboard=launch.tensorboard,
            interruption=interruption,
            steps_per_call=launch.steps_per_call,
            dry_run=launch.dry_run,
        )
    if parallel.is_primary and not result:
        print("a dry run: nothing was trained, and nothing was written")
    elif parallel.is_primary:
        waiting = result["waiting_for_data_seconds"] / result["training_seconds"]
        if waiting > _WAITING_SHARE and result["waiting_for_data_seconds"] > 1:
            print(f"{waiting:.0%} of the training time was spent waiting for data; see {program('prepare')}")
        part = result.get("judged_on", "test")  # a finished run of an earlier version has none
        val = f", val accuracy {result['val_accuracy']:.2%}" if part == "test" and "val_accuracy" in result else ""
        top5 = (
            f", top-5 {result[f'{part}_top5_accuracy']:.2%}"
            if f"{part}_top5_accuracy" in result and len(result["class_names"]) > 5
            else ""
        )
        print(
            f"{part} accuracy {result[f'{part}_accuracy']:.2%}{top5}{val}, of "
            f"epoch {result['best_epoch']}, after {result['seconds']:.0f} s; see {workdir}/report.html"
        )


if __name__ == "__main__":
    run(main)
