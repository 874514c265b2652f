"""Train a classifier: python -m experiments.train --arch resnet50."""

import argparse
import os
import types
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax

from experiments.command import kept_steps, run
from jaxnets.data.datasets import absolute, is_path
from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.pretrained import describe
from jaxnets.training.config import DTYPES, Config
from jaxnets.training.interruption import Interruption
from jaxnets.training.loop import SECONDS_A_CHECKPOINT, train
from jaxnets.training.parallel import PARALLEL, PLATFORMS, Parallel, choose_platform, join_processes
from jaxnets.training.recipe import Recipe
from jaxnets.training.recipes import RECIPES, recipe_for
from jaxnets.transfer import TRANSFERS

_FLAGS = {"learning_rate": "--lr"}
_MUCH_WAITING = 0.1


@dataclass(frozen=True)
class Launch:
    """What a command line asks for beside the configuration: where, on what, and how it is watched."""

    workdir: Path
    resume: bool
    parallel: str
    seconds_a_checkpoint: float
    tensorboard: bool
    steps_per_call: int


def make_parser() -> argparse.ArgumentParser:
    """All options; those of the recipe are made of its fields. An option that is not given is absent."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        usage="%(prog)s --arch NAME [--dataset FOLDER] [--recipe NAME] [options]",
        description="Train a classifier. What is not given is chosen for the architecture's family.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--arch", help="network, such as resnet50 (jaxnets.list_models()), or package.module:factory")
    parser.add_argument(
        "--dataset",
        help="folder of images (train/CLASS/*.jpg and val/ or test/, or CLASS/*.jpg) or of prepared records, name of a "
        "TFDS data set, or digits (default), which needs no download",
    )
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data sets (default: its own choice)")
    parser.add_argument("--test-share", type=float, help="share held out where there are no test images (default: 0.2)")
    parser.add_argument(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        help="stop at an image that can't be read (default), or skip up to 1 %% of them and list them in the workdir",
    )
    parser.add_argument("--workdir", type=Path, help="folder for the run's files (default: a new one under runs/)")
    parser.add_argument("--dtype", help=f"what the network computes in: {', '.join(DTYPES)} (default: float32)")
    parser.add_argument("--seed", type=int, help="decides initial weights, sample order and augmentation (default: 0)")
    parser.add_argument("--log-every", type=int, help="steps between lines of metrics (default: 10)")
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard as well")

    start = parser.add_argument_group("starting from weights that are there already")
    start.add_argument(
        "--weights",
        help="IMAGENET1K_V1, IMAGENET1K_V2 or DEFAULT (downloaded once), a .pth, .pt or .safetensors file, or the "
        "workdir of a run",
    )
    start.add_argument(
        "--transfer",
        choices=TRANSFERS,
        help="train all of them (default), those from --train-from on, or a new head alone; without --weights: DEFAULT",
    )
    start.add_argument(
        "--train-from",
        metavar="STAGE",
        help="first stage that --transfer partial trains, such as layer4 (default: the latest half of the parameters)",
    )

    going_on = parser.add_argument_group("stopping and going on")
    going_on.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --workdir where it was stopped; if there is none, begin",
    )
    going_on.add_argument(
        "--seconds-a-checkpoint",
        type=float,
        help=f"seconds between checkpoints within an epoch (default: {SECONDS_A_CHECKPOINT:.0f})",
    )

    devices = parser.add_argument_group("devices and machines")
    devices.add_argument("--platform", choices=PLATFORMS, help="refuse to train on anything else (default: auto)")
    devices.add_argument(
        "--parallel", choices=PARALLEL, help="how steps are spread (default: jit on one device, pmap on several)"
    )
    devices.add_argument(
        "--steps-per-call", type=int, metavar="N", help="steps that the device takes without the host (default: 1)"
    )
    devices.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where no launcher tells")
    devices.add_argument("--num-processes", type=int, help="how many processes there are in all")
    devices.add_argument("--process-id", type=int, help="which of them this is, from 0")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", metavar="NAME", help=f"start from {', '.join(RECIPES)} (default: by architecture)")
    types_of = get_type_hints(Recipe)
    for setting in fields(Recipe):
        add_setting(recipe, setting.name, types_of[setting.name], dict(setting.metadata))
    return parser


def add_setting(group: Any, name: str, kind: Any, rule: dict[str, Any]) -> None:
    """Adds the option of one field of the recipe."""
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    help = rule["help"] + (f": {', '.join(rule['of'])}" if rule["of"] else "")
    if kind is bool:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help)
    elif get_origin(kind) is tuple:
        (number, _) = get_args(kind)
        group.add_argument(flag, dest=name, type=number, nargs="*", metavar="N", help=help)
    else:
        single = next(part for part in get_args(kind) if part is not types.NoneType) if get_args(kind) else kind
        group.add_argument(flag, dest=name, type=single, metavar={int: "N", float: "X"}.get(single, "NAME"), help=help)


def parse(arguments: list[str] | None = None) -> tuple[Config, Launch]:
    """The configuration and the launch that the command line asks for."""
    given = vars(make_parser().parse_args(arguments))
    join_processes(*(given.pop(name, None) for name in ("coordinator", "num_processes", "process_id")))
    choose_platform(given.pop("platform", "auto"))
    workdir, resume = given.pop("workdir", None), given.pop("resume", False)
    launch = {
        "parallel": given.pop("parallel", "auto"),
        "seconds_a_checkpoint": given.pop("seconds_a_checkpoint", SECONDS_A_CHECKPOINT),
        "tensorboard": given.pop("tensorboard", False),
        "steps_per_call": given.pop("steps_per_call", 1),
    }
    if resume and workdir is None:
        raise InputError("--resume needs the --workdir of the run that is to go on")
    workdir = workdir and workdir.expanduser()
    if "dataset" in given:
        given["dataset"] = absolute(given["dataset"])
    if "data_dir" in given:
        given["data_dir"] = str(given["data_dir"].expanduser().absolute())
    if "weights" in given:
        given["weights"] = absolute_weights(given["weights"])
    elif "transfer" in given:
        given["weights"] = "DEFAULT"
    config = configuration(given, workdir if resume else None)
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    return config, Launch(workdir or default_workdir(config), resume, **launch)


def configuration(given: dict[str, Any], before: Path | None) -> Config:
    """What was given, on top of the recipe; or, where a run goes on and no --arch is given, on top of its own."""
    changes: dict[str, Any] = {
        setting.name: tuple(value) if isinstance(value := given.pop(setting.name), list) else value
        for setting in fields(Recipe)
        if setting.name in given
    }
    name = given.pop("recipe", None)
    if "arch" not in given:
        if before is None or not (before / "config.json").exists():
            raise InputError("give the network as --arch, such as --arch resnet50")
        if name is not None:
            raise InputError(f"--recipe {name} needs --arch; without both the run goes on by its own recipe")
        config = Config.read(before / "config.json")
        return replace(config, recipe=replace(config.recipe, **changes), **given)
    if "weights" in given:
        name = name or ("linear_probe" if given.get("transfer") == "head" else "finetune")
    recipe = recipe_for(given["arch"], given.get("dataset", "digits"), name)
    if "weights" in given:
        recipe = seen_as_before(recipe, given, before)
    return Config(recipe=replace(recipe, **changes), **given)


def seen_as_before(recipe: Recipe, given: dict[str, Any], before: Path | None) -> Recipe:
    """The recipe, with images of the size that the weights were tested on; where a run goes on, of its own."""
    if before is not None and (before / "config.json").exists():
        theirs = Config.read(before / "config.json").recipe
        return replace(recipe, image_size=theirs.image_size, crop_pct=theirs.crop_pct)
    preprocessing = describe(given["arch"], given["weights"]).preprocessing
    crop_pct = preprocessing.crop_size / preprocessing.resize_size
    return replace(recipe, image_size=preprocessing.crop_size, crop_pct=crop_pct)


def absolute_weights(weights: str) -> str:
    """A published name as it is, a path wherever one is then."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() or os.sep in weights or path.suffix else weights


