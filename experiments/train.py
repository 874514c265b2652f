"""Train a classifier: python -m experiments.train --arch resnet50."""

import argparse
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax

from experiments.command import add_division, add_folders, parser_of, run
from jaxnets.data.datasets import absolute, is_path
from jaxnets.data.verification import ON_BAD_IMAGE
from jaxnets.errors import InputError
from jaxnets.pretrained import describe
from jaxnets.training.augmentations import AugmentationSettings
from jaxnets.training.config import DTYPES, Config
from jaxnets.training.interruption import Interruption
from jaxnets.training.loop import CHECKPOINT_INTERVAL, train
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


def make_parser() -> argparse.ArgumentParser:
    """The parser. The recipe's options follow from its fields; options that are not given are absent."""
    parser = parser_of(
        "train",
        "Train a classifier. Settings that are not given are chosen for the family of the network.",
        usage="%(prog)s --arch NAME [--dataset FOLDER] [--recipe NAME] [options]",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--arch", help="network, such as resnet50 (jaxnets.list_models()), or package.module:factory")
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
    parser.add_argument("--workdir", type=Path, help="folder for the run's files (default: a new one under runs/)")
    parser.add_argument("--dtype", help=f"what the network computes in: {', '.join(DTYPES)} (default: float32)")
    parser.add_argument("--seed", type=int, help="decides initial weights, sample order and augmentation (default: 0)")
    parser.add_argument("--log-every", type=int, help="steps between lines of metrics (default: 10)")
    parser.add_argument("--tensorboard", action="store_true", help="write files for TensorBoard as well")

    start = parser.add_argument_group("starting from weights")
    start.add_argument(
        "--weights",
        help="IMAGENET1K_V1, IMAGENET1K_V2 or DEFAULT (downloaded once), a .pth, .pt or .safetensors file, or the "
        "workdir of a run",
    )
    start.add_argument("--weights-key", metavar="KEY", help="entry of a torch checkpoint to read, such as model_ema")
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

    devices = parser.add_argument_group("devices and machines")
    devices.add_argument("--platform", choices=PLATFORMS, help="train on this platform or fail (default: auto)")
    devices.add_argument(
        "--parallel", choices=PARALLEL, help="how to use several devices (default: jit on one device, pmap on several)"
    )
    devices.add_argument(
        "--steps-per-call", type=int, metavar="N", help="steps that the device takes without the host (default: 1)"
    )
    devices.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, if no launcher sets it")
    devices.add_argument("--num-processes", type=int, help="number of processes")
    devices.add_argument("--process-id", type=int, help="index of this process, from 0")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", metavar="NAME", help=f"start from {', '.join(RECIPES)} (default: by architecture)")
    augmentation = parser.add_argument_group("augmentation, as part of the recipe")
    types_of, augmentations = get_type_hints(Recipe), {setting.name for setting in fields(AugmentationSettings)}
    for setting in fields(Recipe):
        group = augmentation if setting.name in augmentations else recipe
        add_setting(group, setting.name, types_of[setting.name], dict(setting.metadata))
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
    """The configuration and the launch of a command line."""
    given = vars(make_parser().parse_args(arguments))
    join_processes(*(given.pop(name, None) for name in ("coordinator", "num_processes", "process_id")))
    choose_platform(given.pop("platform", "auto"))
    workdir, resume = given.pop("workdir", None), given.pop("resume", False)
    launch = {
        "parallel": given.pop("parallel", "auto"),
        "checkpoint_interval": given.pop("checkpoint_interval", CHECKPOINT_INTERVAL),
        "tensorboard": given.pop("tensorboard", False),
        "steps_per_call": given.pop("steps_per_call", 1),
    }
    if resume and workdir is None:
        raise InputError("--resume needs the --workdir of the run to continue")
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
    return config, Launch(workdir, resume, **launch)


def configuration(given: dict[str, Any], before: Path | None) -> Config:
    """The recipe with the given changes. Without --arch, a resumed run keeps its own configuration and recipe."""
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
            raise InputError(f"--recipe {name} needs --arch; without both, the run keeps its own recipe")
        config = Config.read(before / "config.json")
        return replace(config, recipe=replace(config.recipe, **changes), **given)
    if "weights" in given:
        name = name or ("linear_probe" if given.get("transfer") == "head" else "finetune")
    recipe = recipe_for(given["arch"], given.get("dataset", "digits"), name)
    if "weights" in given:
        recipe = with_sizes_of_weights(recipe, given, before)
    return Config(recipe=replace(recipe, **changes), **given)


def with_sizes_of_weights(recipe: Recipe, given: dict[str, Any], before: Path | None) -> Recipe:
    """The recipe with the image size and the crop that the weights were tested with; a resumed run keeps its own."""
    if before is not None and (before / "config.json").exists():
        theirs = Config.read(before / "config.json").recipe
        return replace(recipe, image_size=theirs.image_size, crop_pct=theirs.crop_pct)
    return recipe.with_sizes_of(describe(given["arch"], given["weights"], given.get("weights_key")).preprocessing)


def absolute_weights(weights: str) -> str:
    """A published name unchanged, or an absolute path."""
    path = Path(weights).expanduser()
    return str(path.absolute()) if path.exists() or os.sep in weights or path.suffix else weights


@contextmanager
def workdir_of(config: Config, launch: Launch, parallel: Parallel) -> Iterator[Path]:
    """The workdir: that of the command line, or a new one, which is removed if the run writes nothing to it."""
    if launch.workdir is not None:
        yield launch.workdir
        return
    new = parallel.broadcast(parallel.on_primary(lambda: str(new_workdir(config))))
    try:
        yield Path(new)
    finally:
        if parallel.is_primary:
            for folder in (Path(new), Path(new).parent):
                with suppress(OSError):
                    folder.rmdir()


def new_workdir(config: Config) -> Path:
    """Creates runs/ARCH-DATASET, or with -2, -3, ... appended if that exists. Two processes never get the same."""
    name = Path(config.dataset).name if is_path(config.dataset) else config.dataset
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in f"{config.arch}-{name}")
    path, number = Path("runs") / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = Path("runs") / f"{name}-{number}"


def main() -> None:
    """Trains, and prints the result."""
    config, launch = parse()
    parallel = Parallel.choose(launch.parallel)
    with Interruption() as interruption, workdir_of(config, launch, parallel) as workdir:
        result = train(
            config,
            workdir,
            parallel=parallel,
            resume=launch.resume,
            checkpoint_interval=launch.checkpoint_interval,
            tensorboard=launch.tensorboard,
            interruption=interruption,
            steps_per_call=launch.steps_per_call,
        )
    if parallel.is_primary:
        waiting = result["waiting_for_data_seconds"] / result["training_seconds"]
        if waiting > _WAITING_SHARE and result["waiting_for_data_seconds"] > 1:
            print(f"{waiting:.0%} of the training time was spent waiting for data; see python -m experiments.prepare")
        part = result.get("judged_on", "test")  # a finished run of an earlier version has none
        val = f", val accuracy {result['val_accuracy']:.2%}" if part == "test" and "val_accuracy" in result else ""
        print(
            f"{part} accuracy {result[f'{part}_accuracy']:.2%}, top-5 {result[f'{part}_top5_accuracy']:.2%}{val}, of "
            f"epoch {result['best_epoch']}, after {result['seconds']:.0f} s; see {workdir}/report.html"
        )


if __name__ == "__main__":
    run(main)