def default_workdir(config: Config) -> Path:
    """runs/ARCH-DATASET, or the same with -2, -3, ... where that is taken."""
    name = Path(config.dataset).name if is_path(config.dataset) else config.dataset
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in f"{config.arch}-{name}")
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def main() -> None:
    """Trains, and says where the result lies."""
    config, launch = parse()
    parallel = Parallel.choose(launch.parallel)
    with Interruption() as interruption:
        result = train(
            config,
            launch.workdir,
            parallel=parallel,
            resume=launch.resume,
            seconds_a_checkpoint=launch.seconds_a_checkpoint,
            tensorboard=launch.tensorboard,
            interruption=interruption,
            steps_per_call=launch.steps_per_call,
            # Who calls this from a program of their own may have put code in the place of jaxnets'.
            programs=kept_steps() if __name__ == "__main__" else None,
        )
    if parallel.is_primary:
        waiting = result["waiting_for_data_seconds"] / result["training_seconds"]
        if waiting > _MUCH_WAITING and result["waiting_for_data_seconds"] > 1:
            print(f"{waiting:.0%} of the training time was spent waiting for data; python -m experiments.prepare helps")
        print(
            f"test accuracy {result['test_accuracy']:.2%} (best: {result['best_test_accuracy']:.2%} after epoch "
            f"{result['best_epoch']}) after {result['seconds']:.0f} s; look at {launch.workdir}/report.html"
        )


if __name__ == "__main__":
    run(main)
